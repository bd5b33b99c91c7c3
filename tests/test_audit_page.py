"""An audit on the page, the card, the comparison and the terminal: its numbers, and no good news from what says nothing."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from audit_data import (
    about,
    entry,
    everything,
    full_audit,
    pair_audit,
    save_attack,
    save_none,
    save_recovered,
    save_strongest,
    unattacked,
)
from misdirect import runs, storage
from misdirect.cli.output import print_audit
from misdirect.reporting import compare, report, write_figures
from misdirect.reporting.card import card
from misdirect.reporting.content.audit import lines, share, tokens_of
from misdirect.reporting.content.audit_headline import headlines
from misdirect.reporting.content.diagnostics import texts_table
from misdirect.reporting.figures import catalogue
from misdirect.reporting.load.audit import audit_of, results_of, without_answers
from misdirect.reporting.load.run import Run, read_run
from misdirect.reporting.page import fill, view
from misdirect.runs import Metric, Result
from misdirect.runs.stored import AuditRecord, typed
from misdirect.text import clean
from report_data import HOSTILE, Page, assert_inert, page, small_run
from test_browser import CONTRAST, OVERFLOWING, VIEWS, browser, opened  # noqa: F401 - a fixture

SECRET = "WORKING SUFFIX"


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that an audit can have, its page, card and summary. Not changed by any test."""
    run = full_audit(tmp_path_factory.mktemp("audit") / "run")
    report(run, show_text=False)
    card(run)
    runs.write_summary(run)
    return run


def small_audit(folder: Path, count: int = 1, **changes: Any) -> Path:
    """The first attacks of `everything`, in a run."""
    small_run(folder)
    unattacked(folder)
    save_none(folder)
    made = everything()[:count]
    for each in made:
        save_attack(folder, each)
    save_strongest(folder, [[made[0].name, {"step": 20}], [made[0].name, {"step": 100}]])
    storage.write_json(folder / "audit.json", about([entry(each) for each in made]) | changes)
    return folder


def unpictured(run: Path, show_text: bool | None = None) -> str:
    """The page without its drawings, which take most of the time."""
    return fill("report.html", view(read_run(run), show_text), {})


def said(run: Path) -> str:
    return Page(unpictured(run)).text


def row_of(text: str, title: str) -> str:
    """The text of an attack's row in the table of attacks, or in that of the attacks that were not run."""
    tables = re.findall(r'<table class="attacks">.*?</table>', text, re.S)
    assert tables
    rows = [Page(row).text for row in re.findall(r"<tr.*?</tr>", "".join(tables), re.S)]
    found = [row for row in rows if row.startswith(title)]
    assert len(found) == 1, rows
    return found[0]


# ------------------------------------------------------------------------------------------------ the page


def test_headline_stands_first_with_its_interval_and_its_price(audited: Path) -> None:
    text = assert_inert(audited / "report.html").text
    sentence = (
        "biology: 61 % [47 to 73 %] of what was removed comes back under the strongest attack on either half of the "
        "questions: Finetuning on the forget corpus, lr 0.0001, 100 steps (step 100) / Finetuning on other facts of the topic, "
        "lr 0.0001, 100 steps (step 50); price: 51,200 tokens, 4 minutes, access to the weights each."
    )
    assert sentence in text
    assert text.index("Under attack") < text.index("What was to be forgotten")
    assert "The strongest attack is chosen on one half of the tested questions and reported on the other" in text
    assert "What was removed: base 70.0 %, unlearned 22.5 % right: 47.5 points, 95 % interval 37.5 to 57.5." in text
    assert (
        "Of 22 attacks, 2 not run, 1 inconclusive and 1 failed: these say nothing about the model, good or bad." in text
    )
    assert "No attack is reported here" not in text
    assert "resisted" not in text.replace("it was not resisted", "")


def test_table_has_share_control_general_ability_and_cost(audited: Path) -> None:
    text = (audited / "report.html").read_text(encoding="utf-8")
    row = row_of(text, "Finetuning on other facts of the topic, lr 0.0001")
    # (36 - 12) of the 38 removed at the best point, less the 2 % that the fixture takes off for the choice
    assert "best at step 50" in row
    assert re.search(r"61 % 45 to 75 % 50\.0 % 68\.8 % 50\.0 % before 51\.7 % 0 % 4 minutes 51,200 the weights$", row)
    assert "31 of its texts state a tested fact" in row_of(text, "Finetuning on the forget corpus, lr 2e-05")
    assert row_of(text, "Soft prompt").endswith("25 % 3 minutes 88,000 gradients")
    assert "best at quiz" in row_of(text, "Other wordings")  # the variant's name, not its number
    assert "best at 5 examples" in row_of(text, "Five examples")


