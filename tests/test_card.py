"""The model card says what the run measured, is metadata that the hub reads, and stays inert whatever it is given."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from misdirect import runs, storage
from misdirect.reporting import report
from misdirect.reporting.card import MARK, card, dataset_of, plain
from misdirect.runs import Metric, Result
from misdirect.runs.seeds import seed_folder
from tiny import tiny_folder

HOSTILE = [
    "<script>alert(1)</script>",
    "a|b||c",
    "`code` ``` ~~~",
    "a\n```\n<script>alert(1)</script>\n````\n# b",
    "---\nlicense: mit\n---",
    "[here](http://evil.example) ![x](http://evil.example/x.png)",
    "http://evil.example www.evil.example a@evil.example @someone",
    "*bold* _under_ __both__ ~~gone~~ $$x^2$$ \\\\(y\\\\) \\| :smile:",
    "<!-- --> &lt;b&gt; &amp; <a href=x>",
    "{{ 7 * 7 }} {% raw %} !!python/object:x [] {}",
    "\"quoted\" 'twice': yes",
    "\u202eright\u2028line\x1b[31m",
]


def normal_p(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


PLAIN_NUMBERS = {"stderr": 0.03, "lost": 70, "gained": 7, "n": 200, "p_value": 1e-9}


def write_config(run: Path, model: str = "demo", topic: str = "biology", source: str = "bio.jsonl") -> None:
    config = {
        "misdirect": "0.1.0",
        "model": model,
        "settings": {"block": 7, "num_blocks": 3, "updates": 4, "lr": 0.002, "matrix": None},
        "topics": [{"name": topic, "source": source}],
        "retain": [{"name": "general", "source": "hub:some-one/their.texts:a:train", "weight": 1.0}],
        "data": {"model_sha256": "cd34", "forget_sha256": {topic: "ab12"}, "retain_sha256": {"general": "ef56"}},
        "chosen": {
            "block": 7,
            "trained": ["model.layers.7.mlp.down_proj.weight"],
            "topics": {topic: {"steering_coefficient": 61.25, "median_norm": 12.25, "retain_weight": 130.0}},
            "retain": {"general": {"num_samples": 1777}},
        },
        "command": f"misdirect unlearn {model} --forget '{topic}={source}' --out RUN",
    }
    storage.write_json(run / runs.CONFIG, config)
    (run / runs.DELTA).touch()


def accuracy(value: float, change: float | None = None, **more: Any) -> Metric:
    paired = None
    if change is not None:
        paired = PLAIN_NUMBERS | {"difference": change, "low": change - 0.06, "high": change + 0.06}
    base = {"headline": True, "base_knows": True, "floor": 0.3125, "chance": 0.25} | more
    return Metric("cloze_accuracy", value, 0.03, 200, value - 0.05, value + 0.05, paired=paired, **base)


def save_pair(run: Path, measurement: str, name: str, base: Metric, unlearned: Metric) -> None:
    for model, metric in (("base", base), ("unlearned", unlearned)):
        runs.save_result(run, model, Result(measurement, name, {"sha256": "99aa", "questions": 200}, (metric,), ()))


def nll(value: float, change: float | None = None) -> Metric:
    paired = (
        None
        if change is None
        else {
            "difference": change,
            "stderr": 0.01,
            "low": change - 0.02,
            "high": change + 0.02,
            "p_value": normal_p(change / 0.01),
        }
    )
    return Metric("nll_per_token", value, 0.1, 50, value - 0.2, value + 0.2, headline=True, paired=paired)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder)
    storage.write_json(folder / runs.ENV, {"versions": {"torch": "2.13.0"}})
    save_pair(folder, "mcq", "biology", accuracy(0.625), accuracy(0.3125, -0.3125))
    save_pair(folder, "mcq", "physics", accuracy(0.604), accuracy(0.591, -0.013))
    save_pair(folder, "nll", "general", nll(2.75), nll(2.7623, 0.0123))
    return folder


def front(text: str) -> dict[str, Any]:
    """The metadata, by the hub's own pattern."""
    found = re.search(r"^(\s*---[\r\n]+)([\S\s]*?)([\r\n]+---(\r\n|\n|\Z))", text)
    assert found
    return yaml.safe_load(found[2])


def body(text: str) -> str:
    return text.split(MARK, 1)[1]


def tokens(text: str) -> list[Token]:
    """Every token of the card's body, those inside lines too."""
    found = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body(text))
    return [one for token in found for one in (token, *(token.children or []))]


def cells(text: str) -> list[list[str]]:
    """The text of every table row, as a reader sees it."""
    rows: list[list[str]] = []
    found = MarkdownIt("commonmark").enable("table").parse(body(text))
    for before, token in itertools.pairwise(found):
        if before.type == "tr_open":
            rows.append([])
        if before.type in ("td_open", "th_open"):
            rows[-1].append(
                "".join(c.content for c in token.children or []).replace("\u00a0", " ").replace("\u2212", "-")
            )
    return rows


