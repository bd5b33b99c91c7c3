"""An audit end to end, on a tiny model that knows its questions and a copy that was made to forget them."""

from __future__ import annotations

import dataclasses
import gc
import json
import shutil
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import misdirect as md
import tiny
from attack_cases import questions, tiny_inputs, tiny_lm
from misdirect import runs, storage
from misdirect.attacks import catalogue, finetune, relearn, scoring
from misdirect.auditing import baseline, budget, pair
from misdirect.auditing import inputs as audit_inputs
from misdirect.auditing import run as running
from misdirect.auditing.gate import gate
from misdirect.cli.main import main
from misdirect.config import AuditConfig
from misdirect.data.questions import Question
from misdirect.evaluation import generation
from misdirect.model import identity
from misdirect.model.load import load_lm

FAST = ["--steps", "10", "--only", "direction-ones-all", "--only", "relearn-facts-full", "--only", "lens"]
RELEARNED = [f"relearn-facts-full-lr{lr}-steps10" for lr in ("2e-5", "1e-4")]


def write(path: Path, items: list[Question]) -> None:
    rows = [{"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer} for q in items]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`knows` and `forgot`: model folders; `biology.jsonl`, `other.jsonl`, `few.jsonl`, `bio.txt`."""
    folder = tmp_path_factory.mktemp("audit")
    lm = dataclasses.replace(tiny_lm(num_hidden_layers=4), num_hidden_layers=4)
    items = {name: questions(count, name=name) for name, count in (("biology", 60), ("other", 16))}
    render = scoring.rendering("cloze", 0)
    texts = [render(q)[0] + render(q)[1][q.answer] for found in items.values() for q in found]
    with finetune.trained(lm, "full") as parameters:
        for _ in finetune.train(lm, parameters, lm.tokenizer(texts)["input_ids"], 100, 5e-3, 16, 0):
            pass
        for name in ("knows", "forgot"):
            if name == "forgot":
                with torch.no_grad():
                    for block in lm.model.model.layers[1:3]:
                        block.mlp.down_proj.weight.mul_(-0.5)
            lm.model.save_pretrained(folder / name)
            lm.tokenizer.save_pretrained(folder / name)
    for name, found in items.items():
        write(folder / f"{name}.jsonl", found)
    write(folder / "few.jsonl", items["biology"][:8])
    (folder / "bio.txt").write_text(tiny.texts(1, 60)[0])
    return folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in shelf.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def audit(
    *more: str, base: str = "knows", unlearned: str = "forgot", out: str = "audit", asked: str = "biology"
) -> int:
    sets = ["--questions", f"biology={asked}.jsonl", "--questions", "other=other.jsonl", "--forget", "biology=bio.txt"]
    return main(["audit", base, unlearned, "--out", out, *sets, *(more or FAST)])


def record_of(folder: str = "audit") -> dict[str, Any]:
    return storage.read_json(Path(folder) / "audit.json")


def files(folder: str = "audit") -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def audited(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One audit, made once, for tests that only look."""
    folder = tmp_path_factory.mktemp("audited")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(shelf)
        assert audit(out=str(folder / "audit")) == 0
    return folder / "audit"


def test_an_audit_writes_these_files_and_no_others(audited: Path) -> None:
    expected = {"audit.json", "summary.json", "report.html"}
    expected |= {f"results/{m}/mcq.{s}.json" for m in ("base", "unlearned") for s in ("biology", "other")}
    for name in ["none", "direction-ones-all", "lens-cloze", "lens-letter", *RELEARNED]:
        folder = f"results/attacks/{name}"
        sets = ("biology", "other")
        expected |= {f"{folder}/{m}/mcq.{s}.json" for m in ("base", "unlearned") for s in sets}
        if name not in ("none", "lens-cloze", "lens-letter"):
            expected |= {f"{folder}/{m}/generation.answers.json" for m in ("base", "unlearned")}
        if name not in ("none", "lens-cloze", "lens-letter"):
            expected |= {f"{folder}/unlearned/recovered.biology.json"}
    expected |= {"results/attacks/strongest/unlearned/recovered.biology.json"}
    assert {name for name in files(str(audited)) if "lock" not in name} == expected


def test_the_summary_has_one_headline_for_each_model_attack_and_set(audited: Path) -> None:
    rows = storage.read_json(audited / "summary.json")
    asked = [r for r in rows if r["measurement"] == "mcq"]
    for key in {(r["model"], r["attack"], r["set"]) for r in asked}:
        assert sum(bool(r.get("headline")) for r in asked if (r["model"], r["attack"], r["set"]) == key) == 1, key
    strongest = [r for r in rows if r["attack"] == "strongest" and r.get("headline")]
    assert [(r["metric"], r["set"], r["model"]) for r in strongest] == [("recovered_share", "biology", "unlearned")]
    assert strongest[0]["low"] <= strongest[0]["value"] <= strongest[0]["high"]


def test_the_record_says_what_was_removed_and_how_the_questions_were_split(audited: Path) -> None:
    record = storage.read_json(audited / "audit.json")
    split = record["split"]["biology"]
    assert split["tested"] == 30
    assert 15 < split["attacked"] < 30, "random words: some of the attacker's questions give a tested one away"
    assert split["asked"] == split["attacked"] + split["tested"]
    removed = record["removed"]["biology"]
    assert removed["removed"]
    assert removed["value"] == pytest.approx(removed["base"] - removed["unlearned"])
    done = ["none", "direction-ones-all", "lens-cloze", "lens-letter", *RELEARNED]
    assert {a["name"]: a["status"] for a in record["attacks"]} == dict.fromkeys(done, "done")


def test_accuracy_without_attack_is_that_of_the_evaluation(audited: Path) -> None:
    """Two ways through the code: the tested questions out of the evaluation, and the audit's own asking."""
    for model in ("base", "unlearned"):
        whole = {r["id"]: r for r in storage.read_json(audited / f"results/{model}/mcq.biology.json")["records"]}
        alone = storage.read_json(audited / f"results/attacks/none/{model}/mcq.biology.json")["records"]
        for record in alone:
            assert record["points"][0]["correct"] == whole[record["id"]]["correct"]["cloze"]
            assert record["points"][0]["logprobs"] == pytest.approx(whole[record["id"]]["cloze_logprobs"], abs=1e-4)


def test_a_finished_attack_is_not_repeated_and_more_are_added(audited: Path, here: Path) -> None:
    shutil.copytree(audited, "audit")
    before = {name: (Path("audit") / name).stat().st_mtime_ns for name in files() if "results" in name}
    assert audit(*FAST, "--only", "noise") == 0
    after = {name: (Path("audit") / name).stat().st_mtime_ns for name in files() if "results" in name}
    assert {name: after[name] for name in before} == before
    assert any("noise-gaussian" in name for name in after.keys() - before.keys())


def test_a_killed_audit_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = relearn.run

    def killed(lm: Any, inputs: Any, attack: Any, advance: Any) -> Any:
        calls.append(attack.name)
        if len(calls) == 4:  # the second attack, on the second model
            raise KeyboardInterrupt
        return run(lm, inputs, attack, advance)

    monkeypatch.setattr(relearn, "run", killed)
    assert audit("--steps", "10", "--only", "relearn-facts-full") == 130
    assert calls == [RELEARNED[0]] * 2 + [RELEARNED[1]] * 2
    assert [a["status"] for a in record_of()["attacks"] if a["name"] == RELEARNED[0]] == ["done"]
    assert audit("--steps", "10", "--only", "relearn-facts-full") == 0
    assert calls[4:] == [RELEARNED[1]]  # on the model that it was killed on
    assert all(set(a["seconds"]) == {"base", "unlearned"} for a in record_of()["attacks"])


def test_an_attack_that_fails_leaves_the_others(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, timed, ran = relearn.run, [], budget.Clock.ran
    monkeypatch.setattr(budget.Clock, "ran", lambda clock, *seconds: timed.append(ran(clock, *seconds)))

    def failing(lm: Any, inputs: Any, attack: Any, advance: Any) -> Any:
        if attack.name == RELEARNED[0]:
            raise ValueError("finetuning broke down")
        return run(lm, inputs, attack, advance)

    monkeypatch.setattr(relearn, "run", failing)
    assert audit("--steps", "10", "--only", "relearn-facts-full") == 0
    status = {a["name"]: (a["status"], a["why"]) for a in record_of()["attacks"]}
    assert status[RELEARNED[0]] == ("failed", "base: finetuning broke down")
    assert status[RELEARNED[1]][0] == "done"
    assert len(timed) == 1, "what fails at once says nothing about the time that the others take"


def test_the_base_has_read_what_was_said_under_attack(audited: Path) -> None:
    said = sorted(audited.rglob("generation.answers.json"))
    assert len(said) == 6
    for path in said:
        assert not generation.unread(runs.read_result(path)), path


def test_a_later_evaluation_of_the_base_does_not_change_the_format(
    audited: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(audited, "audit")
    path = Path("audit/results/base/mcq.biology.json")
    result = storage.read_json(path)
    rows = [row for row in result["metrics"] if row["metric"].startswith("letter")]
    storage.write_json(path, result | {"metrics": rows})
    assert audit() == 0
    assert record_of()["forms"] == {"biology": "cloze", "other": "cloze"}
    assert audit("--only", "lens-letter", "--formats", "letter") == 2
    assert "none was run with other settings (forms differ)" in " ".join(capsys.readouterr().err.split())


def test_an_evaluation_that_was_killed_between_the_models_is_no_obstacle(audited: Path, here: Path) -> None:
    shutil.copytree(audited, "audit")
    path = Path("audit/results/base/mcq.other.json")
    result = storage.read_json(path)
    storage.write_json(path, result | {"records": result["records"][:10]})
    Path("audit/results/unlearned/mcq.other.json").unlink()
    assert audit() == 0


def test_removed_results_of_another_attack_are_no_obstacle(audited: Path, here: Path) -> None:
    shutil.copytree(audited, "audit")
    shutil.rmtree("audit/results/attacks/direction-ones-all")
    assert audit("--only", "noise") == 0
    assert {a["name"]: a["seconds"] for a in record_of()["attacks"]}["direction-ones-all"] == {}


def test_a_model_that_gives_no_states_is_attacked_in_the_other_ways(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*given: Any) -> Any:
        raise ValueError("block 1 does not run on text alone")

    monkeypatch.setattr(baseline, "activations", refusing)
    assert audit("--only", "direction-ones-all", "--only", "direction-forget-retain-block", "--only", "noise") == 0
    status = {a["name"]: (a["status"], a["why"]) for a in record_of()["attacks"]}
    assert status["direction-ones-all"] == ("not run", "needs the models' states: block 1 does not run on text alone")
    assert status["direction-forget-retain-block"] == ("not run", "needs --retain or --text")
    assert status["noise-gaussian"][0] == "done"


def test_the_base_against_itself_has_nothing_removed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit(unlearned="knows") == 0
    assert "nothing was removed" in capsys.readouterr().out.lower()
    assert record_of()["removed"]["biology"]["removed"] is False
    assert not list(Path("audit").rglob("recovered.*"))
    assert audit("--fail-above", "0.9", unlearned="knows") == 1


@pytest.mark.parametrize(("limit", "code"), [("1e6", 0), ("0", 1)])
def test_the_gate(audited: Path, here: Path, limit: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(audited, "audit")
    result = Path("audit/results/attacks/strongest/unlearned/recovered.biology.json")
    share = storage.read_json(result)["metrics"][0]["value"]
    assert audit(*FAST, "--fail-above", limit) == (code if share > 0 else 0)
    assert "Gate" in capsys.readouterr().out


def test_a_gate_without_an_attack_is_not_passed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--minutes", "0.0001", "--only", "noise", "--fail-above", "0.9") == 1
    assert "no attack was measured" in capsys.readouterr().out
    assert [(a["status"], a["why"][:11]) for a in record_of()["attacks"][1:]] == [("not run", "needs about")]


def test_a_gate_needs_relearning(audited: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--only", "direction-ones", "--fail-above", "1e6") == 1
    assert "relearning was not measured" in capsys.readouterr().out


def test_relearning_that_may_teach_is_no_relearning_for_the_gate(capsys: pytest.CaptureFixture[str]) -> None:
    share = {"attack": "strongest", "metric": "recovered_share", "set": "biology", "value": 0.1, "headline": True}
    record = {"removed": {"biology": {"removed": True}}}
    for text, code in (("forget", 1), ("benign", 1), ("facts", 0)):
        done = {"family": "relearn", "status": "done", "settings": {"attack": "relearn", "text": text}}
        assert gate([share], record | {"attacks": [done]}, 0.3) == code, text
    assert "relearning was not measured" in capsys.readouterr().out


def test_a_result_that_was_removed_is_measured_again_and_nothing_else(audited: Path, here: Path) -> None:
    shutil.copytree(audited, "audit")
    before = {path: (Path("audit") / path).stat().st_mtime_ns for path in files()}
    shutil.rmtree("audit/results/attacks/lens-letter")
    Path("audit/results/unlearned/mcq.other.json").unlink()
    assert audit() == 0
    again = {path for path in files() if (Path("audit") / path).stat().st_mtime_ns != before[path]}
    made = {path for path in again if path.startswith("results/") and "recovered" not in path}
    assert files() == set(before)
    asked = {"results/unlearned/mcq.other.json"}
    judged = {
        f"results/unlearned/mcq.{name}.json" for name in ("biology", "other")
    }  # the format of judging is written anew
    lens = {f"results/attacks/lens-letter/{m}/mcq.{name}.json" for m in pair.MODELS for name in ("biology", "other")}
    assert lens | asked <= made <= lens | asked | judged | {p.replace("unlearned/", "base/") for p in judged}


def test_another_call_after_a_kill_is_no_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = relearn.run, []

    def killed(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(*given)

    monkeypatch.setattr(relearn, "run", killed)
    assert audit("--steps", "10", "--only", RELEARNED[0]) == 130
    assert [a["status"] for a in record_of()["attacks"]] == ["done", "not run"]
    assert audit("--only", "direction-ones") == 0
    assert not list(Path("audit").rglob(f"{RELEARNED[0]}/unlearned/recovered.*"))


def test_an_attack_that_leaves_something_behind_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = relearn.run

    def careless(lm: Any, *rest: Any) -> Any:
        made = run(lm, *rest)
        lm.model.lm_head.weight.data[0, 0] += 1.0
        return made

    monkeypatch.setattr(relearn, "run", careless)
    with pytest.raises(AssertionError, match="left the base model changed"):
        audit("--steps", "10", "--only", RELEARNED[0])


def test_the_base_under_attack_is_taken_over_from_another_audit(
    audited: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another model unlearned from the same base: what the base does is measured once."""
    lm = load_lm("forgot")
    with torch.no_grad():
        lm.model.model.layers[1].mlp.down_proj.weight.mul_(0.9)
    lm.model.save_pretrained("second")
    lm.tokenizer.save_pretrained("second")
    assert audit(*FAST, unlearned="second", out="whole") == 0
    assert audit(*FAST, "--controls", str(audited), unlearned="second", out="shared") == 0
    assert "The base under 5 of 6 attacks is taken over" in " ".join(capsys.readouterr().err.split())
    of_whole, of_shared, of_other = (record_of(str(folder)) for folder in ("whole", "shared", audited))
    seconds = lambda record: {a["name"]: a["seconds"]["base"] for a in record["attacks"]}  # noqa: E731
    mine = "direction-ones-all"  # what a direction does to the base may hang on the unlearned model
    taken = {name: value for name, value in seconds(of_shared).items() if name != mine}
    assert taken == {name: value for name, value in seconds(of_other).items() if name != mine}
    assert all(a["status"] == "done" for a in of_shared["attacks"])
    assert of_shared["removed"] == of_whole["removed"]
    same = [path for path in files("whole") if path.startswith("results/attacks")]
    assert len(same) > 20
    for path in same:
        found, expected = (storage.read_json(Path(folder) / path) for folder in ("shared", "whole"))
        assert (found["config"], found["records"]) == (expected["config"], expected["records"]), path


def test_controls_of_another_attack_are_not_taken_over(
    audited: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--steps", "10", "--only", RELEARNED[0], "--controls", str(audited)]
    assert audit(*more, "--batch-size", "3") == 0
    assert "The base under 1 of 2 attacks is taken over" in " ".join(capsys.readouterr().err.split())
    assert audit(*more[:-1], "forgot", out="else") == 2
    assert "--controls forgot is not an audit (no audit.json)" in " ".join(capsys.readouterr().err.split())


def test_other_text_is_another_audit(audited: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(audited, "audit")
    (here / "bio.txt").unlink()
    (here / "bio.txt").write_text("another text on the virus and the host cell")
    assert audit(*FAST) == 2
    assert "texts_sha256 differ" in " ".join(capsys.readouterr().err.split())


def test_few_questions_are_allowed_and_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("--only", "direction-ones", asked="few") == 0
    assert "biology has 8 questions, of which 4 are measured" in " ".join(capsys.readouterr().err.split())


def other_models(folder: Path) -> None:
    tiny.tiny_folder(folder, "llama", num_hidden_layers=3)
    tiny.tiny_folder(folder, "qwen2", num_hidden_layers=4)
    shutil.copytree(folder / "knows", folder / "tokens", symlinks=False)
    tokenizer = json.loads((folder / "tokens/tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (folder / "tokens/tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("unlearned", "expected"),
    [
        ("llama", "in knows and"),
        ("qwen2", "in knows and"),
        ("tokens", "have different tokenizers"),
        ("nowhere", "nowhere is not a model"),
        ("biology.jsonl", "biology.jsonl holds no config.json"),
    ],
)
def test_a_pair_that_is_none_is_refused_in_one_line(
    here: Path, unlearned: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    other_models(here)
    assert audit(unlearned=unlearned) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("misdirect: ")
    assert expected in line


def test_a_model_without_numbers_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm = tiny_lm(num_hidden_layers=4)
    lm.model.model.norm.weight.data[:] = float("nan")
    lm.model.save_pretrained("broken")
    lm.tokenizer.save_pretrained("broken")
    assert audit(unlearned="broken") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the unlearned model: broken gives NaN or infinity for a line of text" in said
    assert not Path("audit/results").exists(), "before any question is asked"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--only", "lense"], "no attack is called 'lense'; did you mean lens?"),
        (["--only", "xyzxyz"], "expected one of relearn, direction"),
        (["--minutes", "0"], "--minutes 0.0 is out of range"),
        (["--lr", "fast"], "--lr 'fast' is no list of learning rates"),
        (["--lr", "1e-4,1e-4"], "is no list of learning rates"),
        (["--fail-above", "-1"], "--fail-above -1.0 is not a share"),
        (["--limit", "1"], "--limit 1 is too small"),
    ],
)
def test_bad_settings_are_one_line(
    here: Path, more: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit(*more) == 2
    assert expected in " ".join(capsys.readouterr().err.split())


def test_other_settings_than_stored_are_refused(audited: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(audited, "audit")
    assert audit(*FAST, "--batch-size", "2") == 2
    assert "was run with other settings (batch_size differ)" in " ".join(capsys.readouterr().err.split())
    assert audit(*FAST, "--batch-tokens", "500") == 0  # changes the speed alone


def test_a_folder_that_holds_something_else_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "knows"]) == 2
    assert "knows is not a run; expected a run directory, or BASE and UNLEARNED" in capsys.readouterr().err
    assert main(["audit", "knows", "forgot"]) == 2
    assert "expected --out FOLDER" in capsys.readouterr().err
    assert main(["audit", "knows", "forgot", "--out", "x"]) == 2
    assert "expected --questions NAME=SOURCE" in capsys.readouterr().err


def test_questions_must_belong_to_the_topic() -> None:
    assert audit_inputs.forgotten_names(["biology", "other"], ["biology"]) == ["biology"]
    assert audit_inputs.forgotten_names(["a", "b"], []) == ["a"]
    with pytest.raises(
        ValueError, match=r"none of the question sets \(a, b\) is named like a forgotten topic \(biology\)"
    ):
        audit_inputs.forgotten_names(["a", "b"], ["biology"])


def test_models_in_memory_are_audited_like_their_folders(here: Path, audited: Path) -> None:
    both = [
        md.LM.of(AutoModelForCausalLM.from_pretrained(name), tiny.tiny_tokenizer(), name)
        for name in ("knows", "forgot")
    ]
    before = [{name: value.clone() for name, value in lm.model.state_dict().items()} for lm in both]
    sets = {"biology": "biology.jsonl", "other": "other.jsonl"}
    md.audit(
        *both,
        sets,
        {"biology": "bio.txt"},
        config=AuditConfig(steps=10),
        out="audit",
        only=["direction-ones-all", *RELEARNED],
    )
    stored = "results/attacks/{}/unlearned/mcq.biology.json"
    for name in ("none", "direction-ones-all", *RELEARNED):
        ours, theirs = (storage.read_json(folder / stored.format(name)) for folder in (Path("audit"), audited))
        assert ours["records"] == theirs["records"]
    for lm, weights in zip(both, before, strict=True):  # relearning trains a copy's worth of change and puts it back
        assert all(torch.equal(weights[name], value) for name, value in lm.model.state_dict().items())


def test_a_run_is_audited_like_its_delta_and_its_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RUN, BASE with RUN, and BASE with the delta file are the same pair, so they give the same numbers."""
    asked = ["--questions", "biology=biology.jsonl"]
    more = ["--only", "direction-ones", "--steps", "10"]
    made = ["--forget", "biology=bio.txt", "--retain", "w=bio.txt", "--updates", "30", "--lr", "1e-2", "--alpha", "1"]
    assert main(["unlearn", "knows", *made, "--steering", "20x", "--out", "run"]) == 0
    assert main(["audit", "run", *asked, *more]) == 0
    assert main(["audit", "knows", "run", "--out", "second", *asked, "--forget", "biology=bio.txt", *more]) == 0
    delta = ["audit", "knows", "run/delta.safetensors", "--out", "third"]
    assert main([*delta, *asked, "--forget", "biology=bio.txt", *more]) == 0
    for target in ("run/delta.safetensors", "lone.safetensors"):  # on other weights the one is refused, the other said
        Path("lone.safetensors").write_bytes(Path("run/delta.safetensors").read_bytes())
        capsys.readouterr()
        code = main(["audit", "forgot", target, "--out", "other", *asked, "--forget", "biology=bio.txt", *more])
        said = " ".join(capsys.readouterr().err.split())
        assert code == (2 if "run" in target else 0)
        assert f"{'forgot has' if code else 'lone.safetensors was made from'} other weights than " in said
    results = [
        storage.read_json(Path(f) / "results/attacks/none/unlearned/mcq.biology.json")
        for f in ("run", "second", "third")
    ]
    assert results[0]["records"] == results[1]["records"] == results[2]["records"]
    assert (Path("run") / "README.md").is_file()
    asked_of = lambda: storage.read_json(Path("run/results/base/mcq.biology.json"))["records"]  # noqa: E731
    assert len(asked_of()) == 60
    assert main(["evaluate", "run", *asked, "--limit", "8"]) == 0  # what the audit asked for itself is in nobody's way
    assert len(asked_of()) == 8
    assert main(["audit", "run", *asked, *more]) == 0
    assert len(asked_of()) == 8


def test_a_run_is_audited_against_the_base_it_was_made_from(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = [
        "--forget",
        "biology=bio.txt",
        "--retain",
        "w=bio.txt",
        "--updates",
        "1",
        "--steering",
        "2x",
        "--alpha",
        "1",
    ]
    shutil.copytree(here / "knows", "mine")
    assert main(["unlearn", "mine", *made, "--out", "run"]) == 0
    lm = load_lm("forgot")
    lm.model.save_pretrained("mine")
    assert main(["audit", "run", "--questions", "biology=biology.jsonl", "--only", "direction-ones-all"]) == 2
    assert "mine has other weights than run was made from" in " ".join(capsys.readouterr().err.split())


def test_one_model_is_held_at_a_time(here: Path) -> None:
    side = pair.opened(pair.Checkpoint("knows"), pair.Checkpoint("forgot"), pair.Loading())
    with side("base") as first, side("base") as again:
        assert first is again
    with side("unlearned") as second:
        assert second is not first
    with side("base") as third:
        assert third is not first  # it was let go
    assert identity.weights_hash(third) == identity.weights_hash(first) != identity.weights_hash(second)


def test_an_audit_holds_one_model_at_a_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, held = pair.load_lm, []

    def loaded(*given: Any, **named: Any) -> Any:
        gc.collect()
        assert not [model for model in held if model() is not None], "another model is still there"
        lm = load(*given, **named)
        held.append(weakref.ref(lm.model))
        return lm

    monkeypatch.setattr(pair, "load_lm", loaded)
    assert audit("--only", "direction-unlearned-base-block", "--only", "direction-ones-all") == 0
    assert len(held) > 6


def test_a_run_called_demo_does_not_stand_for_the_model(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "demo").mkdir()
    (here / "demo" / "config.json").write_text('{"misdirect": "0.1.0", "model": "demo"}')
    assert pair.checkpoint("demo") == pair.Checkpoint("demo")


def test_the_plan_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    _, inputs = tiny_inputs()
    todo = [(attack, 60.0) for attack in catalogue.attacks(inputs, AuditConfig())[:4]]
    running.say_plan(5.0, todo, [True, False, False, True], {"Rounding": "needs a package"})
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("2 of 4 attacks fit into 5 minutes by estimate")
    assert [line.split("  ")[-1] for line in said[1:3]] == [todo[0][0].title, todo[3][0].title]
    assert said[3] == "Only if time is left: 1 of relearn (60 s), 1 of direction (60 s)"
    assert "not run  Rounding (needs a package)" in said[4]


def test_what_does_not_fit_is_known_before_it_starts() -> None:
    _, inputs = tiny_inputs()
    attack = relearn.first(inputs, AuditConfig())[0]
    work = budget.work_of(inputs, attack.cost)
    seconds = budget.seconds_of(work, budget.Speed(1000.0, 100.0))
    assert seconds == pytest.approx(work.forward_tokens / 1000 + 60 * 4 * 128 / 100)
    fits = budget.first_fit([10.0, 50.0, 20.0, 5.0], 36.0)
    assert fits == [True, False, True, True]
    assert budget.fitting_first(["a", "b", "c", "d"], fits) == ["a", "c", "d", "b"]
    assert budget.too_large(attack, work.memory, 1e12) == ""
    assert "of memory" in budget.too_large(attack, work.memory, 1e5)
    assert "LoRA, --dtype bfloat16, or a smaller --batch-size" in budget.too_large(attack, work.memory, 1e5)
    lora = next(a for a in relearn.rest(inputs, AuditConfig()) if a.settings.method == "lora")
    needed = budget.work_of(inputs, lora.cost).memory
    assert budget.too_large(lora, needed, 1e5).endswith("with a smaller --batch-size or --max-tokens")
    for other in catalogue.attacks(inputs, AuditConfig()):
        if memory := budget.work_of(inputs, other.cost).memory:
            assert "less is needed with" in budget.too_large(other, memory, 1.0), other.name


def test_a_rival_steers_nowhere(tmp_path: Path) -> None:
    for method, block in (("rmu", 7), ("npo", None)):
        storage.write_json(tmp_path / method / runs.CONFIG, {"method": method, "chosen": {"block": 7}})
        assert baseline.steered_block(tmp_path / method) == block
    assert baseline.steered_block(None) is None


def test_the_clock_learns_from_what_was_run() -> None:
    clock = budget.Clock(1.0, time.perf_counter())
    assert clock.why_not(50.0) == ""
    assert clock.why_not(70.0).startswith("needs about 70 s, ")
    clock.ran(10.0, 5.0)  # twice as fast as was thought
    assert clock.why_not(70.0) == ""
    clock.ran(10.0, 35.0)  # and then, all in all, half as fast
    assert clock.why_not(50.0) != ""


def test_attacks_are_chosen_by_family_name_and_beginning() -> None:
    _, inputs = tiny_inputs()
    made = catalogue.attacks(inputs, AuditConfig())
    assert len({a.name for a in made}) == len(made)
    assert all(a.name.replace("-", "").replace("_", "").replace(".", "").isalnum() for a in made)
    assert {a.family for a in catalogue.selected(made, ["direction"], [])} == {"direction"}
    assert [a.name for a in catalogue.selected(made, ["lens"], [])] == ["lens-cloze", "lens-letter"]
    assert not [a for a in catalogue.selected(made, [], ["relearn"]) if a.family == "relearn"]
    assert [a.name for a in made][:2] == ["relearn-facts-full-lr2e-5-steps60", "relearn-facts-full-lr1e-4-steps60"]
    families = list(dict.fromkeys(a.family for a in made))
    assert families[:7] == ["relearn", "direction", "lens", "probe", "soft-prompt", "gcg", "quantise"]
    late = [a.low_priority for a in made]
    assert late == sorted(late) and {a.name for a in made if a.low_priority} >= {
        "lens-letter",
        "probe-letters",
        "direction-ones-block",
    }
    assert "relearn-facts-full-lr2e-5-steps100" in [a.name for a in made if not a.low_priority]
    assert not any("steps100" in a.name for a in catalogue.attacks(inputs, AuditConfig(steps=20)))
