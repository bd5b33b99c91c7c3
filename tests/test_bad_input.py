"""Bad input is one line on standard error that names the culprit, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from misdirect.cli.main import main
from tiny import fill_shelf, tiny_folder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good data, a tiny model, and a finished run: copied for every test."""
    folder = tmp_path_factory.mktemp("shelf")
    fill_shelf(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(unlearning(out="--out run").split()) == 0
    return folder


@pytest.fixture
def place(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the shelf that a test may spoil."""
    shutil.copytree(shelf, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


class Case(NamedTuple):
    """What is typed (`NAME` alone is a file of the current folder), what the line must hold, how the folder is spoilt."""

    name: str
    command: str
    says: tuple[str, ...]
    spoil: Callable[[Path], Any] = lambda place: None


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda place: (place / name).write_text(text)


def asked(**changes: Any) -> Callable[[Path], Any]:
    row = {"question": "Which?", "choices": ["a", "b", "c"], "answer": 0} | changes
    return write("bad.jsonl", json.dumps(row) + "\n")


def cut_short(name: str) -> Callable[[Path], Any]:
    def cut(place: Path) -> None:
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[: len(data) // 2])

    return cut


def only_pickle(place: Path) -> None:
    (place / "llama/model.safetensors").unlink()
    torch.save({}, place / "llama/pytorch_model.bin")


def change_config(**changes: Any) -> Callable[[Path], Any]:
    def change(place: Path) -> None:
        path = place / "llama/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def unlearning(**changes: str) -> str:
    """A good unlearn command with some of its parts changed; a part that is None is left out."""
    parts = {
        "model": "llama", "forget": "--forget bio=bio.jsonl", "retain": "--retain wiki=wiki.jsonl",
        "settings": "--updates 2 --block 2 --batch-size 2 --max-tokens 8", "out": "--out out", "more": "",
    } | changes  # fmt: skip
    return "unlearn " + " ".join(parts.values())


def evaluating(target: str = "llama", questions: str = "q=asked.jsonl", more: str = "--out out") -> str:
    return f"evaluate {target} --questions {questions} {more}"


CASES = [
    # data
    Case("missing file", unlearning(forget="--forget bio=none.jsonl"), ("none.jsonl does not exist",)),
    Case("missing retain file", unlearning(retain="--retain w=none.txt"), ("none.txt does not exist",)),
    Case("empty file", unlearning(forget="--forget bio=e.jsonl"), ("e.jsonl is empty",), write("e.jsonl", "")),
    Case("file cut short", unlearning(forget="--forget bio=e.jsonl"), ("e.jsonl, line 1 is not JSON",), write("e.jsonl", "{")),
    Case(
        "wrong columns",
        unlearning(forget="--forget bio=e.jsonl"),
        ("e.jsonl has the columns a, b", "expected one named 'text'"),
        write("e.jsonl", '{"a": "x", "b": "y"}\n'),
    ),
    Case("one token", unlearning(forget="--forget bio=e.txt"), ("bio holds no text of two tokens",), write("e.txt", "a")),
    Case("file of another kind", unlearning(forget="--forget bio=e.pdf"), ("e.pdf ends in .pdf",), write("e.pdf", "x")),
    Case("name too long for a file", unlearning(forget="--forget bio=" + "x" * 300), ("x" * 300,)),
    Case("missing questions", evaluating(questions="q=none.jsonl"), ("none.jsonl does not exist",)),
    Case("text as questions", evaluating(questions="q=bio.jsonl"), ("bio.jsonl, row 1 lacks question, choices, answer",)),
    Case("answer out of range", evaluating(questions="q=bad.jsonl"), ("row 1: the answer 3", "0 to 2 or"), asked(answer=3)),
    Case("letter out of range", evaluating(questions="q=bad.jsonl"), ("the answer 'D'", "A to C"), asked(answer="D")),
    Case("one choice", evaluating(questions="q=bad.jsonl"), ("has 1 choice(s); expected 2 to 26",), asked(choices=["a"])),
    Case("an id twice", evaluating(questions="q=bad.jsonl"), ("row 2: the id '7' is already taken",),
         write("bad.jsonl", 2 * '{"id": 7, "question": "Q", "choices": ["a", "b"], "answer": 0}\n')),
    Case("unknown built-in set", evaluating(questions="q=demo-biologie"), ("demo-biologie does not exist", "demo-biology")),
    Case("not a hub source", unlearning(forget="--forget bio=hub:"), ("'hub:' is not a hub source",)),
    # flags
    Case("unknown verb", "unlern llama", ("unlern", "unlearn")),
    Case("unknown flag", unlearning(more="--stearing 3"), ("--stearing", "--steering")),
    Case("unknown setting", unlearning(more="--batchsize 3"), ("--batchsize", "--batch-size")),
    Case("unknown recipe", unlearning(more="--recipe zephyr7b"), ("unknown recipe 'zephyr7b'", "zephyr-7b")),
    Case("no number", unlearning(more="--lr fast"), ("--lr", "fast")),
    Case("no number of a float32", unlearning(more="--lr 1e39"), ("--lr 1e+39 is out of range",)),
    Case("no choice", unlearning(more="--schedule quadratic"), ("--schedule", "quadratic", "cosine")),
    Case("missing forget", unlearning(forget=""), ("--forget",)),
    Case("missing out", unlearning(out=""), ("--out",)),
    Case("no pair", unlearning(forget="--forget bio.jsonl"), ("--forget 'bio.jsonl' is not a pair", "NAME=SOURCE")),
    Case("topic twice", unlearning(more="--forget bio=wiki.jsonl"), ("--forget names 'bio' twice",)),
    Case("corpus twice", unlearning(more="--retain wiki=bio.jsonl"), ("--retain names 'wiki' twice",)),
    Case("set twice", evaluating(more="--questions q=asked.jsonl --out out"), ("--questions names 'q' twice",)),
    Case("steering nonsense", unlearning(more="--steering strong"), ("steering 'strong' is not a strength", "6.5")),
    Case("steering of 0", unlearning(more="--steering 0x"), ("steering '0x' is not a strength",)),
    Case("steering of no number", unlearning(more="--steering nan"), ("steering 'nan' is not a strength",)),
    Case("a topic's steering nonsense", unlearning(more="--steering bio=strong"), ("'strong' is not a strength",)),
    Case("steering of no topic", unlearning(more="--steering cyber=3"), ("--steering cyber=3 names no topic", "bio")),
    Case("steering twice", unlearning(more="--steering 3 --steering 4"), ("--steering was given twice",)),
    Case("alpha nonsense", unlearning(more="--alpha much"), ("--alpha 'much' is not a number",)),
    Case("a negative alpha", unlearning(more="--alpha -5"), ("--alpha", "-5")),
    Case("a topic's negative alpha", unlearning(more="--alpha bio=-5"), ("--alpha bio=-5.0 is out of range",)),
    Case("a topic's alpha of no number", unlearning(more="--alpha bio=nan"), ("--alpha bio=nan is out of range",)),
    Case("weight of 0", unlearning(retain="--retain wiki=wiki.jsonl@0"), ("retain corpus 'wiki' has weight 0",)),
    Case("updates and epochs", unlearning(more="--epochs 1"), ("both --updates and --epochs",)),
    Case("no updates", unlearning(settings="--updates 0"), ("--updates 0 is too small",)),
    Case("an effectless flag", unlearning(more="--numerics published --clip 1"), ("--clip has no effect",)),
    Case("limit below 0", evaluating(more="--limit -1 --out out"), ("--limit -1 is too small",)),
    Case("nothing to measure", "evaluate llama --out out", ("nothing to measure", "--questions")),
    Case("no out for a model", evaluating(more=""), ("llama is a model, not a run; expected --out",)),
    Case("an out for a run", evaluating("run"), ("run is a run", "expected no --out")),
    Case("a device that is not there", unlearning(more="--device mps"), ("--device mps is not available",)),
    # models
    Case("block past the model", unlearning(settings="--block 9"), ("block 9 is past the model, which has 4 blocks",)),
    Case("too many blocks", unlearning(settings="--block 1 --num-blocks 3"), ("--num-blocks at most 2",)),
    Case("no such matrix", unlearning(more="--matrix mlp.down"), ("--matrix 'mlp.down'", "mlp.down_proj")),
    Case("model folder missing", unlearning(model="./none"), ("./none", "expected a model folder")),
    Case("empty model folder", unlearning(model="./none"), ("./none holds no config.json",), lambda p: (p / "none").mkdir()),
    Case("a file as a model", unlearning(model="./bio.jsonl"), ("./bio.jsonl holds no config.json",)),
    Case("only pickle", unlearning(), ("llama holds only pickle checkpoints (pytorch_model.bin)", "--allow-pickle"), only_pickle),
    Case("only pickle, evaluated", evaluating(), ("holds only pickle checkpoints", "--allow-pickle"), only_pickle),
    Case(
        "no weights", unlearning(), ("llama holds no weights; expected *.safetensors",),
        lambda place: (place / "llama/model.safetensors").unlink(),
    ),
    Case(
        "code of its own", unlearning(), ("llama wants to run its own code (auto_map", "--trust-remote-code"),
        change_config(auto_map={"AutoModelForCausalLM": "evil.Model"}),
    ),
    Case(
        "code of its own, evaluated", evaluating(), ("llama wants to run its own code", "--trust-remote-code"),
        change_config(auto_map={"AutoModelForCausalLM": "evil.Model"}),
    ),
    Case("unknown architecture", unlearning(), ("llama is not a model that can", "no-type"), change_config(model_type="no-type")),
    Case("model cut short", unlearning(), ("model.safetensors is damaged or cut short",), cut_short("llama/model.safetensors")),
    Case("model cut short, evaluated", evaluating(), ("model.safetensors is damaged",), cut_short("llama/model.safetensors")),
    Case("weights of another shape", unlearning(), ("llama cannot be loaded",), change_config(intermediate_size=81)),
    Case("config no JSON", unlearning(), ("config.json is not JSON",), write("llama/config.json", "{'a': 1")),
    Case("config no JSON, evaluated", evaluating(), ("llama/config.json",), write("llama/config.json", "{'a': 1")),
    Case("config no object", unlearning(), ("llama",), write("llama/config.json", "[1]")),
    # output
    Case("out is a file", unlearning(out="--out file"), ("--out file cannot be a folder",), write("file", "mine")),
    Case("out is below a file", unlearning(out="--out file/run"), ("--out file/run cannot be a folder",), write("file", "mine")),
    Case("a file as an evaluation's out", evaluating(more="--out file"), ("--out file cannot be a folder",), write("file", "x")),
    # runs
    Case("report on an empty folder", "report out", ("out is not a run",), lambda place: (place / "out").mkdir()),
    Case("report on nothing", "report none", ("none is not a run",)),
    Case("report on a model", "report llama", ("llama is not a run",)),
    Case("delta missing", evaluating("run", more=""), ("run is an unfinished run (no delta.safetensors)",),
         lambda place: (place / "run/delta.safetensors").unlink()),
    Case("delta cut short", evaluating("run", more=""), ("run/delta.safetensors is missing, damaged or cut short",),
         cut_short("run/delta.safetensors")),
    Case("run's config no JSON", evaluating("run", more=""), ("run/config.json cannot be read",), write("run/config.json", "{")),
    # --config
    Case("no config file", unlearning(more="--config none.yaml"), ("--config none.yaml cannot be read",)),
    Case("config without a file", unlearning(more="--config"), ("--config has no file",)),
    Case("config no YAML", unlearning(more="--config c.yaml"), ("--config c.yaml is not YAML",), write("c.yaml", "a: [1\nb: 2")),
    Case("config no mapping", unlearning(more="--config c.yaml"), ("c.yaml holds no mapping",), write("c.yaml", "- a\n")),
    Case("config is a folder", unlearning(more="--config llama"), ("--config llama cannot be read",)),
    Case("config of an unknown key", unlearning(more="--config c.yaml"), ("--stearing",), write("c.yaml", "stearing: 3")),
    Case("config of a bad value", unlearning(more="--config c.yaml"), ("--seed", "many"), write("c.yaml", "seed: many")),
]  # fmt: skip


def complaint(capsys: Capture, alone: bool = True) -> str:
    """The one line that was said; `alone`: nothing else was."""
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("misdirect: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert not alone or err == said[0] + "\n"
    return said[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES, ids=[case.name.replace(" ", "-") for case in CASES])
def test_bad_input_is_one_line(case: Case, place: Path, capsys: Capture) -> None:
    case.spoil(place)
    before = contents(place)
    capsys.readouterr()
    assert main(case.command.split()) == 2
    line = complaint(capsys, alone="delta cut short" not in case.name)
    for part in case.says:
        assert part in line
    after = contents(place)
    new = after.keys() - before.keys()
    # the base of a run is measured before its delta is wanted; what is measured is kept
    assert new <= ({"run/results/base/mcq.q.json"} if case.name == "delta cut short" else set())
    assert {name: after[name] for name in before} == before


def test_a_run_with_other_settings_is_left_alone(place: Path, capsys: Capture) -> None:
    before = contents(place)
    command = unlearning(out="--out run")
    for changed, field in (
        (command.replace("--updates 2", "--updates 3"), "(settings.updates differ)"),
        (command + " --seed 1 --clip 2", "(settings.clip, settings.seed differ)"),
        (command.replace("bio=bio", "biology=bio"), "(topics, data.forget_sha256 differ)"),
        (command.replace("wiki.jsonl", "wiki.jsonl@2"), "(retain differ)"),
    ):
        assert main(changed.split()) == 2
        line = complaint(capsys)
        assert "run holds a run with other settings" in line
        assert field in line
        assert contents(place) == before


def test_a_run_over_other_text_or_weights_is_left_alone(place: Path, capsys: Capture) -> None:
    command = unlearning(out="--out run").split()
    good = contents(place)
    (place / "bio.jsonl").write_text('{"text": "another text about the virus"}\n')
    assert main(command) == 2
    assert "(data.forget_sha256 differ)" in complaint(capsys)
    (place / "bio.jsonl").write_bytes(good["bio.jsonl"])
    tiny_folder(place, "llama", num_hidden_layers=4, initializer_range=0.2)
    capsys.readouterr()
    assert main(command) == 2
    assert "(data.model_sha256 differ)" in complaint(capsys)
    assert {k: v for k, v in contents(place).items() if k.startswith("run/")} == {
        k: v for k, v in good.items() if k.startswith("run/")
    }


def test_a_model_is_no_place_for_a_run(place: Path, capsys: Capture) -> None:
    before = contents(place)
    shutil.copytree(place / "llama", place / "other")
    for command in (unlearning(out="--out other"), evaluating(more="--out other")):
        assert main(command.split()) == 2
        assert "other holds" in complaint(capsys)
        assert contents(place / "other") == {k[6:]: v for k, v in before.items() if k.startswith("llama/")}


def test_a_run_is_no_place_for_a_models_results(place: Path, capsys: Capture) -> None:
    before = contents(place)
    assert main(evaluating(more="--out run").split()) == 2
    assert "run holds a run; expected a folder of its own for --out" in complaint(capsys)
    assert contents(place) == before


def test_one_models_results_are_not_taken_for_anothers(place: Path, capsys: Capture) -> None:
    shutil.copytree(place / "llama", place / "other")
    assert main(evaluating().split()) == 0
    before = contents(place)
    capsys.readouterr()
    assert main(evaluating("other").split()) == 2
    assert "out holds the results of llama, not of other; expected another --out" in complaint(capsys)
    assert contents(place) == before


def test_results_of_a_model_that_was_written_since_are_not_mixed_with_its_own(place: Path, capsys: Capture) -> None:
    """Two sets on one page would be those of two models."""
    assert main(evaluating().split()) == 0
    (place / "llama" / "README.md").write_text("no number depends on this")
    assert main(evaluating().split()) == 0
    tiny_folder(place / "new", "llama", num_hidden_layers=4, rms_norm_eps=1e-3)
    shutil.copyfile(place / "new/llama/config.json", place / "llama/config.json")
    before = contents(place)
    capsys.readouterr()
    assert main(evaluating().split()) == 2
    assert "out holds the results of llama as it was: config.json has been written since" in complaint(capsys)
    assert contents(place) == before
    shutil.rmtree(place / "llama")  # what is measured can still be read
    assert main(evaluating().split()) == 0


def test_a_result_measured_with_other_settings_is_not_used(place: Path, capsys: Capture) -> None:
    assert main(evaluating("run", more="--limit 2").split()) == 0
    before = contents(place)
    for more, says in (
        ("--limit 1", ("limit 2 -> 1",)),
        ("--limit 2 --seed 5 --formats cloze", ("formats 'all' -> 'cloze'", "seed 0 -> 5")),
        ("--limit 2 --dtype bfloat16", ("dtype",)),
    ):
        capsys.readouterr()
        assert main(evaluating("run", more=more).split()) == 2
        line = complaint(capsys)
        assert "run/results/base/mcq.q.json was measured with other settings" in line
        assert all(part in line for part in says)
        assert contents(place) == before
    (place / "asked.jsonl").write_text('{"question": "Another?", "choices": ["a", "b"], "answer": 0}\n')
    assert main(evaluating("run", more="--limit 2").split()) == 2
    assert "sha256" in complaint(capsys)


def test_a_result_that_is_none_is_named(place: Path, capsys: Capture) -> None:
    (place / "run/results/base").mkdir(parents=True)
    for name, text in (("mcq.q.json", '{"a": 1}'), ("mcq.other.json", "[]"), ("mcq.other.json", "{")):
        path = place / "run/results/base" / name
        path.write_text(text)
        assert main(evaluating("run", more="").split()) == 2
        assert f"run/results/base/{name}" in complaint(capsys, alone=False)
        path.unlink()


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_checkpoint(place: Path, capsys: Capture) -> None:
    command = unlearning(
        settings="--updates 30 --block 2 --batch-size 2 --max-tokens 8", more="--checkpoint-every 1 --lr 1e18"
    )
    assert main(command.split()) == 2
    line = complaint(capsys, alone=False)
    assert "the loss of bio is not a finite number at update" in line
    assert "expected a smaller --lr" in line
    update = int(line.split(" at update ")[1].split(";")[0])
    assert update >= 2
    assert f"the checkpoint of update {update - 1} is kept in out" in line
    assert not (place / "out/delta.safetensors").exists()
    assert set(contents(place / "out")) == {
        "checkpoint.safetensors", "config.json", "control.safetensors", "env.json", "log.jsonl"
    }  # fmt: skip
    assert main(["evaluate", "out", "--questions", "q=asked.jsonl"]) == 2
    assert "out is an unfinished run" in complaint(capsys)


def test_a_model_of_no_numbers_is_refused(place: Path, capsys: Capture) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(place / "llama/model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"].fill_(float("nan"))
    save_file(weights, place / "llama/model.safetensors", {"format": "pt"})
    assert main(unlearning().split()) == 2
    assert "not finite numbers before anything is trained" in complaint(capsys, alone=False)
    assert list((place / "out").iterdir()) == []