def test_the_numbers_are_those_of_the_run_and_of_the_page(run: Path) -> None:
    path = card(run)
    assert path == run / "README.md"
    expected = ["cloze accuracy", "62.5 % (57.5 to 67.5 %)", "31.2 % (26.2 to 36.2 %)", "-31.2 pp (-37.2 to -25.2 pp)"]
    assert ["biology", *expected, "25.0 %", "31.2 %", "200"] in cells(path.read_text(encoding="utf-8"))
    page = report(run).read_text(encoding="utf-8").replace("\u00a0", " ").replace("\u2212", "-")
    assert all(number in page for number in ("26.2 to 36.2 %", "-37.2 to -25.2 pp", "+0.012"))


def test_text_and_collateral_are_given_with_their_correction(run: Path) -> None:
    text = card(run).read_text(encoding="utf-8")
    found = cells(text)
    assert ["general", "kept", "2.750", "2.762", "+0.012 (-0.008 to +0.032)", "1.012", "50"] in found
    # physics has p 1e-9 of its own, general (0.0123 / 0.01 standard errors) 0.219: doubled and undoubled by Holm
    assert ["physics", "cloze accuracy", "-1.3 pp (-7.3 to +4.7 pp)", "< 0.001", "yes", "200"] in found
    assert ["general", "NLL per token", "+0.012 (-0.008 to +0.032)", "0.219", "not shown", "50"] in found
    assert "adjusted over all 2 of them (Holm): 1\nchanged" in text


def test_the_hub_reads_the_metadata(run: Path) -> None:
    from huggingface_hub import ModelCard

    path = card(run)
    data = ModelCard.load(path).data
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert data.license == "apache-2.0"
    assert data.library_name == "misdirect"
    assert data.datasets == ["some-one/their.texts"]
    assert data.tags is not None
    assert {"unlearning", "rmu"} <= set(data.tags)
    results = {(r.dataset_name, r.metric_type): r for r in data.eval_results or []}
    assert set(results) == {("biology", "accuracy"), ("physics", "accuracy"), ("general", "nll_per_token")}
    biology = results["biology", "accuracy"]
    assert biology.metric_value == 0.3125
    assert biology.metric_args == {
        "set": "forget", "low": 0.2625, "high": 0.3625, "n": 200, "chance": 0.25, "floor": 0.3125, "base": 0.625,
    }  # fmt: skip
    assert front(path.read_text(encoding="utf-8")) == yaml.safe_load(str(data))  # nothing lost on the hub's way


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(tmp_path: Path, name: str) -> None:
    write_config(tmp_path, model=f"no/such/{name}/model", topic=name, source=name)
    save_pair(tmp_path, "mcq", name, accuracy(0.625), accuracy(0.3125, -0.3125))
    save_pair(tmp_path, "mcq", "kept " + name, accuracy(0.5), accuracy(0.5, -0.0))
    text = card(tmp_path).read_text(encoding="utf-8")
    found = tokens(text)
    assert not [t.type for t in found if t.type in ("html_inline", "html_block", "image", "em_open", "s_open")]
    assert {t.attrs["href"] for t in found if t.type == "link_open"} <= {
        f"https://arxiv.org/abs/{number}" for number in ("2403.03218", "2410.08827", "2409.18025")
    }
    assert [t.info for t in found if t.type == "fence"] == ["python", "sh"]
    headings = [b.content for a, b in itertools.pairwise(found) if a.type == "heading_open"]
    assert headings[-4:] == ["Data", "Limits", "Do it again", "Files"]  # nothing swallowed the rest
    seen = " ".join(name.replace("\u202e", "").replace("\x1b", "").split())
    assert {len(row) for row in cells(text) if row[0] in (seen, "kept " + seen)} == {8, 6, 5}
    assert front(text).keys() == {"library_name", "pipeline_tag", "tags", "datasets", "model-index"}
    assert front(text)["model-index"][0]["results"][0]["dataset"]["name"] == seen
    assert "://evil" not in re.sub(r"(?s)```+.*?```+", "", body(text))
    assert "www.evil" not in re.sub(r"(?s)```+.*?```+", "", body(text))


def test_what_looks_like_markup_is_written_as_character_references() -> None:
    assert plain("a|b <i> `c`") == "a&#124;b &#60;i&#62; &#96;c&#96;"
    assert plain("plain_text, 5 %: -0.6 (see 3.1); hub:x/y:z") == "plain\\_text, 5 %: -0.6 (see 3.1); hub:x/y:z"
    assert plain("\n a \n b ") == "a b"
    assert len(plain("x" * 9999)) == 500


def test_no_text_of_the_data_is_in_it(run: Path) -> None:
    for model in ("base", "unlearned"):
        record = {"id": "q-17", "prompt": "A SECRET QUESTION", "text": "A SECRET ANSWER", "repetition": 0.5}
        metric = Metric("repetition", 0.5, n=1)
        runs.save_result(run, model, Result("generation", "prompts", {"sha256": "77"}, (metric,), (record,)))
    text = card(run).read_text(encoding="utf-8")
    assert "SECRET" not in text
    assert ["prompts", "repetition", "0.500", "0.500", "\u2013", "1"] in cells(text)


