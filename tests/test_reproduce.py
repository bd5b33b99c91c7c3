"""Every stored command is typed again: it makes the same run, and beside the finished run it makes nothing."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from misdirect import runs, storage
from misdirect.cli.main import main
from misdirect.model import load
from misdirect.model.delta import load_delta
from tiny import fill_shelf

COMMON = [
    "--forget",
    "bio=bio.jsonl",
    "--retain",
    "the wiki=wiki.jsonl@2.5",
    "--block",
    "1",
    "--num-blocks",
    "2",
    "--batch-size",
    "2",
]
WAYS = {
    "rmu": ["--updates", "3", "--steering", "bio=3x", "--lr", "1e-3", "--schedule", "cosine", "--clip", "1"],
    "rmu by epochs": ["--epochs", "0.5", "--alpha", "bio=7", "--dtype", "float32"],
    "rmu, a recipe": ["--recipe", "demo", "--updates", "2", "--max-tokens", "16"],
    "rmu, published": ["--numerics", "published", "--updates", "2", "--recipe", "zephyr-7b"],
    "npo": ["--method", "npo", "--updates", "2"],
    "npo, its own rate": ["--method", "npo", "--updates", "2", "--lr", "1e-3", "--alpha", "5"],
    "npo, a recipe": ["--method", "npo", "--recipe", "demo", "--updates", "2", "--max-tokens", "16"],
    "gradient difference": ["--method", "gradient-difference", "--epochs", "0.5", "--seed", "3"],
    "with pickles allowed": ["--updates", "2", "--allow-pickle"],
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a shelf")
    fill_shelf(folder)
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_stored_command_makes_the_run_again(
    shelf: Path, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shelf)
    first, second = tmp_path / "first", tmp_path / "second one"
    assert main(["unlearn", "llama", *COMMON, *WAYS[way], "--out", str(first)]) == 0
    words = shlex.split(storage.read_json(first / runs.CONFIG)["command"])
    assert words[:2] == ["misdirect", "unlearn"] and "None" not in words
    at = words.index("--out")
    assert words[at + 1] == str(first)
    assert main([*words[1:at], "--out", str(second), *words[at + 2 :]]) == 0
    one, two = (load_delta(run / runs.DELTA).tensors for run in (first, second))
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run loads nothing")

    monkeypatch.setattr(load, "load_lm", never)
    capsys.readouterr()
    assert main(words[1:]) == 0
    assert "finished already" in capsys.readouterr().err
    assert main(["unlearn", "llama", *COMMON, *WAYS[way], "--out", str(first)]) == 0


def test_further_seeds_store_their_own(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shelf)
    made = ["unlearn", "llama", *COMMON, "--updates", "1", "--method", "npo", "--seeds", "2", "--out", str(tmp_path)]
    assert main(made) == 0
    words = shlex.split(storage.read_json(tmp_path / "seeds" / "1" / runs.CONFIG)["command"])
    assert words[words.index("--seed") + 1] == "1" and words[words.index("--out") + 1].endswith("seeds/1")


def test_what_was_typed_is_stored_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ["misdirect", "evaluate", "a model", "--questions", "q=my file.jsonl"]
    monkeypatch.setattr("sys.argv", typed)
    assert shlex.split(runs.environment()["command"]) == typed


def test_a_model_that_has_changed_is_looked_at(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(tmp_path)
    fill_shelf(tmp_path)
    made = ["unlearn", "llama", *COMMON, "--updates", "1", "--out", str(tmp_path / "run")]
    assert main(made) == 0
    file = tmp_path / "llama" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value + 1e-3 for name, value in tensors.items()}, file, {"format": "pt"})
    capsys.readouterr()
    assert main(made) == 2
    assert "data.model_sha256 differ" in capsys.readouterr().err
    save_file(tensors, file, {"format": "pt"})  # other times, the same bits: loaded, hashed, and found to be the same
    assert main(made) == 0
    config = json.loads((tmp_path / "run" / runs.CONFIG).read_text())
    assert config["model_files"]["model.safetensors"][1] != file.stat().st_mtime_ns