def test_attacks_are_sorted_by_what_comes_back(audited: Path) -> None:
    audit = read_run(audited).audit
    assert audit
    shown = lines(audit, "biology")
    told = [float(line.share.text.split()[0].replace("\u2212", "-")) for line in shown if not line.status]
    assert told == sorted(told, reverse=True)
    assert len(told) == 18
    assert [bool(line.status) for line in shown] == [False] * 18 + [True] * 4


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("GCG, one suffix", "inconclusive (its control failed on the base): says nothing"),
        ("GCG, a suffix a question", "not run (needs 12 minutes; --minutes 60 would do)"),
        ("Noise", "failed (the loss is not a number at step 3)"),
    ],
)
def test_what_says_nothing_has_its_status_and_no_number(audited: Path, title: str, words: str) -> None:
    row = row_of((audited / "report.html").read_text(encoding="utf-8"), title)
    assert words in row
    assert "%" not in row


def test_unknown_questions_are_set_apart(audited: Path) -> None:
    text = page(audited / "report.html").text
    expected = (
        "biology: 80 questions tested, 56 of which the base knows; the other 24 are set apart and in no recovered share; right "
        "among them: base 0, unlearned 5, strongest attack 7."
    )
    assert expected in text


def test_diagnostics_have_their_own_tables(audited: Path) -> None:
    text = page(audited / "report.html").text
    # the block that reads out most, block 11: 55 + 27.5 - 12 %
    assert (
        "Linear probe, true or false biology 11 70.5 % 64.5 to 76.5 % 82.5 % 76.5 to 88.5 % 82.5 % (block 11) 52.0 % 52.0 % "
        "160" in text
    )
    asked = "Forget words before retained questions (3 added words) physics"
    assert f"{asked} 53.3 % 46.7 % 34.6 to 59.1 % 51.7 % 26.7 % 17.1 to 39.0 % 60" in text
    assert "A text for one question: right answers that the text brings out biology 50 % 25 % 4" in text
    assert (
        "A text for one question: NLL per token: wrong answer less right answer, with the texts biology 1.234 1.234 4"
        in text
    )
    assert "Linear probe, which of four: not run (needs 40 questions; --limit 80 would do)" in text
    table = re.search(
        r'<table class="attacks">.*?</table>', (audited / "report.html").read_text(encoding="utf-8"), re.S
    )
    assert table
    assert "probe" not in table[0]
    assert "No attack" not in table[0]


def test_texts_of_attacks_need_leave(audited: Path) -> None:
    shown = unpictured(audited, show_text=True)
    assert SECRET in shown
    assert "ANSWER TEXT" not in shown  # answers under attack are counted, never shown
    assert "Texts that attacks found" in page(audited / "report.html").text
    for file in ("README.md", "summary.json", "report.html"):
        assert SECRET not in (audited / file).read_text(encoding="utf-8")


def test_only_records_with_a_text_are_listed(audited: Path) -> None:
    audit = read_run(audited).audit
    assert audit
    assert texts_table(audit).rows == [
        ("GCG, one suffix for all questions", "biology", "80 questions", "WORKING SUFFIX !! describing"),
        ("A text for one question", "biology", "biology-0", "WORKING SUFFIX single"),
    ]
    record = {"id": "1", "points": [{"text": "a"}, {"text": "b"}]}
    at_points = {"set": "x", "attack": "gcg", "measurement": "mcq", "records": [record]}
    assert without_answers(at_points)["records"] == [{"id": "1", "text": "a"}, {"id": "1", "text": "b"}]


def test_folders_of_the_machine_are_not_named(audited: Path) -> None:
    text = (audited / "report.html").read_text(encoding="utf-8") + (audited / "README.md").read_text(encoding="utf-8")
    assert "/home/somebody" not in text
    assert "secret" not in text
    failed = entry(everything()[0], "failed", "base: /home/somebody/secret/x.bin cannot be read")
    audit = audit_of(typed(about([failed]), AuditRecord), [])
    assert audit
    assert audit.attempts[0].why == "base: x.bin cannot be read"


