"""Signals at any moment: one line, 128 + number, nothing half-written, nothing lost, and the same bits in the end.

A signal is raised at the n-th call that a verb makes, counted by a profile function, so that every moment can be hit
and hit again; and it is sent to programs of their own, which shows the moments that only those have. How many moments
are tried: `MISDIRECT_MOMENTS` (in process), `MISDIRECT_PROGRAMS` (programs); their draw: `MISDIRECT_SEED`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from misdirect import interrupts, runs, storage
from misdirect.cli.main import main
from misdirect.model.delta import load_tensors
from misdirect.unlearning import rmu
from tiny import fill_shelf

Capture = pytest.CaptureFixture[str]
MOMENTS = int(os.environ.get("MISDIRECT_MOMENTS", "6"))
PROGRAMS = int(os.environ.get("MISDIRECT_PROGRAMS", "1"))
DRAW = random.Random(int(os.environ.get("MISDIRECT_SEED", "0")))
UNLEARN = (
    "unlearn llama --forget bio=bio.jsonl --retain wiki=wiki.jsonl --updates 12 --checkpoint-every 5 --block 2 "
    "--batch-size 2 --max-tokens 8 --lr 1e-3 --device cpu --out run"
)
VERBS = {
    "unlearn": UNLEARN,
    "evaluate": "evaluate run --questions bio=asked.jsonl --text wiki=wiki.jsonl --text bio=bio.jsonl --device cpu",
    "report": "report run",
}
NUMBERS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM", signal.SIGHUP: "stopped by SIGHUP"}


class Stage(NamedTuple):
    """What a verb finds, what it leaves when nobody disturbs it, and how many calls it makes meanwhile."""

    before: Path
    after: dict[str, Any]
    calls: int


def verb(command: str) -> int:
    return main(command.split())


@pytest.fixture(autouse=True, scope="module")
def as_from_a_terminal() -> Iterator[None]:
    """Under nohup, or in the background of a script, these tests would find signals ignored, and so would programs."""
    # a program starts with the default; here a signal that nobody handles must not end pytest
    before = {number: signal.signal(number, signal.default_int_handler) for number in NUMBERS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stage]:
    folder = tmp_path_factory.mktemp("interrupt")
    here = folder / "here"
    here.mkdir()
    fill_shelf(here)
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, command in VERBS.items():
            before = folder / name
            shutil.copytree(here, before)
            patch.chdir(here)
            assert verb(command) == 0  # also warms up: what is imported once is no call of the next time
            shutil.rmtree(here)
            shutil.copytree(before, here)
            patch.chdir(here)
            with counting() as calls:
                assert verb(command) == 0
            made[name] = Stage(before, bits(here / "run"), calls[0])
    return made


@contextmanager
def counting(at: int = -1, number: int = 0) -> Iterator[list[int]]:
    """Counts the calls of the block; raises a signal at one of them."""
    calls = [0]

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            calls[0] += 1
            if calls[0] == at:
                signal.raise_signal(number)

    sys.setprofile(profile)
    try:
        yield calls
    finally:
        sys.setprofile(None)


def without_times(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: without_times(value) for key, value in data.items() if key != "seconds"}
    return [without_times(value) for value in data] if isinstance(data, list) else data


def bits(run: Path) -> dict[str, Any]:
    """Every file of a run, without what the clock says; hashes, since a failing test prints how two of these differ."""
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".json":
            found[name] = without_times(json.loads(path.read_text()))
        elif path.suffix == ".jsonl":
            found[name] = [without_times(row) for row in runs.read_log(run)]
        elif path.suffix == ".safetensors":  # the order of its header's metadata is not fixed
            tensors, metadata = load_tensors(path)
            found[name] = metadata, {key: storage.sha256(value.numpy().tobytes()) for key, value in tensors.items()}
        elif path.suffix in (".html", ".md", ".svg", ".pdf"):
            found[name] = "a page or picture: says when it was made"
        elif path.is_file():
            found[name] = storage.sha256(path.read_bytes())
    found.pop(runs.ENV, None)  # the command line of the tests
    return found


def whole(run: Path) -> None:
    """Nothing is half-written: no temporary file, no lock, every JSON file is one, every tensor file can be read."""
    for path in run.rglob("*"):
        assert not path.name.endswith(".part"), path
        assert path.name != ".lock"
        if path.suffix == ".json":
            json.loads(path.read_text())
        if path.suffix == ".safetensors":
            load_tensors(path)


def stamps(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in (run / "results").rglob("*.json")}


def said(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("misdirect: ")]


def moments() -> list[tuple[str, int, float]]:
    """(verb, signal, share of its calls), the draw of this session."""
    names, numbers = list(VERBS), list(NUMBERS)
    return [(names[i % 3], numbers[i // 3 % 3], DRAW.random()) for i in range(MOMENTS)]


@pytest.mark.long
@pytest.mark.parametrize(("name", "number", "share"), moments())
def test_a_signal_at_any_call(
    name: str, number: int, share: float, stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: Capture,
) -> None:  # fmt: skip
    stage = stages[name]
    shutil.copytree(stage.before, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    handlers = {s: signal.getsignal(s) for s in NUMBERS}
    capfd.readouterr()
    # not the first and last few calls, where `main` has no handler yet or no longer
    with counting(50 + int(share * (stage.calls - 100)), number):
        code = verb(VERBS[name])
    assert {s: signal.getsignal(s) for s in NUMBERS} == handlers
    err = capfd.readouterr().err
    assert "Traceback" not in err
    run = Path("run")
    if run.exists():
        whole(run)
    if code:
        assert code == 128 + number
        assert [NUMBERS[number] in line for line in said(err)] == [True], err
        assert "the same command resumes from here" in said(err)[0]
    made = runs.read_log(run)
    if (run / runs.CHECKPOINT).exists():  # what was computed is kept
        assert load_tensors(run / runs.CHECKPOINT)[1]["step"] == str(made[-1]["step"])
    measured = stamps(run)
    assert verb(VERBS[name]) == 0
    assert bits(run) == stage.after
    if name == "report":
        assert stamps(run) == measured


def test_an_update_is_not_cut_and_leaves_a_checkpoint(
    stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The signal comes while update 7 is made: its checkpoint is there, though none was due, and update 8 was not begun."""
    from misdirect.model.delta import load_tensors

    shutil.copytree(stages["unlearn"].before, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    original, calls = rmu.losses, []

    def losses(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2 + 7:  # the first two are the estimate's
            signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(rmu, "losses", losses)
    assert verb(UNLEARN) == 143
    assert load_tensors(Path("run") / runs.CHECKPOINT)[1]["step"] == "7"
    assert [line["step"] for line in runs.read_log(Path("run"))] == list(range(1, 8))
    assert len(calls) == 2 + 7
    assert verb(UNLEARN) == 0
    assert len(calls) == 2 + 12 + 2
    assert bits(Path("run")) == stages["unlearn"].after


def test_a_second_signal_much_later_cuts_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: clock[0])
    passed = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred() as waiting:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # `timeout` and terminals send two
        passed.append(list(waiting))
        clock[0] += interrupts.PATIENCE + 0.1
        signal.raise_signal(signal.SIGINT)
        pytest.fail("not cut")
    assert passed == [[signal.SIGINT] * 2]


def test_a_signal_that_waits_is_obeyed_when_the_block_ends() -> None:
    passed = []
    with interrupts.as_interrupts(), pytest.raises(interrupts.Interrupted) as caught, interrupts.deferred():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        passed.append(True)
    assert passed == [True]
    assert caught.value.number == signal.SIGTERM


def test_an_error_of_a_deferred_block_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), interrupts.deferred():
        raise ZeroDivisionError


