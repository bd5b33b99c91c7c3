"""Any command line, any --config file, any damage to a run directory: exit code 0 or 2, one line, never a traceback.

The folders hold no weights, so that what is asked for is refused at the first check, and a case takes milliseconds.
`MISDIRECT_EXAMPLES` says how many cases each test draws.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from misdirect import runs, storage
from misdirect.cli.main import main
from misdirect.config import AuditConfig, EvaluateConfig, UnlearnConfig, flag
from misdirect.unlearning.run import refuse_other_run

EXAMPLES = int(os.environ.get("MISDIRECT_EXAMPLES", "10"))
Capture = pytest.CaptureFixture[str]
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What grows without bound is a MemoryError, and not the end of the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: text, questions, and a model folder with a config and no weights. Beside it nothing may appear."""
    here = tmp_path / "outer" / "here"
    (here / "model").mkdir(parents=True)
    (here / "model/config.json").write_text('{"model_type": "no-such-type"}')
    for name in ("bio", "wiki"):
        (here / f"{name}.jsonl").write_text('{"text": "the virus of the host"}\n')
    row = '{{"question": "Which {}?", "choices": ["a", "b"], "answer": 0}}\n'
    (here / "asked.jsonl").write_text("".join(map(row.format, ("one", "other", "third"))))
    make_run(here / "run")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MISDIRECT_CACHE", "/proc/none")  # the demo is not fetched
    yield here
    assert {path.name for path in (tmp_path / "outer").iterdir()} == {"here"}
    assert {path.name for path in tmp_path.iterdir()} == {"outer"}


def metric(name: str, headline: bool) -> dict[str, Any]:
    return {
        "metric": name, "value": 0.5, "stderr": 0.1, "n": 2, "low": 0.3, "high": 0.7, "chance": 0.5, "floor": 0.5,
        "headline": headline, "base_knows": True,
    }  # fmt: skip


def result(model: str) -> dict[str, Any]:
    paired = {"difference": 0.0, "stderr": 0.1, "low": -0.1, "high": 0.1, "p_value": 1.0, "n": 2}
    rows = [metric("cloze_accuracy", True), metric("letter_accuracy", False)]
    return {
        "measurement": "mcq", "set": "bio", "config": {"limit": None}, "seconds": 1.0, "model": model, "attack": None,
        "metrics": [row | ({"paired": paired} if model == "unlearned" else {}) for row in rows],
        "records": [
            {"id": str(i), "answer": 0, "num_choices": 2, "subject": "", "question": "Which?", "choices": ["a", "b"],
             "num_chars": [1, 1], "cloze_logprobs": [-1.0, -2.0], "correct": {"cloze": True, "letter": False, "floor": True}}
            for i in range(2)
        ],
    }  # fmt: skip


def make_run(run: Path) -> None:
    config = {
        "misdirect": "0.1.0", "model": "model", "settings": {"updates": 2, "block": 2},
        "topics": [{"name": "bio", "source": "bio.jsonl", "steering": None, "retain_weight": None}],
        "retain": [{"name": "wiki", "source": "wiki.jsonl", "weight": 1.0}],
        "data": {"model_sha256": "00", "dtype": "torch.float32", "forget_sha256": {"bio": "0"}, "retain_sha256": {"wiki": "0"}},
        "chosen": {
            "block": 2, "trained": ["model.layers.2.mlp.down_proj.weight"],
            "topics": {"bio": {"steering_coefficient": 1.0, "median_norm": 0.2, "retain_weight": 100, "num_samples": 1}},
            "retain": {"wiki": {"num_samples": 1, "tokens": 5}},
        },
        "command": "misdirect unlearn",
    }  # fmt: skip
    log = {"step": 1, "topic": "bio", "forget_loss": 1.0, "retain_loss": 0.0, "cosine": 0.1, "forget_norm": 1.0,
           "gradient_norm": 1.0, "lr": 1e-3, "tokens": 9, "seconds": 0.1}  # fmt: skip
    storage.write_json(run / runs.CONFIG, config)
    storage.write_json(
        run / runs.ENV, {"python": "3.11", "versions": {"torch": "2"}, "command": "misdirect", "cores": 2}
    )
    storage.write_text(run / runs.LOG, json.dumps(log) + "\n" + json.dumps(log | {"step": 2}) + "\n")
    for model in ("base", "unlearned"):
        storage.write_json(runs.result_path(run, model, "mcq", "bio"), result(model))
    (run / runs.DELTA).write_bytes(b"not read before the model is")