def test_partial_runs_have_a_card(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / runs.DELTA).unlink()
    text = card(tmp_path).read_text(encoding="utf-8")
    assert "Nothing has been measured yet." in text
    assert "The run is unfinished" in text
    assert "model-index" not in front(text)
    (tmp_path / runs.DELTA).touch()
    runs.save_result(tmp_path, "base", Result("mcq", "biology", {}, (accuracy(0.625),), ()))
    text = card(tmp_path).read_text(encoding="utf-8")
    assert "Only the base model has been measured." in text
    assert "unfinished" not in text
    assert "model-index" not in front(text)  # the base's numbers are not this model's


def test_a_run_that_says_almost_nothing_has_a_card(tmp_path: Path) -> None:
    storage.write_json(tmp_path / runs.CONFIG, {"misdirect": "0.1.0"})
    assert "Nothing has been measured yet." in card(tmp_path).read_text(encoding="utf-8")


def test_the_same_run_gives_the_same_bytes(run: Path) -> None:
    first = card(run).read_bytes()
    report(run)
    assert card(run).read_bytes() == first


def test_a_card_that_is_no_longer_ours_stays(run: Path) -> None:
    ours = card(run).read_text(encoding="utf-8")
    (run / "README.md").write_text(ours.replace(MARK, "").replace("Limits", "My limits"), encoding="utf-8")
    card(run)
    assert "My limits" in (run / "README.md").read_text(encoding="utf-8")
    (run / "README.md").write_text(ours.replace("Limits", "My limits"), encoding="utf-8")
    card(run)
    assert (run / "README.md").read_text(encoding="utf-8") == ours


def test_the_folder_of_an_evaluation_has_none(tmp_path: Path) -> None:
    runs.save_result(tmp_path, "base", Result("mcq", "biology", {}, (accuracy(0.625),), ()))
    with pytest.raises(ValueError, match="is not a run"):
        card(tmp_path)


def test_seeds_are_given_as_a_spread(run: Path) -> None:
    assert "- One seed:" in card(run).read_text(encoding="utf-8")
    for seed, value in ((1, 0.25), (2, 0.375)):
        further = seed_folder(run, seed)
        write_config(further)
        runs.save_result(further, "unlearned", Result("mcq", "biology", {}, (accuracy(value, value - 0.625),), ()))
    text = card(run).read_text(encoding="utf-8")
    assert ["biology", "cloze accuracy", "3", "25.0 %", "31.2 %", "37.5 %"] in cells(text)
    assert "- One seed:" not in text


LICENSES: list[tuple[str, Mapping[str, Any]]] = [
    ("---\nlicense: mit\nlanguage: de\n---\n# x\n", {"license": "mit", "language": ["de"]}),
    (
        "---\nlicense: other\nlicense_name: mine\nlanguage: [en, fr]\n---\n",
        {"license": "other", "license_name": "mine", "language": ["en", "fr"]},
    ),
    ("# no metadata\n", {}),
    ("---\nlicense: [a, b]\nlanguage: 7\n---\n", {}),
    ("---\nlicense: 'x\n---\n", {}),
    ("---\n!!python/object/apply:os.system ['true']\n---\n", {}),
]


@pytest.mark.parametrize(("theirs", "expected"), LICENSES)
def test_license_and_language_are_the_bases_own_or_left_out(
    tmp_path: Path, theirs: str, expected: Mapping[str, Any]
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    for folder in (base, run):
        folder.mkdir()
    (base / "README.md").write_text(theirs)
    write_config(run, model=str(base))
    found = front(card(run).read_text(encoding="utf-8"))
    keys = ("license", "license_name", "license_link", "language", "base_model")
    assert {key: found[key] for key in keys if key in found} == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:cais/wmdp-corpora:cyber-forget-corpus", "cais/wmdp-corpora"),
        ("hub:one#text", "one"),
        ("wmdp-bio-forget", "cais/wmdp-bio-forget-corpus"),
        ("demo-forget", None),
        ("hub:../../etc:x", None),
        ("bio.jsonl", None),
    ],
)
def test_data_sets_of_the_hub_are_named(source: str, expected: str | None) -> None:
    assert dataset_of(source) == expected


def test_the_code_that_puts_the_change_in_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from misdirect.model.delta import Delta, save_delta
    from misdirect.model.load import load_lm

    base = tiny_folder(tmp_path)
    write_config(tmp_path, model=str(base))
    name = "model.layers.3.mlp.down_proj.weight"
    lm = load_lm(str(base))
    before = dict(lm.model.named_parameters())[name]
    save_delta(
        Delta({name: 50 * torch.randn(before.shape, generator=torch.Generator().manual_seed(0))}), tmp_path / runs.DELTA
    )
    (code,) = re.findall(r"```python\n(.*?)```", card(tmp_path).read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    changed = capsys.readouterr().out
    exec(compile(code.replace("swapped_in(delta, lm.model)", "open('config.json')"), "README.md", "exec"), {})
    assert changed != capsys.readouterr().out  # the base says something else
