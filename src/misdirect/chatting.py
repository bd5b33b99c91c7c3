"""Talk to a run: base and unlearned model answer the same prompt, side by side in the terminal.

The base is loaded once and the delta swapped in for the second answer. Each model has its own history: it sees its own
earlier answers. What a model or a pasted prompt holds beyond text (escape sequences, control characters, direction
overrides) is shown as an escape and never obeyed. An answer that is no language any more is marked, by the same rule as in
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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from misdirect import runs
from misdirect.config import ChatTemplate, Device, Dtype, EvaluateConfig
from misdirect.data.files import shown
from misdirect.progress import note
from misdirect.reporting.reading import printable

if TYPE_CHECKING:
    from misdirect.model.delta import Delta
    from misdirect.model.load import LM

NARROW = 80  # columns of a terminal below which the answers stand one below the other
PIPED_WIDTH = 10**6  # nothing is wrapped for a program
ASK = "you> "
SIDES = ("base", "unlearned")
HELP = (
    "Type a prompt; both models answer it, each with its own earlier answers in view. "
    "/reset forgets the conversation, /quit ends it, /help says this. A prompt that begins with / takes a second one: //"
)


class Reply(NamedTuple):
    """One model's answer; `why` is empty where it is language: else empty, loop, symbols, salad, not a number."""

    text: str
    num_tokens: int
    stopped: bool  # the model ended it itself
    why: str


@dataclass(frozen=True)
class Exchange:
    """A prompt and what each side, `base` and `unlearned`, says to it."""

    prompt: str
    replies: dict[str, Reply]


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
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> None:
    """Reads prompts until `/quit`, the end of the input or Ctrl-C, and prints both models' answers to each.

    `model`: where the run's base lies now, if it has moved; `temperature` 0 answers greedily. Raises ValueError for what
    is no finished run and for a base with other weights than the run was made from.
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
        talk(lambda history, prompt: answers(lm, delta, history, prompt, config), prompts(str(run)))


def require_pair(folder: Path, typed: str) -> None:
    """Raises ValueError unless the folder is a finished run: a model alone has no second answer."""
    if not runs.is_run(folder):
        raise ValueError(
            f"{shown(typed)} is no run, and a model alone has nothing to be compared with; "
            "expected a folder that `misdirect unlearn` or `misdirect demo` wrote"
        )
    runs.require_run(folder)


def load_pair(
    folder: Path, model: str | None, config: EvaluateConfig, trust_remote_code: bool, allow_pickle: bool
) -> tuple[LM, Delta]:
    """The base and the change, checked to belong together before the first prompt."""
    from misdirect.model.delta import check_fits, load_delta
    from misdirect.model.load import load_lm
    from misdirect.unlearning.run import refuse_other_base

    delta = load_delta(folder / runs.DELTA)
    source = model or runs.read_json(folder / runs.CONFIG)["model"]
    lm = load_lm(source, None, config.device, config.dtype, trust_remote_code, allow_pickle)
    refuse_other_base(lm, folder)
    check_fits(delta, dict(lm.model.named_parameters()))
    return lm, delta


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
    note(HELP if command == "/help" else f"{shown(command, 40)} is no command; expected /reset, /quit or /help")
    return history


# ------------------------------------------------------------------------------------------------ answering


def answers(lm: LM, delta: Delta, history: list[Exchange], prompt: str, config: EvaluateConfig) -> Exchange:
    """Both models' answers to `prompt` after `history`, each read by the base, which knows language.

    Raises ValueError where the conversation has become too long for the model.
    """
    from misdirect.model.delta import swapped_in

    found = {}
    for side in SIDES:
        with swapped_in(delta, lm.model) if side == "unlearned" else contextlib.nullcontext():
            found[side] = reply(lm, side, history, prompt, config)
    return Exchange(prompt, {side: marked(lm, prompt, found[side], config) for side in SIDES})


def reply(lm: LM, side: str, history: list[Exchange], prompt: str, config: EvaluateConfig) -> Any:
    """One model's next answer, as `misdirect.evaluation.generation` gives it."""
    from misdirect.data.prompts import Prompt
    from misdirect.evaluation import contexts
    from misdirect.evaluation import generation as answering

    turns = [*(exchange.prompt for exchange in history), prompt]
    earlier = [exchange.replies[side].text for exchange in history]
    chat = answering.uses_chat(lm, config)
    context = contexts.conversation(lm.tokenizer, turns, earlier, chat)
    contexts.check_tokens(lm, context, "this prompt", chat)
    refuse_long(lm, len(context), config.new_tokens, bool(history))
    before = [answering.Answer(text, 0, True, True) for text in earlier]
    slot = answering.Slot(Prompt("chat", tuple(turns)), 0 if config.samples else None, before)
    with spinner(f"{side} answers"):
        return answering.answer_slots(lm, [slot], [context], config)[0]


def refuse_long(lm: LM, num_tokens: int, new_tokens: int, has_history: bool) -> None:
    """Raises ValueError for a conversation past the length that the model was trained on: its answers would be no
    language, and unlearning would be blamed."""
    limit = getattr(lm.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if num_tokens == 0:
        raise ValueError("this prompt has no token; expected text")
    if isinstance(limit, int) and num_tokens + new_tokens > limit:
        what = "/reset, or a shorter prompt" if has_history else "a shorter prompt"
        raise ValueError(
            f"this takes {num_tokens} tokens and up to {new_tokens} for the answer, and the model takes {limit} at most; "
            f"expected {what}"
        )


def marked(lm: LM, prompt: str, answer: Any, config: EvaluateConfig) -> Reply:
    """An answer with the verdict on whether it is language. `lm` is the base."""
    from misdirect.evaluation import degeneration
    from misdirect.evaluation import generation as answering
    from misdirect.model.finite import NotFinite

    chat = answering.uses_chat(lm, config)
    nll, count = None, 0
    try:
        [(nll, count)] = answering.incoherence(lm, [(prompt, answer.text)], chat, config.batch_tokens)
    except NotFinite as error:  # the answer is shown all the same
        note(f"Whether this is language is not judged: base: {error}")
    turn = degeneration.measures(answer.text) | {"finite": answer.finite, "base_nll": nll, "base_tokens": count}
    return Reply(answer.text, answer.num_tokens, answer.stopped, degeneration.verdict(turn))


@contextlib.contextmanager
def spinner(text: str) -> Iterator[None]:
    """Says at a terminal who is at work."""
    console = Console(stderr=True)
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


# ------------------------------------------------------------------------------------------------ showing


def plain(text: str) -> str:
    """Text of several lines that a terminal prints and does not obey: what is no text shows as an escape."""
    lines = text.replace("\r\n", "\n")
    return "".join(char if char in "\n\t" or printable(char) else shown(char) for char in lines).expandtabs(4)


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