def refused(argv: list[str], capsys: Capture, codes: tuple[int, ...] = (2,)) -> str:
    """Runs a command; it ends with one line and no traceback."""
    capsys.readouterr()
    code = main(argv)
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("misdirect: ")]
    assert code in codes, (argv, code, err)
    assert "Traceback" not in err
    assert len(said) == (1 if code else 0), (argv, err)
    assert not said or len(said[0]) < 10_000, said[0][:200]
    return said[0] if said else ""


# --- the command line ---

CONFIGS = (UnlearnConfig, EvaluateConfig, AuditConfig)
FIELDS = sorted({flag(name) for config in CONFIGS for name in config.__dataclass_fields__})
FLAGS = [*FIELDS, "--forget", "--retain", "--questions", "--text", "--prompts", "--examples", "--tasks", "--out", "--seeds",
         "--trust-remote-code", "--allow-pickle", "--figures", "--show-text", "--config", "--help", "--version",
         "--only", "--skip", "--controls", "--fail-above", "--no-such"]  # fmt: skip
NUMBERS = [
    "0",
    "-1",
    "1",
    "1e999",
    "nan",
    "-inf",
    "inf",
    "1e-400",
    str(10**40),
    "-" + "9" * 400,
    "0x10",
    "1_0",
    "\u0661",
    "1.5",
    "",
    " ",
]
NAMES = ["..", "../..", "/", "a/b", "../../outside", ".", "\\", "a\nb", "a\x00b", "\udcff", "x" * 300, "=", "@",
         "a=b=c", "~", "CON", "%s",
         "${HOME}", "[red]", "$(touch pwned)", "-", "--out", "\u202e", "é", "a b"]  # fmt: skip
SOURCES = ["bio.jsonl", "asked.jsonl", "wiki.jsonl@2", "wiki.jsonl@nan", "wiki.jsonl@-1", "none", "", ".", "/dev/null",
         "run", "model",
           "hub:", "hub:a", "hub:../..:x:y:z", "demo-no", "bio.jsonl@1e999", "x" * 5000, "\x00", "\udcff",
           "/proc/self/mem", "loop"]  # fmt: skip
value = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NAMES),
    st.builds("{}={}".format, st.sampled_from(["bio", *NAMES]), st.sampled_from(SOURCES)),
    st.sampled_from(["model", "run", "none", "5x", "all", "cpu", "published", "bio=5x", "paper"]),
    st.text(max_size=8),
)
flags = st.lists(st.one_of(st.tuples(st.sampled_from(FLAGS), value), st.tuples(st.sampled_from(FLAGS))), max_size=5)


@fuzz
@given(
    verb=st.sampled_from(["unlearn", "evaluate", "audit", "attack", "chat", "report", "plan", "unlern", "", "--out"]),
    target=st.sampled_from(
        ["model", "run", "none", "bio.jsonl", "", "..", "\x00", "\udcff", "x" * 300, "--", "-x", "a/../../b"]
    ),
    more=flags,
)
def test_any_command_line(place: Path, capsys: Capture, verb: str, target: str, more: list[tuple[str, ...]]) -> None:
    argv = [verb, target, *(token for pair in more for token in pair)]
    refused(argv, capsys, codes=(0, 2))


NEEDED = {
    "unlearn": ["unlearn", "model", "--forget", "bio=bio.jsonl", "--retain", "wiki=wiki.jsonl", "--out", "out"],
    "evaluate": ["evaluate", "model", "--questions", "q=asked.jsonl", "--out", "out"],
    "audit": ["audit", "model", "model", "--questions", "q=asked.jsonl", "--out", "out"],
}


@fuzz
@given(
    verb=st.sampled_from(sorted(NEEDED)),
    more=st.lists(st.tuples(st.sampled_from(FIELDS), value), min_size=1, max_size=3),
)
def test_any_value_of_a_setting(place: Path, capsys: Capture, verb: str, more: list[tuple[str, str]]) -> None:
    refused([*NEEDED[verb], *(token for pair in more for token in pair)], capsys)


