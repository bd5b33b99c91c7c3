"""Both models of a run answer one conversation: the base is loaded once and the delta swapped in for the second answer.

Each model has its own history: it sees its own earlier answers. An answer that is not language any more is marked, by the
same rule as in an evaluation (`misdirect.evaluation.degeneration`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from misdirect import runs, storage
from misdirect.config import EvaluateConfig
from misdirect.progress import note
from misdirect.text import shown

if TYPE_CHECKING:
    from misdirect.model.delta import Delta
    from misdirect.model.lm import LM


SIDES = ("base", "unlearned")


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


def require_pair(folder: Path, typed: str) -> None:
    """Raises ValueError unless the folder is a finished run: a model alone has no second answer."""
    if not runs.is_run(folder):
        raise ValueError(
            f"{shown(typed)} is not a run, and a model alone has nothing to be compared with; "
            "expected a folder that `misdirect unlearn` or `misdirect demo` wrote"
        )
    runs.require_run(folder)


def load_pair(
    folder: Path, model: str | None, config: EvaluateConfig, trust_remote_code: bool, allow_pickle: bool
) -> tuple[LM, Delta]:
    """The base and the change, checked to belong together before the first prompt."""
    from misdirect.model.delta import check_fits, load_delta
    from misdirect.model.identity import check_same_base
    from misdirect.model.load import load_lm

    delta = load_delta(folder / runs.DELTA)
    source = model or storage.read_json(folder / runs.CONFIG)["model"]
    lm = load_lm(source, None, config.device, config.dtype, trust_remote_code, allow_pickle)
    check_same_base(lm, folder)
    check_fits(delta, dict(lm.model.named_parameters()))
    return lm, delta


Working = Callable[[str], contextlib.AbstractContextManager[Any]]


def answers(
    lm: LM,
    delta: Delta,
    history: list[Exchange],
    prompt: str,
    config: EvaluateConfig,
    working: Working = contextlib.nullcontext,
) -> Exchange:
    """Both models' answers to `prompt` after `history`, each read by the base, which knows language.

    `working`: around each answer, told whose it is. Raises ValueError where the conversation has become too long for the model.
    """
    from misdirect.model.delta import swapped_in

    found = {}
    for side in SIDES:
        swapped = swapped_in(delta, lm.model) if side == "unlearned" else contextlib.nullcontext()
        with working(f"{side} answers"), swapped:
            found[side] = reply(lm, side, history, prompt, config)
    return Exchange(prompt, {side: marked(lm, prompt, found[side], config) for side in SIDES})


def reply(lm: LM, side: str, history: list[Exchange], prompt: str, config: EvaluateConfig) -> Any:
    """One model's next answer, as `misdirect.evaluation.generation` gives it."""
    from misdirect.data.prompts import Prompt
    from misdirect.model import contexts, generate

    turns = [*(exchange.prompt for exchange in history), prompt]
    earlier = [exchange.replies[side].text for exchange in history]
    chat = generate.uses_chat(lm, config)
    context = contexts.conversation(lm.tokenizer, turns, earlier, chat)
    contexts.check_tokens(lm, context, "this prompt", chat)
    refuse_long(lm, len(context), config.new_tokens, bool(history))
    before = [generate.Answer(text, 0, True, True) for text in earlier]
    slot = generate.Slot(Prompt("chat", tuple(turns)), 0 if config.samples else None, before)
    return generate.answer_slots(lm, [slot], [context], config)[0]


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
    from misdirect.model import generate
    from misdirect.model.finite import NotFinite

    chat = generate.uses_chat(lm, config)
    nll, count = None, 0
    try:
        [(nll, count)] = answering.incoherence(lm, [(prompt, answer.text)], chat, config.batch_tokens)
    except NotFinite as error:  # the answer is shown all the same
        note(f"Whether this is language is not judged: base: {error}")
    turn = degeneration.measures(answer.text) | {"finite": answer.finite, "base_nll": nll, "base_tokens": count}
    return Reply(answer.text, answer.num_tokens, answer.stopped, degeneration.verdict(turn))