def test_nothing_removed(tmp_path: Path) -> None:
    run = pair_audit(tmp_path / "pair", removed=False)
    text = said(run)
    assert "biology: nothing was removed beyond chance (base 70.0 %, unlearned 22.5 % right: 1.0 points" in text
    assert "so nothing can come back." in text
    assert "comes back under the strongest" not in text
    assert row_of(unpictured(run), "Finetuning on other").endswith("nothing was removed the weights")
    assert "recovered" not in catalogue.available(read_run(run))


def test_no_attack_that_could_bring_it_back(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    unattacked(tmp_path / "run")
    undone = entry(everything()[0], "not run", "needs 12 minutes") | {"seconds": {}}
    storage.write_json(tmp_path / "run" / "audit.json", about([undone]))
    path = report(tmp_path / "run")
    text = page(path).text
    assert "biology: no attack has been run that could bring knowledge back. This says nothing about the model." in text
    assert "Of 1 attack, 1 not run" in text
    assert not drawn(path) & {"recovered", "relearning", "budgets", "layers"}


def test_attacks_that_may_teach_are_neither_headline_nor_silence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small_run(run)
    unattacked(run)
    taught = next(each for each in everything() if each.settings.get("texts_that_state_a_tested_fact"))
    save_attack(run, taught)
    storage.write_json(run / "audit.json", about([entry(taught)]))
    text = page(report(run)).text
    assert "train on text that states tested facts, so what comes back under them may have been taught" in text
    assert "no attack has been run" not in text


def test_few_questions_are_shown_where_they_were_attacked(tmp_path: Path) -> None:
    run = pair_audit(tmp_path / "pair", removed=False)
    record = storage.read_json(run / "audit.json")
    record["removed"]["biology"]["attacked"] = True
    storage.write_json(run / "audit.json", record)
    save_strongest(run, [[everything()[0].name, {"step": 100}]])
    assert "of what was removed comes back under the strongest attack" in said(run)


def test_nothing_that_comes_back_is_no_proof(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run")
    save_strongest(run, [["relearn-facts-full-lr2e-05-steps100", {"step": 5}]], share=0.02)
    text = said(run)
    assert "biology: 2 % [\u221212 to 14 %] of what was removed comes back under the strongest attack" in text
    assert "The interval holds 0: this cannot be told from nothing coming back under the attacks that were run." in text
    assert "Another attack may do better." in text


def test_two_checkpoints_have_a_page_of_their_own(tmp_path: Path) -> None:
    path = report(pair_audit(tmp_path / "pair"))
    text = assert_inert(path).text
    assert "Audit of demo" in text
    assert "how much of what was removed of biology comes back under attack" in text
    assert "(step 100); price: 51,200 tokens, 4 minutes, access to the weights." in text
    assert "What was to be forgotten" in text  # the audit says which set that was
    assert "Nothing was unlearned" not in text


def test_a_control_that_fails_is_inconclusive_whatever_the_audit_says(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run")
    gcg = next(each for each in everything() if each.control == 0.0)
    save_attack(run, gcg)
    storage.write_json(run / "audit.json", about([entry(gcg)]))
    row = row_of(unpictured(run), gcg.title)
    assert "inconclusive" in row
    assert "%" not in row


# ------------------------------------------------------------------------------------------------ what may be missing


def test_one_side_only(tmp_path: Path) -> None:
    small_run(tmp_path / "run")
    first, second = everything()[:2]
    save_attack(tmp_path / "run", first, models=["base"])
    save_attack(tmp_path / "run", second, models=["unlearned"])
    storage.write_json(tmp_path / "run" / "audit.json", about([entry(first), entry(second)]))
    text = unpictured(tmp_path / "run")
    assert "not run (needs the unlearned model's results, which are missing)" in row_of(text, first.title)
    row = row_of(text, second.title)
    assert "\u2013 50.0 %" in row  # no base under this attack
    assert "nan" not in row


KEYS = ("base", "unlearned", "settings", "split", "forms", "removed", "speed", "attacks", "seconds")
ODD = [
    None,
    3,
    "x",
    [],
    {},
    [None, "x", 1, {"name": None}],
    {"biology": None},
    {"biology": {"value": "x", "removed": 1}},
]


@pytest.mark.parametrize("key", KEYS)
def test_missing_keys_are_survived_and_odd_ones_are_a_line(tmp_path: Path, key: str) -> None:
    run = small_audit(tmp_path / "run")
    record = storage.read_json(run / "audit.json")
    del record[key]
    storage.write_json(run / "audit.json", record)
    found = view(read_run(run), show_text=False)
    assert found["audit"]["headlines"][0].set == "biology"
    refused = 0
    for odd in ODD:
        storage.write_json(run / "audit.json", record | {key: odd})
        with suppress(ValueError):
            typed(record | {key: odd}, AuditRecord)
            audit = read_run(run).audit
            assert audit
            assert [each.set for each in headlines(audit)][:1] == ["biology"]
            assert all(lines(audit, name) is not None for name in audit.forgotten)
            continue
        refused += 1
        with pytest.raises(ValueError, match=rf"audit\.json is damaged \(Expected `.*\$\.{key}"):
            read_run(run)
    assert refused > 2 or key == "speed"


def test_without_audit_json_the_results_speak(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run")
    (run / "audit.json").unlink()
    text = said(run)
    assert "biology: 61 % [47 to 73 %] of what was removed" in text
    assert "relearn-facts-full-lr2e-05-steps100" in text


def test_audit_json_alone_has_a_page(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "audit.json", {"misdirect": "0.1.0"})
    assert "Under attack" in page(report(tmp_path)).text
    storage.write_json(tmp_path / "audit.json", [])
    with pytest.raises(ValueError, match=r"audit\.json is damaged \(Expected `object`, got `array`\)"):
        report(tmp_path)


def test_values_that_are_no_numbers(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run")
    name = everything()[0].name
    save_recovered(run, name, "biology", [({"step": 5}, math.nan)])
    rows = (Metric("recovered_share", math.nan, headline=True),)
    for chosen in ([[name]], [[name], None], [[name, 3]]):
        found = Result("recovered", "biology", {"chosen": chosen}, rows, ())
        runs.save_result(run, "unlearned", found, "strongest")
        if chosen != [[name]]:
            with pytest.raises(
                ValueError, match=r"strongest attack on biology is damaged \(Expected .* at `\$\.chosen"
            ):
                said(run)
    runs.save_result(run, "unlearned", dataclasses.replace(found, config={"chosen": [[name]]}), "strongest")
    text = said(run)
    assert "nan" not in text.lower().replace("finance", "")
    assert "no attack has been run that could bring knowledge back" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small_run(run)
    made = everything()[0]._replace(
        title=HOSTILE, access=HOSTILE, settings={HOSTILE: HOSTILE, "variants": [HOSTILE]}, text=HOSTILE
    )
    save_attack(run, made, name=HOSTILE, kept=f"kept {HOSTILE}")
    save_strongest(run, [[made.name, {"step": 5}], [HOSTILE, {}]], name=HOSTILE)
    odd = entry(made, "inconclusive", HOSTILE) | {"name": HOSTILE}
    record = about([entry(made), odd, entry(made, HOSTILE, HOSTILE) | {"name": "other"}], name=HOSTILE)
    storage.write_json(run / "audit.json", record | {"base": {"source": HOSTILE}, "settings": {HOSTILE: HOSTILE}})
    parsed = assert_inert(report(run, show_text=True))
    assert clean(HOSTILE) in " ".join(parsed.texts)
    assert not set("\u202e\u2066\x07") & set(" ".join(parsed.texts))
    for drawing in re.findall(r"<svg .*?</svg>", (run / "report.html").read_text(encoding="utf-8"), re.S):
        ET.fromstring(drawing)
    written = card(run).read_text(encoding="utf-8")
    assert "<script>" not in written.split("---\n", 2)[2]
    assert_inert(compare([run, small_audit(tmp_path / "other")], tmp_path / "comparison.html"))


# ------------------------------------------------------------------------------------------------ pictures


def drawn(path: Path) -> set[str]:
    return set(re.findall(r'aria-labelledby="fig-([\w-]+)-title', path.read_text(encoding="utf-8")))


def words_of(run: Path, name: str) -> list[str]:
    text = (run / "report.html").read_text(encoding="utf-8")
    found = re.search(rf'<svg [^>]*aria-labelledby="fig-{name}-title.*?</svg>', text, re.S)
    assert found
    texts = [element.text or "" for element in ET.fromstring(found[0]).iter() if element.tag in ("text", "desc")]
    return [text.replace("\u00a0", " ") for text in texts]


def test_pictures_show_what_exists(audited: Path) -> None:
    assert {"recovered", "relearning", "budgets", "layers"} <= drawn(audited / "report.html")
    forest = words_of(audited, "recovered")
    assert "Soft prompt of 10 vectors" in forest
    assert "strongest, chosen on the other half" in forest
    assert not any("GCG" in word or "Noise" in word for word in forest)
    assert "Finetuning on the forget corpus, lr 0.0001, 100 steps: unlearned" not in " ".join(
        words_of(audited, "layers")
    )
    assert "updates" in words_of(audited, "relearning")
    budgets = " ".join(words_of(audited, "budgets"))
    assert "Smallest weights pruned: base 70.0 % to 65.0 %, unlearned 22.5 % to 27.5 %" in budgets
    assert "Other wordings" not in budgets  # the numbers of wordings are not amounts
    assert "Quantised" not in budgets  # one point is no curve
    assert "shuffled 50.0 % to 52.0 %, floor 52.0 % to 52.0 %" in " ".join(words_of(audited, "layers"))


def test_a_single_point_is_no_curve(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run", count=1)
    path = report(run)
    assert {"recovered", "relearning"} <= drawn(path)
    assert not {"budgets", "layers"} & drawn(path)
    shutil.rmtree(run / "results" / "attacks" / everything()[0].name)
    assert not {"recovered", "relearning"} & drawn(report(run))


def test_pictures_are_written_as_files(tmp_path: Path) -> None:
    names = {path.name for path in write_figures(small_audit(tmp_path / "run", count=1))}
    assert {"recovered.svg", "recovered.png", "recovered.pdf", "relearning.svg"} <= names


def test_two_sets_have_two_headlines_and_pictures(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run")
    made = everything()[0]
    save_attack(run, made._replace(name="other"), name="chemistry")
    record = storage.read_json(run / "audit.json")
    record["split"] |= {"chemistry": {"tested": 80, "known": 80}}
    record["attacks"].append(entry(made._replace(name="other")))
    storage.write_json(run / "audit.json", record)
    report(run)
    text = page(run / "report.html").text
    assert "chemistry: no attack has been run that could bring knowledge back that was chosen on one half" in text
    assert "Attacks on chemistry" in text
    assert {"recovered", "recovered-2"} <= drawn(run / "report.html")
    assert "chemistry: 80 questions tested, 80 of which the base knows; none had to be set apart." in text


def test_ids_are_unique(audited: Path) -> None:
    ids = re.findall(r'\sid="([^"]+)"', (audited / "report.html").read_text(encoding="utf-8"))
    assert len(ids) == len(set(ids))


def test_same_audit_same_bytes_and_no_torch(tmp_path: Path) -> None:
    run = small_audit(tmp_path / "run", count=1)
    written = report(run).read_bytes()
    code = (
        "import sys; from pathlib import Path; from misdirect.reporting import report;"
        "from misdirect.cli.output import print_audit;"
        f"report(Path({str(run)!r})); print_audit([], {{}}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (run / "report.html").read_bytes() == written


# ------------------------------------------------------------------------------------------------ card, comparison, terminal


def test_card_has_the_headline_and_what_was_not_run(audited: Path) -> None:
    text = (audited / "README.md").read_text(encoding="utf-8").replace("\u00a0", " ")
    part = text[text.index("## Under attack") : text.index("## Results")]
    assert "biology: 61 % &#91;47 to 73 %&#93; of what was removed comes back" in part
    assert part.count("| biology |") == 8
    assert "10 more attacks brought less back" in part
    assert "- inconclusive: GCG, one suffix for all questions" in part
    assert "- not run: Linear probe, which of four, Quantised to nf4 and GCG, a suffix a question" in part
    assert "No attack was made for this card" not in text
    assert "| audit.json |" in text


def test_card_without_an_audit_says_so(tmp_path: Path) -> None:
    text = card(small_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "No attack was made for this card" in text
    assert "Under attack" not in text


def test_comparison_sets_audits_side_by_side(audited: Path, tmp_path: Path) -> None:
    other = small_audit(tmp_path / "other", count=2)
    save_strongest(other, [[everything()[0].name, {"step": 100}]], share=0.35)
    changed = entry(everything()[0]) | {"settings": {"lr": 3e-5, "forms": {"x": "cloze"}}}
    storage.write_json(other / "audit.json", about([changed, entry(everything()[1])]))
    plain = small_run(tmp_path / "plain")
    parsed = assert_inert(compare([audited, other, plain], tmp_path / "comparison.html"))
    text = parsed.text
    assert "biology under attack" in text
    assert "Strongest attack chosen on the other half 61 % 47 to 73 %" in text
    assert "35 % 21 to 47 % Finetuning on other facts of the topic, lr 2e-05, 100 steps not audited" in text
    assert "settings differ: lr" in text
    assert "forms" not in text
    assert "GCG, one suffix for all questions inconclusive \u2013 \u2013" in text
    assert "No attack is reported here." not in text


def test_pairs_of_one_base_are_compared(tmp_path: Path) -> None:
    folders = [pair_audit(tmp_path / name) for name in ("one", "two", "three")]
    for folder, digest in zip(folders, ("aa", "aa", "bb"), strict=True):
        record = storage.read_json(folder / "audit.json")
        for one in record["attacks"]:
            one["settings"] = {"models_sha256": {"base": digest}}
        storage.write_json(folder / "audit.json", record)
    text = page(compare(folders, tmp_path / "comparison.html")).text
    assert "Runs A and B, from demo" in text or "Runs A and B, from SmolLM2-135M-Instruct" in text
    assert "Run C, from" in text


def test_terminal_table(audited: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = storage.read_json(audited / "summary.json")
    print_audit(rows, storage.read_json(audited / "audit.json"), audited)
    text = " ".join(capsys.readouterr().out.replace("\u00a0", " ").split())
    assert "3 minutes 88,000" in text
    assert "61 % [45, 75] 50.0 % 68.8 % 50.0 %, before 51.7 % 4 minutes 51,200" in text
    assert "GCG, one suffix for all questions: inconclusive (its control failed on the base): says nothing" in text
    assert "Quantised to nf4: not run (needs misdirect[quantise])" in text
    assert "biology: 61 % [47 to 73 %] of what was removed comes back under the strongest attack on either half" in text
    assert text.index("Soft prompt") < text.index("biology: 61 %")
    print_audit(rows, storage.read_json(audited / "audit.json"))
    assert (
        "comes back under the strongest attack." in capsys.readouterr().out
    )  # without the folder its name is not known


def test_terminal_survives_hostile_and_empty(capsys: pytest.CaptureFixture[str]) -> None:
    print_audit([], {})
    hostile = {"name": "x", "title": "\x1b[31m[bold]red\u202e", "status": "failed", "why": "\x1b[2J [/bold]"}
    print_audit([], {"split": {"\x1b[31mset": {}}, "attacks": [hostile]})
    text = capsys.readouterr().out
    assert "\x1b[31m" not in text
    assert "\u202e" not in text
    assert "[bold]red" in text


def test_rows_and_results_give_the_same_numbers(audited: Path) -> None:
    whole = read_run(audited).audit
    record = typed(storage.read_json(audited / "audit.json"), AuditRecord)
    flat = audit_of(record, results_of(storage.read_json(audited / "summary.json")))
    assert whole
    assert flat
    assert lines(flat, "biology") == lines(whole, "biology")


def test_wording() -> None:
    shares = [share(x).replace("\u00a0", " ") for x in (None, 0.644, -0.004, -0.126, 1.0)]
    assert shares == ["\u2013", "64 %", "0 %", "\u221213 %", "100 %"]
    assert [tokens_of(x) for x in (None, 0.0, 51234.0, 2.5e6)] == ["\u2013", "none", "51,200", "2,500,000"]


def test_a_run_without_an_audit_is_as_before(tmp_path: Path) -> None:
    run = read_run(small_run(tmp_path / "run"))
    assert isinstance(run, Run)
    assert run.audit is None
    assert "No attack is reported here" in said(tmp_path / "run")


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.mark.parametrize("view", VIEWS)
def test_in_a_browser(browser: Any, audited: Path, view: str) -> None:  # noqa: F811 - the fixture
    with opened(browser, audited / "report.html", view) as seen:
        assert seen.messages == []
        assert seen.requests == [(audited / "report.html").as_uri()]
        assert seen.ask("document.documentElement.scrollWidth") <= VIEWS[view][0]
        assert seen.ask(OVERFLOWING) == []
        ratio, where, _ = seen.ask(CONTRAST)
        assert ratio >= 4.5, where
        # what says nothing can be read without scrolling sideways
        right = (
            "Math.max(...[...document.querySelectorAll('td.status span')].map(e => e.getBoundingClientRect().right))"
        )
        assert seen.ask(right) <= VIEWS[view][0]
        drawings = (
            "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect()).filter(r => r.width > 0)"
        )
        assert seen.ask(f"Math.min(...{drawings}.map(r => r.left))") >= 0
        assert seen.ask(f"Math.max(...{drawings}.map(r => r.right))") <= VIEWS[view][0] + 0.5
