"""Every verb on a tiny model, from text files to the page, and again: the second time nothing is computed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import misdirect as md
from misdirect import runs, storage
from misdirect.cli import flags
from misdirect.cli.main import main
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.model.delta import load_delta
from misdirect.unlearning import run as running
from tiny import texts, tiny_folder

RUN_FILES = {
    "config.json",
    "control.safetensors",
    "delta.safetensors",
    "env.json",
    "log.jsonl",
}
RESULT_FILES = {
    f"results/{model}/{name}.json"
    for model in ("base", "unlearned")
    for name in ("generation.answers", "mcq.biology", "mcq.kept", "nll.kept")
}
ROW_KEYS = {
    "model", "attack", "measurement", "set", "metric", "value", "stderr", "n", "low", "high", "chance", "floor", "step",
    "block", "budget", "headline", "base_knows", "paired",
}  # fmt: skip
SETTINGS = ["--block", "3", "--updates", "4", "--batch-size", "2", "--max-tokens", "16", "--lr", "1e-3"]


def write_texts(path: Path, count: int, seed: int) -> Path:
    rows = [{"text": text} for text in texts(count, 30, seed=seed)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_questions(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    rows = [
        {
            "id": f"{path.stem}-{i}",
            "question": texts(1, 9, seed=seed + i)[0] + "?",
            "choices": texts(draw.randint(2, 4), 3, seed=seed + 50 + i, shortest=1),
            "answer": "AB"[draw.randrange(2)],
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and data: never written to by a test."""
    folder = tmp_path_factory.mktemp("shelf")
    tiny_folder(folder, "llama")
    write_texts(folder / "bio.jsonl", 12, seed=1)
    write_texts(folder / "cyber.jsonl", 12, seed=2)
    write_texts(folder / "wiki.jsonl", 12, seed=3)
    write_texts(folder / "kept.jsonl", 5, seed=4)
    write_questions(folder / "bio-questions.jsonl", 6, seed=5)
    write_questions(folder / "kept-questions.jsonl", 6, seed=6)
    (folder / "prompts.txt").write_text("the king of the river")
    return folder


def unlearn_words(shelf: Path, out: Path) -> list[str]:
    sources = ["--forget", f"bio={shelf / 'bio.jsonl'}", "--retain", f"wiki={shelf / 'wiki.jsonl'}"]
    return ["unlearn", str(shelf / "llama"), *sources, *SETTINGS, "--out", str(out)]


def evaluate_words(shelf: Path, target: Path) -> list[str]:
    return [
        "evaluate", str(target),
        "--questions", f"biology={shelf / 'bio-questions.jsonl'}", "--questions", f"kept={shelf / 'kept-questions.jsonl'}",
        "--text", f"kept={shelf / 'kept.jsonl'}", "--prompts", f"answers={shelf / 'prompts.txt'}", "--new-tokens", "5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every verb done. Tests read it, or do again what was done."""
    run = tmp_path_factory.mktemp("runs") / "run"
    assert main(unlearn_words(shelf, run)) == 0
    assert main(evaluate_words(shelf, run)) == 0
    assert main(["report", str(run)]) == 0
    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's time and bytes."""
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in files(folder)}


def summary(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "summary.json").read_text())


def stripped(folder: Path) -> dict[str, Any]:
    """Every result of a folder without what differs between two equal measurements: the seconds."""
    found = {
        str(path.relative_to(folder)): json.loads(path.read_text()) for path in (folder / "results").rglob("*.json")
    }
    return {name: {**result, "seconds": None} for name, result in found.items()}


def assert_same_delta(run: Path, other: Path) -> None:
    """Bit for bit; the file itself is not, since safetensors writes metadata in any order."""
    a, b = (load_delta(folder / "delta.safetensors") for folder in (run, other))
    assert dict(a.metadata) == dict(b.metadata)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)


def test_the_verbs_leave_exactly_these_files(finished: Path) -> None:
    assert files(finished) == RUN_FILES | RESULT_FILES | {"summary.json", "report.html", "README.md"}