@fuzz
@given(
    name=st.one_of(st.sampled_from(NAMES), st.text(min_size=1, max_size=30)),
    which=st.sampled_from(["--forget", "--questions"]),
)
def test_any_name_of_a_set(place: Path, capsys: Capture, name: str, which: str) -> None:
    if which == "--forget":
        argv = ["unlearn", "model", "--forget", f"{name}=bio.jsonl", "--retain", "wiki=wiki.jsonl", "--out", "out"]
    else:
        argv = ["evaluate", "model", "--questions", f"{name}=asked.jsonl", "--out", "out"]
    refused(argv, capsys)
    path = runs.result_path(place / "run", "base", "mcq", name)
    assert path.parent == place / "run/results/base"
    path.relative_to(place)
    storage.write_json(path, {"set": name})  # a file can have that name
    assert json.loads(path.read_text())["set"] == name or not name.isprintable()
    path.unlink()


@pytest.mark.parametrize(
    "out", ["bio.jsonl/out", "bio.jsonl", "loop/out", "loop", "x" * 300, "o\x00ut", "\udcff/\udcfe", "/proc/none/x"]
)
@pytest.mark.parametrize("verb", sorted(NEEDED))
def test_any_place_for_the_output(place: Path, capsys: Capture, verb: str, out: str) -> None:
    (place / "loop").symlink_to(place / "loop")
    argv = [*NEEDED[verb][:-1], out]
    line = refused(argv, capsys)
    if "\udcff" not in out:
        assert "out" in line


# --- --config ---

leaf = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.sampled_from(NUMBERS + NAMES), st.dates(),
    st.binary(max_size=4),
)  # fmt: skip
tree = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
keys = st.sampled_from(
    [name.lstrip("-") for name in FLAGS] + [*UnlearnConfig.__dataclass_fields__, "model", "target", "", "a b"]
)

