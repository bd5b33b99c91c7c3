"""The README's Python code runs as it stands, and every verb and flag that its commands name exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from misdirect.cli import app, main

README = Path(__file__).parent.parent / "README.md"


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.real
def test_the_python_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = code("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(README), "exec"), {})
    assert (tmp_path / "runs/readme/report.html").is_file()
    assert "cloze_accuracy" in capsys.readouterr().out


def commands() -> list[list[str]]:
    lines = "\n".join(code("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))[:1] == ["misdirect"]]


def test_there_are_commands_to_check() -> None:
    assert len(commands()) >= 3


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[1])
def test_every_flag_of_the_commands_is_in_the_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[1] in list(app)
    assert main([words[1], "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in words if flag.startswith("--"))
