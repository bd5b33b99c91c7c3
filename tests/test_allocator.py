"""Freed memory is kept by the program, and by nobody who only imports the library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from misdirect.cli import entry

FAULTS = """
import resource, sys
if {keep}:
    from misdirect.cli.entry import keep_freed_memory
    if not keep_freed_memory():
        print("skip")
        sys.exit()
import torch
make = lambda: [torch.ones(2_000_000).sum() for _ in range(50)]      # 8 MB each
make()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
make()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(keep: bool) -> int:
    code = FAULTS.format(keep=keep)
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if made.stdout.strip() == "skip":
        pytest.skip("no glibc here")
    return int(made.stdout)


def test_a_tensors_pages_are_used_again() -> None:
    assert page_faults(keep=True) < 0.1 * max(page_faults(keep=False), 1000)


def test_what_the_environment_says_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    assert not entry.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not entry.keep_freed_memory()
    assert "THP_MEM_ALLOC_ENABLE" not in entry.os.environ