HOSTILE = {
    "billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "python object": "seed: !!python/object/apply:os.system ['touch pwned']\n",
    "python name": "seed: !!python/name:os.system\n",
    "python module": "updates: !!python/module:os\n",
    "deep list": "forget: " + "[" * 3000 + "]" * 3000,
    "deep mapping": "forget: " + "{a: " * 3000 + "}" * 3000,
    "tabs": "seed:\t3\n\tupdates: 2\n",
    "itself": "forget: &a [*a]\n",
    "itself in a mapping": "forget: &a {x: *a}\n",
    "merge": "a: &a {seed: 3}\n<<: *a\n",
    "several documents": "seed: 1\n---\nseed: 2\n",
    "no scalar key": "? [a, b]\n: 3\n",
    "a key twice": "seed: 1\nseed: 2\n",
    "NUL": "seed: \x00\n",
    "BOM": "\ufeffseed: 3\n",
    "a long number": "seed: " + "9" * 5000 + "\n",
    "sixty": "seed: 1:30:00\n",
    "a date that is none": "seed: 2020-99-99\n",
    "a date": "seed: 2020-01-01\n",
    "binary": "seed: !!binary aGVsbG8=\n",
    "a set": "forget: !!set {a, b}\n",
    "omap": "forget: !!omap [a: 1]\n",
    "another config": "config: c.yaml\n",
    "help": "help: true\n",
    "version": "version: true\n",
    "empty": "",
    "null": "~\n",
    "a name that leaves": "forget: {../../x: bio.jsonl}\nquestions: {../../x: asked.jsonl}\n",
    "a value that is a flag": "out: --seed\n",
    "NUL in a path": 'out: "a\\0b"\n',
    "NUL in a source": 'questions: {q: "a\\0b"}\n',
    "a lone surrogate": 'out: "\\uD800"\n',
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("verb", [*sorted(NEEDED), "report", "plan"])
@pytest.mark.parametrize("text", HOSTILE.values(), ids=[name.replace(" ", "-") for name in HOSTILE])
def test_hostile_config_files(place: Path, capsys: Capture, verb: str, text: str) -> None:
    (place / "c.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    base = NEEDED.get(verb, [verb, "model"])
    argv = base[:-2] if "out:" in text and verb in NEEDED else base
    refused([*argv, "--config", "c.yaml"], capsys, codes=(0, 2))
    assert not (place / "pwned").exists()


@fuzz
@given(data=st.one_of(st.dictionaries(keys, tree, max_size=4), tree), verb=st.sampled_from([*NEEDED, "report", "plan"]))
def test_any_config_file(place: Path, capsys: Capture, data: Any, verb: str) -> None:
    import yaml

    (place / "c.yaml").write_bytes(yaml.safe_dump(data, allow_unicode=True).encode("utf-8", "surrogatepass"))
    refused([*NEEDED.get(verb, [verb, "model"]), "--config", "c.yaml"], capsys, codes=(0, 2))


@fuzz
@given(data=st.binary(max_size=60))
@example(data=b"\xff\xfe")
@example(data=b"%YAML 9.9\n---\na: 1")
def test_any_bytes_as_a_config_file(place: Path, capsys: Capture, data: bytes) -> None:
    (place / "c.yaml").write_bytes(data)
    refused([*NEEDED["evaluate"], "--config", "c.yaml"], capsys)


# --- run directories ---

FILES = ["config.json", "env.json", "log.jsonl", "results/base/mcq.bio.json", "results/unlearned/mcq.bio.json"]
ASKED = {"model": "model", "settings": {"updates": 2}, "topics": [], "retain": [], "data": {}}


def every_verb(run: Path, capsys: Capture) -> None:
    """Report, evaluate and unlearn, and what unlearn checks once the model is there."""
    refused(["report", str(run)], capsys, codes=(0, 2))
    refused(["report", str(run), str(run.parent / "other")], capsys, codes=(0, 2))
    refused(["evaluate", str(run), "--questions", "bio=asked.jsonl"], capsys)
    refused(["audit", str(run), "--questions", "bio=asked.jsonl"], capsys)
    refused([*NEEDED["unlearn"][:-1], str(run)], capsys)
    refused(["evaluate", "model", "--questions", "bio=asked.jsonl", "--out", str(run)], capsys)
    for check in (lambda: refuse_other_run(run, ASKED), lambda: runs.write_summary(run)):
        with suppress(ValueError):  # and nothing else
            check()


def replaced(data: Any, path: list[Any], new: Any) -> Any:
    """A copy of JSON data with one of its values replaced, or left out where `new` is `...`."""
    if not path:
        return new
    head, *rest = path
    copy = dict(data) if isinstance(data, dict) else list(data)
    if new is ... and not rest:
        del copy[head]
    else:
        copy[head] = replaced(copy[head], rest, new)
    return copy


def paths(data: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [here]
    if isinstance(data, dict | list):
        for key, inner in data.items() if isinstance(data, dict) else enumerate(data):
            found += paths(inner, (*here, key))
    return found


@pytest.mark.long
@fuzz
@given(draw=st.data())
def test_any_value_in_a_run_directory(place: Path, capsys: Capture, draw: st.DataObject) -> None:
    run = place / "run"
    shutil.rmtree(run)
    make_run(run)
    if not (place / "other").exists():
        make_run(place / "other")
    file = run / draw.draw(st.sampled_from(FILES))
    if file.suffix == ".jsonl":
        row = draw.draw(
            st.dictionaries(st.sampled_from(["step", "forget_loss", "seconds", "topic"]), leaf_json, max_size=4)
            | leaf_json
        )
        file.write_text(json.dumps(row) + "\n" + file.read_text())
    else:
        data = json.loads(file.read_text())
        where = list(draw.draw(st.sampled_from(paths(data)[1:])))
        file.write_text(json.dumps(replaced(data, where, draw.draw(wrong))))
    every_verb(run, capsys)


leaf_json = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)
wrong = st.one_of(
    leaf_json, st.just(...), st.sampled_from([[], {}, "", [[]], [{}], {"a": []}, -1, 10**400, "x" * 3000, [None]])
)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut, "empty": lambda data: b"", "NUL": lambda data: b"\0" * 99, "list": lambda data: b"[]",
    "number": lambda data: b"3",
    "null": lambda data: b"null", "string": lambda data: b'"x"', "deep": lambda data: b"[" * 100_000,
    "deep mapping": lambda data: b'{"a":' * 100_000, "bad UTF-8": lambda data: b"\xff\xfe" + data, "NaN": lambda data: b"NaN",
    "long number": lambda data: b"9" * 10_000, "twice": lambda data: data + data, "no object": lambda data: b"{}",
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", BROKEN.values(), ids=[name.replace(" ", "-") for name in BROKEN])
def test_broken_files_of_a_run(place: Path, capsys: Capture, name: str, how: Callable[[bytes], bytes]) -> None:
    path = place / "run" / name
    path.write_bytes(how(path.read_bytes()))
    make_run(place / "other")
    every_verb(place / "run", capsys)


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [*FILES, "results", "results/base", "delta.safetensors", "report.html", "summary.json", "README.md"]
)
@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "away"])
def test_files_of_a_run_that_are_none(place: Path, capsys: Capture, name: str, kind: str) -> None:
    path = place / "run" / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.symlink_to(path if kind == "loop" else "/dev/full")
    make_run(place / "other")
    every_verb(place / "run", capsys)