def test_the_summary_keeps_its_contract(finished: Path) -> None:
    rows = summary(finished)
    for row in rows:
        assert {"model", "attack", "measurement", "set", "metric", "value", "n"} <= row.keys() <= ROW_KEYS
        assert row["attack"] is None
        assert row["model"] in ("base", "unlearned")
        if row["metric"].endswith("_accuracy"):
            assert {"stderr", "low", "high", "chance", "headline", "base_knows"} <= row.keys()
            assert ("floor" in row) == row["metric"].startswith("cloze")
            assert ("paired" in row) == (row["model"] == "unlearned")
    for model in ("base", "unlearned"):
        for name in ("biology", "kept"):
            found = [r for r in rows if (r["model"], r["set"], r["measurement"]) == (model, name, "mcq")]
            heads = [r["metric"] for r in found if r.get("headline")]
            assert len(heads) == 1
            assert heads[0] in ("cloze_accuracy", "letter_accuracy", "letter_permuted_accuracy")
            assert {r["metric"] for r in found} == {
                f"{metric}{end}"
                for metric in (
                    "cloze_accuracy",
                    "cloze_per_char_accuracy",
                    "cloze_per_token_accuracy",
                    "letter_accuracy",
                    "letter_permuted_accuracy",
                )
                for end in ("", "_centred")
            }
        assert [r["metric"] for r in rows if (r["model"], r["measurement"]) == (model, "nll")] == ["nll_per_token"]
    base, unlearned = (
        [r["metric"] for r in rows if r["model"] == m and r.get("headline")] for m in ("base", "unlearned")
    )
    assert base == unlearned


def test_the_summary_is_every_metric_of_every_result(finished: Path) -> None:
    metrics = [
        m for path in sorted((finished / "results").rglob("*.json")) for m in json.loads(path.read_text())["metrics"]
    ]
    names = ("model", "attack", "measurement", "set")
    assert [{k: v for k, v in row.items() if k not in names} for row in summary(finished)] == metrics