def test_a_signal_that_python_swallows_comes_again() -> None:
    """An exception in `__del__` is lost: the interrupt is raised again a little later."""

    class Swallows:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("not interrupted")

    def work() -> int:
        Swallows()
        end = time.monotonic() + 20
        while time.monotonic() < end:
            pass
        return 0

    began = time.monotonic()
    assert interrupts.interruptible(work) == 143
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("error", [RuntimeError("a library's own"), ValueError("x"), SystemExit(1)])
def test_what_is_raised_after_a_signal_is_its_doing(error: BaseException, capsys: Capture) -> None:
    def work() -> int:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None
        return 0

    assert interrupts.interruptible(work) == 130
    assert said(capsys.readouterr().err) == ["misdirect: interrupted; the same command resumes from here"]
    with pytest.raises(type(error)):  # without a signal it is nobody's doing
        interrupts.interruptible(lambda: (_ for _ in ()).throw(error))


def test_an_ignored_signal_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.as_interrupts(), interrupts.deferred() as waiting:
            signal.raise_signal(signal.SIGHUP)
        assert waiting == []
    finally:
        signal.signal(signal.SIGHUP, before)


# --- programs of their own ---


def start(command: str, folder: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, as from a terminal: nothing ignored; output into files, which never block it."""
    with (folder / "out.txt").open("wb") as out, (folder / "err.txt").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "misdirect", *command.split()], cwd=folder, stdout=out, stderr=err,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def wait_for(event: Callable[[], bool], process: subprocess.Popen[bytes], deadline: float = 120) -> None:
    began = time.monotonic()
    while not event() and process.poll() is None:
        assert time.monotonic() - began < deadline
        time.sleep(0.002)


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def logged(run: Path, lines: int) -> Callable[[], bool]:
    return lambda: len(runs.read_log(run)) >= lines


def interrupted(name: str, number: int, folder: Path, when: Callable[[], bool]) -> int:
    """Sends a signal to a program at a moment; what it said and left is in order. The exit code."""
    process = start(VERBS[name], folder)
    try:
        wait_for(when, process)
        process.send_signal(number)
        code = process.wait(60)
    finally:
        process.kill()
    err = (folder / "err.txt").read_text()
    assert "Traceback" not in err
    assert code in (0, 128 + number, -number), err  # -number: before Python runs our first line, or after the last
    if code > 0:
        assert [NUMBERS[number] in line for line in said(err)] == [True], err
    if (folder / "run").exists():
        whole(folder / "run")
    return code


@pytest.mark.long
@pytest.mark.parametrize("index", range(PROGRAMS))
def test_a_signal_to_a_program(
    index: int, stages: dict[str, Stage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, number = list(VERBS)[index % 3], list(NUMBERS)[(index + 1) % 3]
    folder = tmp_path / "here"
    shutil.copytree(stages[name].before, folder)
    monkeypatch.chdir(folder)
    if index == 0:
        assert interrupted(name, number, folder, logged(folder / "run", 4)) == 128 + number
        assert len(runs.read_log(folder / "run")) >= 4
    else:
        interrupted(name, number, folder, after(DRAW.random() * 8))
    assert verb(VERBS[name]) == 0
    assert bits(folder / "run") == stages[name].after
