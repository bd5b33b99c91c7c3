"""One writer a folder: who comes second is told who is first; a killed one blocks nobody; readers are not held up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from misdirect import runs, storage

HOLDER = """
import sys
from pathlib import Path
from misdirect import runs
with runs.writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds the folder until its standard input is closed."""
    command = [sys.executable, "-c", HOLDER, str(folder), "--seed", "3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_second_writer_is_told_who_is_first(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        with pytest.raises(ValueError, match="is being written to by") as told, runs.writing(tmp_path):
            pytest.fail("two writers")
        line = str(told.value)
        assert line.startswith(f"{tmp_path} is being written to by process {process.pid} on ")
        assert re.search(
            r" since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \(misdirect .*--seed 3\); expected that to end first", line
        )
        assert "\n" not in line
    with runs.writing(tmp_path):
        assert names(tmp_path) == [storage.LOCK]
    assert names(tmp_path) == []


def test_a_killed_holder_blocks_nobody_and_its_torn_files_go(tmp_path: Path) -> None:
    torn = [".log.jsonl.abc.part", "results/base/.mcq.q.json.abc.part", "figures/.x.png.abc.part"]
    kept = ["results/base/mcq.q.json", "seeds/1/.delta.safetensors.abc.part", "mine.part"]
    for name in (*torn, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    with holder(tmp_path) as process:  # it has removed them: put back what it would leave
        for name in torn:
            (tmp_path / name).write_text("x")
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / storage.LOCK).exists()
    with runs.writing(tmp_path):
        assert json.loads((tmp_path / storage.LOCK).read_text())["pid"] == os.getpid()
    files = [name for name in names(tmp_path) if (tmp_path / name).is_file()]
    assert files == sorted(kept)


def test_nested_holds_of_one_thread_count_as_one(tmp_path: Path) -> None:
    with runs.writing(tmp_path):
        with runs.writing(tmp_path / "."), runs.writing(tmp_path / "other"):
            assert (tmp_path / storage.LOCK).exists()
        assert (tmp_path / storage.LOCK).exists()
        with pytest.raises(KeyError), runs.writing(tmp_path):
            raise KeyError
        assert (tmp_path / storage.LOCK).exists()
    assert names(tmp_path) == ["other"]
    assert not storage.lock_of(tmp_path).is_locked


def test_another_thread_is_another_writer(tmp_path: Path) -> None:
    said: list[str] = []

    def second() -> None:
        try:
            with runs.writing(tmp_path):
                said.append("in")
        except ValueError as error:
            said.append(str(error))

    with runs.writing(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(said) == 1
    assert f"is being written to by process {os.getpid()} on" in said[0]


def test_of_several_folders_all_or_none_are_held(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with holder(tmp_path / "b"):
        with pytest.raises(ValueError, match="b is being written to"), runs.writing(tmp_path / "a", tmp_path / "b"):
            pytest.fail("two writers")
        with runs.writing(tmp_path / "a"):
            pass


def test_who_waits_gets_the_lock_when_the_first_ends(tmp_path: Path) -> None:
    said: list[str] = []
    with holder(tmp_path) as process:

        def told(line: str) -> None:
            said.append(line)
            assert process.stdin is not None
            process.stdin.close()  # from here on it ends

        with storage.held(tmp_path, wait=told) as outermost:
            assert outermost
            assert process.wait() == 0
            assert (tmp_path / storage.LOCK).exists()
            with pytest.raises(
                ValueError, match="is being written to"
            ):  # it is held, and not the file that was removed
                other_take(tmp_path)
        process.stdin = None
    assert len(said) == 1
    assert said[0].endswith("; waiting for it")


def other_take(folder: Path) -> None:
    """What another process would do."""
    storage.take(FileLock(folder / storage.LOCK, timeout=0), folder, wait=None)


def test_many_processes_take_turns(tmp_path: Path) -> None:
    """A counter in a file is read and written by four processes, 50 times each: only exclusive holds count right."""
    code = f"""
from pathlib import Path
from misdirect import storage
folder = Path({str(tmp_path)!r})
for _ in range(50):
    with storage.held(folder, wait=lambda line: None):
        path = folder / "count"
        path.write_text(str(int(path.read_text()) + 1))
"""
    (tmp_path / "count").write_text("0")
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [(p.communicate()[1], p.returncode) for p in started] == [("", 0)] * 4
    assert (tmp_path / "count").read_text() == "200"
    assert names(tmp_path) == ["count"]


def test_a_hostile_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / storage.LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="run cannot be written to: "), runs.writing(tmp_path / "run"):
        pytest.fail("followed")
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("left", ["", "{", "[1]", '"x"', '{"command": 3}', '{"command": []}', "\x00" * 9])
def test_a_lock_file_of_any_content_can_be_taken(left: str, tmp_path: Path) -> None:
    (tmp_path / storage.LOCK).write_text(left)
    assert storage.holder(tmp_path / storage.LOCK) == "another process"
    with runs.writing(tmp_path):
        assert json.loads((tmp_path / storage.LOCK).read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("where", ["file/run", "file", "loop/run", "x" * 300])
def test_a_folder_that_cannot_be_one_is_a_line(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ValueError, match=r"cannot be written to: .*; expected a folder that takes files$"):
        storage.held(tmp_path / where).__enter__()