def test_what_was_asked_is_written_down(finished: Path, shelf: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert config["model"] == str(shelf / "llama")
    assert config["settings"]["block"] == 3
    assert config["settings"]["lr"] == 1e-3
    assert config["settings"]["alpha"] == 100.0  # nobody said, so it is the default
    assert config["chosen"]["trained"] == [f"model.layers.{i}.mlp.down_proj.weight" for i in (1, 2, 3)]
    topic = config["chosen"]["topics"]["bio"]
    assert topic["steering_coefficient"] == pytest.approx(5 * topic["median_norm"])
    log = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    env = json.loads((finished / "env.json").read_text())
    assert {"torch", "transformers"} <= env["versions"].keys()


def test_again_nothing_is_computed_and_no_file_changes(
    finished: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("computed again")

    before = state(finished)
    monkeypatch.setattr(running, "resume", never)
    assert main(unlearn_words(shelf, finished)) == 0
    assert "nothing to do" in capsys.readouterr().err
    monkeypatch.setattr("misdirect.model.load.load_lm", never)
    assert main(evaluate_words(shelf, finished)) == 0
    assert main(["report", str(finished)]) == 0
    assert state(finished) == before


def test_only_what_is_missing_is_measured(finished: Path, shelf: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    for name in files(finished):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes((finished / name).read_bytes())
    (run / "results/unlearned/mcq.kept.json").unlink()
    before = state(run)
    assert main(evaluate_words(shelf, run)) == 0
    after = state(run)
    new = "results/unlearned/mcq.kept.json"
    assert {name for name in after if after[name] != before.get(name)} == {new}
    assert stripped(run) == stripped(finished)


def test_python_calls_give_what_the_command_line_gives(finished: Path, shelf: Path, tmp_path: Path) -> None:
    config = UnlearnConfig(block=3, updates=4, batch_size=2, max_tokens=16, lr=1e-3)
    forget, retain = {"bio": str(shelf / "bio.jsonl")}, {"wiki": str(shelf / "wiki.jsonl")}
    run = md.unlearn(str(shelf / "llama"), forget, retain, tmp_path / "run", config)
    rows = md.evaluate(
        run,
        questions={"biology": str(shelf / "bio-questions.jsonl"), "kept": str(shelf / "kept-questions.jsonl")},
        texts={"kept": str(shelf / "kept.jsonl")},
        prompts={"answers": str(shelf / "prompts.txt")},
        config=EvaluateConfig(new_tokens=5),
    )
    assert run == tmp_path / "run"
    assert rows == summary(run) == summary(finished)
    assert stripped(run) == stripped(finished)
    assert_same_delta(run, finished)
    page = md.report(run)
    assert page == run / "report.html"
    assert files(run) == files(finished)


def test_a_config_file_says_what_flags_say(finished: Path, shelf: Path, tmp_path: Path) -> None:
    config = {
        "model": str(shelf / "llama"),
        "forget": {"bio": str(shelf / "bio.jsonl")},
        "retain": [f"wiki={shelf / 'wiki.jsonl'}"],
        "block": 3,
        "updates": 4,
        "batch_size": 2,
        "max_tokens": 16,
        "lr": 1e-3,
        "clip": None,
        "trust_remote_code": False,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    assert main(["unlearn", "--config", str(tmp_path / "run.yaml"), "--out", str(run)]) == 0
    assert_same_delta(run, finished)
    assert (
        json.loads((run / "config.json").read_text())["settings"]
        == json.loads((finished / "config.json").read_text())["settings"]
    )


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Stands in for a Python call behind a verb, and keeps what it is given."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return Path("run") if name == "unlearn" else []

    monkeypatch.setattr(f"misdirect.api.{name}", keep)
    return calls


def test_flags_win_over_the_config_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = recorded(monkeypatch, "unlearn")
    config = {
        "updates": 4,
        "seed": 7,
        "forget": {"a": "a.txt"},
        "retain": {"r": "r.txt"},
        "alpha": 3,
        "schedule": "linear",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    given = ["--updates", "9", "--alpha=5", "--forget", "b=b.txt", "--out", "run"]
    assert main(["unlearn", "model", f"--config={tmp_path / 'run.yaml'}", *given]) == 0
    assert main(["unlearn", "model", *given, "--config", str(tmp_path / "run.yaml")]) == 0
    expected = (
        "model",
        [Topic("b", "b.txt")],
        [Corpus("r", "r.txt")],
        Path("run"),
        UnlearnConfig(updates=9, seed=7, alpha=5.0, schedule="linear"),
    )
    assert [args for args, _ in calls] == [expected, expected]


def test_a_model_on_the_command_line_wins_over_the_config_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = recorded(monkeypatch, "unlearn")
    config = {"model": "theirs", "forget": {"a": "a.txt"}, "retain": {"r": "r.txt"}, "out": "run"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert main(["unlearn", "--config", str(tmp_path / "run.yaml")]) == 0
    assert main(["unlearn", "mine", "--config", str(tmp_path / "run.yaml")]) == 0
    assert [args[0] for args, _ in calls] == ["theirs", "mine"]


def test_two_topics_have_strengths_and_weights_of_their_own(shelf: Path, tmp_path: Path) -> None:
    words = [
        "unlearn", str(shelf / "llama"), "--forget", f"a={shelf / 'bio.jsonl'}", "--forget", f"b={shelf / 'cyber.jsonl'}",
        "--retain", f"wiki={shelf / 'wiki.jsonl'}@3", "--retain", f"kept={shelf / 'kept.jsonl'}",
        "--steering", "a=2", "--steering", "3x", "--alpha", "b=50", *SETTINGS, "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert main(words) == 0
    chosen = json.loads((tmp_path / "run/config.json").read_text())["chosen"]["topics"]
    assert chosen["a"]["steering_coefficient"] == 2.0
    assert chosen["b"]["steering_coefficient"] == pytest.approx(3 * chosen["b"]["median_norm"])
    assert (chosen["a"]["retain_weight"], chosen["b"]["retain_weight"]) == (100.0, 50.0)
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["topic"] for line in log] == ["a", "b", "a", "b"]
    retain = json.loads((tmp_path / "run/config.json").read_text())["retain"]
    assert [(c["name"], c["weight"]) for c in retain] == [("wiki", 3.0), ("kept", 1.0)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wiki=a.txt", Corpus("wiki", "a.txt")),
        ("wiki=a.txt@2.5", Corpus("wiki", "a.txt", 2.5)),
        ("wiki=a@b.txt", Corpus("wiki", "a@b.txt")),
        ("wiki=a@weights/b.txt", Corpus("wiki", "a@weights/b.txt")),
        ("wiki=a@b.txt@3", Corpus("wiki", "a@b.txt", 3.0)),
        ("wiki=a=b.txt", Corpus("wiki", "a=b.txt")),
        ("wiki=@2", Corpus("wiki", "@2")),
    ],
)
def test_a_number_behind_an_at_is_a_weight(text: str, expected: Corpus) -> None:
    assert flags.weighted(text) == expected


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_a_weight_is_a_number_above_0(weight: str) -> None:
    with pytest.raises(ValueError, match="retain corpus 'wiki' has weight"):
        flags.weighted(f"wiki=a.txt@{weight}")


def test_a_model_alone_is_measured_into_a_folder(finished: Path, shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [*evaluate_words(shelf, shelf / "llama"), "--out", str(out)]
    assert main(words) == 0
    assert files(out) == {name for name in RESULT_FILES if "/base/" in name} | {"env.json", "summary.json"}
    assert summary(out) == [row for row in summary(finished) if row["model"] == "base"]
    before = state(out)
    assert main(words) == 0
    assert state(out) == before
    assert main(["report", str(out)]) == 0
    assert files(shelf / "llama") == {"config.json", "generation_config.json", "model.safetensors"} | {
        name for name in files(shelf / "llama") if name.startswith(("tokenizer", "special_tokens"))
    }


def test_a_smaller_batch_is_the_same_measurement(
    finished: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(finished)
    assert main([*evaluate_words(shelf, finished), "--batch-tokens", "64"]) == 0
    assert state(finished) == before


def test_the_table_and_the_next_command_are_printed(
    finished: Path, shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(evaluate_words(shelf, finished)) == 0
    printed = capsys.readouterr().out
    row = next(r for r in summary(finished) if r["set"] == "biology" and r["model"] == "base" and r.get("headline"))
    assert f"{100 * row['value']:.1f} %" in printed
    assert f"Next: misdirect report {finished}" in printed
    assert main(["report", str(finished)]) == 0
    assert (finished / "report.html").as_uri() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 0), (["--help"], 0), (["--version"], 0), (["evaluate", "--help"], 0), (["unlearn"], 2), (["report"], 2)],
)
def test_exit_codes(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    out, err = capsys.readouterr()
    assert bool(out) == (code == 0)
    assert bool(err) == (code == 2)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "misdirect: interrupted; the same command resumes from here"),
        (BrokenPipeError(), 1, ""),
        (PermissionError(13, "Permission denied", "/run"), 2, "misdirect: [Errno 13] Permission denied: '/run'"),
    ],
)
def test_an_interruption_is_no_traceback(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: Any, **rest: Any) -> Path:
        raise error

    monkeypatch.setattr("misdirect.api.report", interrupted)
    assert main(["report", "run"]) == code
    assert capsys.readouterr().err.strip() == said


def test_a_misspelt_flag_is_named_before_the_flags_that_are_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["unlearn", "demo", "--updats", "3"]) == 2
    assert capsys.readouterr().err == "misdirect: Unknown option: --updats. Did you mean --updates?\n"
    assert main(["unlearn", "demo", "--out", "x"]) == 2
    assert "--forget" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["unlearn", "plan"])
def test_the_documented_command_needs_no_number_of_updates(
    verb: str, shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        verb,
        str(shelf / "llama"),
        "--forget",
        f"bio={shelf / 'bio.jsonl'}",
        "--retain",
        f"wiki={shelf / 'wiki.jsonl'}@2",
    ]
    assert main(words + (["--out", str(tmp_path / "run")] if verb == "unlearn" else [])) == 0
    said = capsys.readouterr()
    assert "150 updates" in said.out + said.err


def test_further_seeds_are_runs_of_their_own_and_their_spread_is_reported(shelf: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["unlearn", str(shelf / "llama"), "--forget", f"biology={shelf / 'bio.jsonl'}", "--retain"]
    words += [f"kept={shelf / 'wiki.jsonl'}", "--updates", "2", "--seed", "5", "--seeds", "3", "--out", str(run)]
    assert main(words) == 0
    assert sorted(p.name for p in (run / "seeds").iterdir()) == ["6", "7"]
    deltas = [p.read_bytes() for p in (run / runs.DELTA, run / "seeds/6" / runs.DELTA, run / "seeds/7" / runs.DELTA)]
    assert len(set(deltas)) == 3
    alone = tmp_path / "alone"
    assert main([*words[:-6], "--seed", "7", "--out", str(alone)]) == 0
    found, again = (load_delta(path / runs.DELTA).tensors for path in (alone, run / "seeds/7"))
    assert all(torch.equal(found[name], again[name]) for name in found.keys() | again.keys())
    assert (
        main(["evaluate", str(run), "--questions", f"biology={shelf / 'bio-questions.jsonl'}", "--formats", "cloze"])
        == 0
    )
    rows = summary(run)
    (spread,) = [r for r in rows if r["metric"].endswith("_over_seeds")]
    own = [run, run / "seeds/6", run / "seeds/7"]
    values = []
    for folder in own:
        stored = storage.read_json(runs.result_path(folder, "unlearned", "mcq", "biology"))
        values += [m["value"] for m in stored["metrics"] if m.get("headline")]
    assert (spread["n"], spread["smallest"], spread["largest"]) == (3, min(values), max(values))
    assert spread["value"] == pytest.approx(sum(values) / 3)
    assert not spread.get("headline")
    assert not (run / "seeds/6/results/base").exists()
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert main(words) == 0
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_any_set_name_is_a_file_of_its_own(shelf: Path, tmp_path: Path) -> None:
    names = ["a/b", "a_b", "../up", "x" * 300, "x" * 299 + "y", "é", "a b"]
    words = ["evaluate", str(shelf / "llama"), "--out", str(tmp_path / "out")]
    for name in names:
        words += ["--text", f"{name}={shelf / 'kept.jsonl'}"]
    assert main(words) == 0
    assert {row["set"] for row in summary(tmp_path / "out")} == set(names)
    assert len(list((tmp_path / "out/results/base").iterdir())) == len(names)
    assert files(tmp_path) == {f"out/{name}" for name in files(tmp_path / "out")}


def test_a_model_without_numbers_is_refused_without_a_crash(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from misdirect.model import load

    whole: Callable[..., Any] = load.load_lm

    def broken(*args: Any, **named: Any) -> Any:
        lm = whole(*args, **named)
        lm.model.get_output_embeddings().weight.fill_(float("nan"))
        return lm

    monkeypatch.setattr(load, "load_lm", broken)
    out = tmp_path / "out"
    sources = ["--questions", f"q={shelf / 'bio-questions.jsonl'}", "--text", f"t={shelf / 'kept.jsonl'}"]
    assert main(["evaluate", str(shelf / "llama"), *sources, "--out", str(out)]) == 2
    assert "base, q: " in (said := " ".join(capsys.readouterr().err.split()))
    assert "gives NaN or infinity for" in said
    assert not list(out.rglob("mcq.*"))
