"""`chat`: both models answer as an evaluation would have them, nothing in a text is obeyed, and it ends cleanly."""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import misdirect as md
from attack_cases import state_hash
from misdirect import runs, storage
from misdirect.cli import chat as talking
from misdirect.cli.chat import chat, plain
from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.data.prompts import Prompt
from misdirect.evaluation import side_by_side
from misdirect.evaluation.generation import generation
from misdirect.model.delta import load_delta, swapped_in
from misdirect.model.generate import Answer
from misdirect.model.load import load_lm
from tiny import fill_shelf, tiny_model

Capture = pytest.CaptureFixture[str]
HOSTILE = "red \x1b[31m\x1b]0;owned\x07 \r\x08 turned \u202eevil\u2066 \x9b2J \ud800 \ufffe\nsecond\tline"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, never written to by a test."""
    shelf = tmp_path_factory.mktemp("shelf")
    fill_shelf(shelf)
    config = UnlearnConfig(block=2, updates=3, batch_size=2, max_tokens=16, lr=0.3, device="cpu")
    return md.unlearn(
        str(shelf / "llama"),
        {"bio": str(shelf / "bio.jsonl")},
        {"wiki": str(shelf / "wiki.jsonl")},
        shelf / "run",
        config,
    )


def piped(monkeypatch: pytest.MonkeyPatch, text: str | bytes) -> None:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """A keyboard: what is typed, then the end of the input; an exception stands for a signal."""
    left = list(lines)

    def read(ask: str) -> str:
        assert ask == talking.ASK
        line = left.pop(0) if left else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line

    piped(monkeypatch, "")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", read)


def say(run: Path, capsys: Capture, **more: Any) -> tuple[str, str]:
    capsys.readouterr()
    chat(run, **({"new_tokens": 5, "device": "cpu"} | more))
    return tuple(capsys.readouterr())  # type: ignore[return-value]


def expected_answers(run: Path, turns: tuple[str, ...], config: EvaluateConfig) -> list[list[Any]]:
    """Base's and unlearned model's turns as an evaluation records them."""
    lm = load_lm(storage.read_json(run / runs.CONFIG)["model"], device="cpu")
    base = generation(lm, "x", [Prompt("chat", turns)], config).records[0]
    with swapped_in(load_delta(run / runs.DELTA), lm.model):
        unlearned = generation(lm, "x", [Prompt("chat", turns)], config).records[0]
    kind = 1 if config.samples else 0
    return [record["answers"][kind]["turns"] for record in (base, unlearned)]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_and_history_are_those_of_an_evaluation(run: Path, temperature: float) -> None:
    turns = ("the king of the river", "and the virus?")
    config = EvaluateConfig(new_tokens=6, samples=int(temperature > 0), temperature=temperature or 1.0, device="cpu")
    lm, delta = side_by_side.load_pair(run, None, config, False, False)
    before = state_hash(lm)
    history: list[side_by_side.Exchange] = []
    for turn in turns:
        history.append(side_by_side.answers(lm, delta, history, turn, config))
    assert state_hash(lm) == before
    for side, expected in zip(side_by_side.SIDES, expected_answers(run, turns, config), strict=True):
        assert [e.replies[side].text for e in history] == [turn["text"] for turn in expected]
    assert history[0].replies["base"].text != history[0].replies["unlearned"].text


def test_piped_prompts_are_answered_one_a_line(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, b"the king\r\n\n  \n/reset\nthe \xff virus\n//quit\n/nonsense \x1b[2J\n/quit\nnever asked\n")
    out, err = say(run, capsys)
    assert [line for line in out.splitlines() if line.startswith(talking.ASK)] == [
        "you> the king", "you> the \ufffd virus", "you> /quit",
    ]  # fmt: skip
    assert out.count("[base") == out.count("[unlearned") == 3
    assert out.index("[base") < out.index("[unlearned")
    assert "forgotten" in err and "/nonsense \\x1b[2J is not a command; expected /reset, /quit or /help" in err
    assert "\x1b" not in out + err


def test_reset_forgets_what_was_said(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "the king of\nthe king of\n/reset\nthe king of\n")
    seen: list[int] = []
    monkeypatch.setattr(side_by_side, "refuse_long", lambda lm, tokens, new, history: seen.append(tokens))
    say(run, capsys)
    assert seen[0] == seen[1] == seen[4] == seen[5] < min(seen[2:4])


def test_the_end_of_the_input_is_one_line(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "/help", "the king")
    out, err = say(run, capsys)
    assert "[base" in out and "you>" not in out  # the terminal shows what is typed
    assert err.count("/reset forgets") == 2 and err.splitlines()[-1] == "The chat has ended"
    piped(monkeypatch, "")
    assert say(run, capsys) == ("", "")


def test_ctrl_c_is_one_line_and_other_signals_pass(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from misdirect.interrupts import Interrupted

    typed(monkeypatch, Interrupted(signal.SIGINT))
    assert say(run, capsys)[1].splitlines()[-1] == "The chat was ended by Ctrl-C"
    typed(monkeypatch, KeyboardInterrupt())
    assert say(run, capsys)[1].splitlines()[-1] == "The chat was ended by Ctrl-C"
    typed(monkeypatch, Interrupted(signal.SIGTERM))
    with pytest.raises(Interrupted):
        say(run, capsys)


@pytest.mark.parametrize("columns", [40, 100])
@pytest.mark.parametrize("hand", [True, False])
def test_hostile_text_is_shown_and_not_obeyed(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, columns: int, hand: bool
) -> None:
    from transformers import PreTrainedTokenizerBase

    monkeypatch.setattr(PreTrainedTokenizerBase, "decode", lambda *_, **__: HOSTILE)
    # a lone surrogate cannot be tokenised: the verdict is not what is tested here
    monkeypatch.setattr(
        side_by_side, "marked", lambda lm, p, a, c: side_by_side.Reply(a.text, a.num_tokens, a.stopped, "symbols")
    )
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("FORCE_COLOR", "1")  # what is written is a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    asked = "the \x1b[31mking\u202e"
    typed(monkeypatch, asked) if hand else piped(monkeypatch, asked + "\n")
    out, _ = say(run, capsys)
    bare = out.replace("\x1b[1m", "").replace("\x1b[0m", "")  # rich's own bold headings
    assert not set(bare) & set("\x1b\x07\x08\r\x9b\u202e\u2066\ud800\ufffe\t")
    flat = "".join(bare.split())
    for escape in (r"\x1b[31m", r"\x07", r"\u202e", r"\u2066", r"\x9b", r"\ud800", r"\ufffe", r"\x08"):
        assert escape in flat
    assert (talking.ASK + r"the \x1b[31mking\u202e" in bare) is not hand
    lines = bare.splitlines()
    beside = [line for line in lines if "base" in line and "unlearned" in line]
    assert len(beside) == (1 if columns == 100 else 0)
    assert all(len(line) <= 100 for line in lines)


def test_plain_keeps_text() -> None:
    text = "Gr\u00fc\u00dfe, \u65e5\u672c\u8a9e \U0001f600, [bold]no markup[/bold]\r\nsecond line"
    assert plain(text) == text.replace("\r\n", "\n")


def test_an_answer_that_is_no_language_is_marked(run: Path) -> None:
    config = EvaluateConfig(new_tokens=5, device="cpu")
    lm, _ = side_by_side.load_pair(run, None, config, False, False)
    why = {
        text: side_by_side.marked(lm, "who?", Answer(text, 9, False, finite), config).why
        for text, finite in (("or " * 40, True), ("", True), ("?!" * 9, True), ("the", False))
    }
    assert list(why.values()) == ["loop", "empty", "symbols", "not a number"]
    reply = side_by_side.Reply("or or", 9, False, "loop")
    assert talking.heading("unlearned", reply) == "unlearned, degenerate: loop, cut off at 9 tokens"
    assert talking.heading("base", side_by_side.Reply("Paris.", 2, True, "")) == "base"


def test_a_prompt_that_is_too_long_is_told_and_the_chat_goes_on(
    run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "the king\n" + "virus " * 3000 + "\nthe river\n")
    out, err = say(run, capsys)
    assert "the model takes 2048 at most; expected /reset, or a shorter prompt" in err and len(err.splitlines()) == 1
    assert out.count("[base") == 2


def test_what_is_no_finished_run_is_one_line(run: Path, tmp_path: Path) -> None:
    base = storage.read_json(run / runs.CONFIG)["model"]
    for typed_name in (base, "demo", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="is not a run, and a model alone has nothing"):
            chat(typed_name)
    unfinished = tmp_path / "unfinished"
    storage.write_json(unfinished / runs.CONFIG, storage.read_json(run / runs.CONFIG))
    with pytest.raises(ValueError, match="unfinished run"):
        chat(unfinished)
    with pytest.raises(ValueError, match="--temperature"):
        chat(run, temperature=float("nan"))


def test_another_base_is_refused(run: Path, tmp_path: Path) -> None:
    other = tiny_model("llama", num_hidden_layers=4)
    with torch.no_grad():
        other.get_parameter("model.layers.0.mlp.up_proj.weight").add_(1.0)
    other.save_pretrained(tmp_path / "other")
    load_lm(storage.read_json(run / runs.CONFIG)["model"]).tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other weights"):
        chat(run, model=str(tmp_path / "other"), device="cpu")


def test_a_real_terminal(run: Path) -> None:
    """Of its own process: prompt, answers side by side, Ctrl-C."""
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a shell's background job is deaf to it
    code = f"{heard}; from misdirect.cli.chat import chat; chat({str(run)!r}, new_tokens=4, device='cpu')"
    main, side = os.openpty()
    environment = os.environ | {"COLUMNS": "100", "TERM": "xterm", "NO_COLOR": "1"}
    command = [sys.executable, "-c", code]
    with (
        subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=environment) as process,
        contextlib.ExitStack() as stack,
    ):
        os.close(side)
        stack.callback(process.kill)  # or a test that fails would wait for it
        seen = read_until(main, "you> ")
        os.write(main, b"the king\n")
        seen += read_until(main, "you> ")
        for _ in range(
            30
        ):  # what comes between the prompt and the waiting for a key, CPython only sees at the next key
            process.send_signal(signal.SIGINT)
            seen += (told := read(main, 2.0))
            if told:
                break
        seen += read_until(main, "Ctrl-C", seen)
        assert process.wait(20) == 0
    os.close(main)
    assert any("base" in line and "unlearned" in line for line in seen.splitlines()[1:])


def read(terminal: int, seconds: float) -> str:
    """What the program writes, as soon as it does; nothing where it writes nothing."""
    if not select.select([terminal], [], [], seconds)[0]:
        return ""
    try:
        return os.read(terminal, 4096).decode(errors="replace")
    except OSError:  # the program has ended
        raise AssertionError("the program has ended") from None


def read_until(terminal: int, text: str, before: str = "") -> str:
    """What is written from now on, until `text` stands in it, or in it and what came before."""
    seen, deadline = "", time.monotonic() + 120
    while text not in before + seen:
        assert time.monotonic() < deadline, f"{text!r} never came: {before + seen}"
        seen += read(terminal, 1.0)
    return seen


def test_importing_it_loads_no_torch() -> None:
    code = "import misdirect.cli.chat, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
