"""Talk to a run: base and unlearned model answer the same prompt, side by side in the terminal.

The base is loaded once and the delta swapped in for the second answer. Each model has its own history: it sees its own
earlier answers. What a model or a pasted prompt holds beyond text (escape sequences, control characters, direction
overrides) is shown as an escape and never obeyed. An answer that is not language any more is marked, by the same rule as in
an evaluation (`misdirect.evaluation.degeneration`).

    chat("runs/demo")                              # prompts from the keyboard
    echo "What is a cell?" | misdirect chat RUN    # one prompt a line
"""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.table import Table
from rich.text import Text

from misdirect.cli.app import Flag
from misdirect.config import ChatTemplate, Device, Dtype, EvaluateConfig
from misdirect.evaluation.side_by_side import Exchange, Reply, answers, load_pair, require_pair
from misdirect.progress import note
from misdirect.text import UNPRINTABLE, shown

if TYPE_CHECKING:
    pass

NARROW = 80  # columns of a terminal below which the answers stand one below the other
PIPED_WIDTH = 10**6  # nothing is wrapped for a program
ASK = "you> "
HELP = (
    "Type a prompt; both models answer it, each with its own earlier answers in view. "
    "/reset forgets the conversation, /quit ends it, /help says this. A prompt that begins with / takes a second one: //"
)


def chat(
    run: str | Path,
    *,
    model: str | None = None,
    new_tokens: int = 120,
    temperature: float = 0.0,
    top_p: float = 1.0,
    chat_template: ChatTemplate = "auto",
    seed: int = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Annotated[bool, Flag] = False,
    allow_pickle: Annotated[bool, Flag] = False,
) -> None:
    """Talk to a run: base and unlearned model answer each prompt side by side.

    Prompts come from the keyboard, or one a line from a pipe.

    Parameters
    ----------
    run
        A run directory.
    model
        Where the run's base lies now, if not where it was unlearned from.
    new_tokens
        Longest answer in tokens.
    temperature
        0 takes the likeliest token each time; above 0 answers are drawn, both models with the same noise.
    top_p
        Drawn answers take the likeliest tokens that hold this probability together.
    chat_template
        Prompts as a user's turn where the model has a chat template, or as they are.
    seed
        Seed of drawn answers.
    device
        Where to compute: auto takes a GPU when there is one.
    dtype
        The model's dtype: auto is float32 on a CPU, bfloat16 on a GPU.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    if not 0 <= temperature < 1e3:
        raise ValueError(
            f"--temperature {temperature} is out of range; expected a number above 0, or 0 for the likeliest"
        )
    config = EvaluateConfig(
        new_tokens=new_tokens, temperature=temperature or 1.0, top_p=top_p, samples=int(temperature > 0),
        chat_template=chat_template, seed=seed, device=device, dtype=dtype,
    )  # fmt: skip
    folder = Path(run).expanduser()
    require_pair(folder, str(run))
    with ended_by_hand():
        lm, delta = load_pair(folder, model, config, trust_remote_code, allow_pickle)
        talk(lambda history, prompt: answers(lm, delta, history, prompt, config, spinner), prompts(str(run)))


@contextlib.contextmanager
def ended_by_hand() -> Iterator[None]:
    """Ctrl-C ends the chat with one line; other signals go on to whoever asked for them."""
    try:
        yield
    except KeyboardInterrupt as error:
        if getattr(error, "number", signal.SIGINT) != signal.SIGINT:
            raise
        sys.stdout.write("\n" if sys.stdout.isatty() else "")
        note("The chat was ended by Ctrl-C")


# ------------------------------------------------------------------------------------------------ reading prompts


def prompts(name: str) -> Iterator[str]:
    """Lines from the keyboard, with a question mark of ours before each, or from a pipe or file."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # an odd byte is no reason to stop
    if not sys.stdin.isatty():
        yield from (line.rstrip("\r\n") for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - input() then edits the line and keeps a history
    note(f"{shown(name)}: base and unlearned model side by side. {HELP}")
    while True:
        try:
            yield input(ASK)
        except EOFError:
            print()
            note("The chat has ended")
            return


def talk(answer: Callable[[list[Exchange], str], Exchange], lines: Iterator[str]) -> None:
    """The loop: a command or a prompt a line. What cannot be answered is said, and the conversation goes on."""
    history: list[Exchange] = []
    asked_by_hand = sys.stdin.isatty()
    for line in lines:
        prompt = line.strip()
        if not prompt:
            continue
        if prompt.startswith("/") and not prompt.startswith("//"):
            if prompt == "/quit":
                note("The chat has ended")
                return
            history = obey(prompt, history)
            continue
        prompt = prompt.removeprefix("/") if prompt.startswith("//") else prompt
        try:
            exchange = answer(history, prompt)
        except ValueError as error:
            note(shown(error, 1000))
            continue
        history = [*history, exchange]
        show(exchange, echo=not asked_by_hand)


def obey(command: str, history: list[Exchange]) -> list[Exchange]:
    """The history after a command."""
    if command == "/reset":
        note("The conversation is forgotten")
        return []
    note(HELP if command == "/help" else f"{shown(command, 40)} is not a command; expected /reset, /quit or /help")
    return history


# ------------------------------------------------------------------------------------------------ answering


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Says at a terminal who is at work."""
    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


# ------------------------------------------------------------------------------------------------ showing


def plain(text: str) -> str:
    """Text of several lines that a terminal prints and does not obey: what is not text shows as an escape."""
    lines = text.replace("\r\n", "\n")
    return UNPRINTABLE.sub(lambda found: shown(found[0]), lines).expandtabs(4)


def heading(side: str, reply: Reply) -> str:
    """`unlearned, degenerate: loop` and, where the answer was cut off, its length."""
    told = [side] + ([f"degenerate: {reply.why}"] if reply.why else [])
    return ", ".join(told + ([] if reply.stopped else [f"cut off at {reply.num_tokens} tokens"]))


def show(exchange: Exchange, echo: bool = False) -> None:
    """Both answers on standard output: side by side on a terminal that is wide enough, else one below the other.

    `echo` repeats the prompt, for input that nobody typed.
    """
    console = Console(highlight=False, emoji=False, markup=False, soft_wrap=False)
    if echo:
        print(f"{ASK}{plain(exchange.prompt)}")
    if not console.is_terminal or console.width < NARROW:
        for side, reply in exchange.replies.items():
            print(f"[{heading(side, reply)}]\n{plain(reply.text).strip()}")
        print()
        return
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0), expand=True)
    for _ in exchange.replies:
        table.add_column(ratio=1, overflow="fold")
    heads = [Text(heading(side, r), style="bold red" if r.why else "bold") for side, r in exchange.replies.items()]
    table.add_row(*heads)
    table.add_row(*(Text(plain(r.text).strip()) for r in exchange.replies.values()))
    console.print(table)
    console.print()
