"""Whether an answer is still language: measures of degenerate text, and a verdict by a fixed rule.

What an unlearned model says on the forgotten topic is seldom a wrong sentence. It is nothing at all, one token over and
over, a string of symbols, or words without connection. Each is seen by another measure:

- `repetition`: share of word 4-grams that repeat an earlier one (rep-4 of arXiv 1908.04319; loops: arXiv 1904.09751).
- `compression`: bytes after DEFLATE over bytes before, in the most compressible `WINDOW` bytes: finds loops in any script
  and without spaces, and loops that only begin in the middle of an answer.
- `alphanumeric`: letters, marks and digits among all characters that are not space.
- `base_nll`: nats per token of the answer, after its prompt, under the BASE model (`generation.read_by_base`). An answer
  that the base finds incomprehensible is no language to it; a loop it finds easy, hence the other measures.

Salad is an answer of n tokens whose nats exceed `START_NATS + NATS_PER_TOKEN * n`: to begin on something unexpected costs
even prose some nats, once. The thresholds were set on real prose, on fragments of it as answers to an unrelated prompt
(SmolLM2-135M: 1 of 223 called salad), and on prose looped (at least two and a half rounds, all found), shuffled (86 of
112 pieces of 10 words, 106 of 111 of 30) and drawn anew from its words (36 and 40 of 40) or from tokens (80 of 80). A
short right answer such as "Paris." passes.

>>> verdict(measures("or or or or or or or or or or or or"))
'loop'
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Mapping
from typing import Any

WINDOW, STEP = 128, 32  # bytes
LEAST_WORDS = 8
LEAST_CHARS = 8
MOST_REPETITION = 0.5
LEAST_COMPRESSION = 0.4
LEAST_ALPHANUMERIC = 0.4
START_NATS, NATS_PER_TOKEN = 30.0, 5.25


def measures(text: str) -> dict[str, Any]:
    """What can be seen of a text without a model; `num_words` and `num_chars` (without space) say whether it is enough."""
    chars = [c for c in text if not c.isspace()]
    return {
        "num_words": len(text.split()),
        "num_chars": len(chars),
        "repetition": repetition(text),
        "compression": compression(text),
        "alphanumeric": sum(map(is_alphanumeric, chars)) / len(chars) if chars else 0.0,
    }


def verdict(turn: Mapping[str, Any]) -> str:
    """Why a turn with these measures is degenerate: `not a number` (the model's logits were none), `empty`, `symbols`,
    `loop`, `salad`; an empty string where it is not. Without `base_nll`, salad is not seen."""
    if turn.get("finite") is False:
        return "not a number"
    if not turn["num_chars"]:
        return "empty"
    if turn["num_chars"] >= LEAST_CHARS and turn["alphanumeric"] < LEAST_ALPHANUMERIC:
        return "symbols"
    if turn["num_words"] >= LEAST_WORDS and turn["repetition"] > MOST_REPETITION:
        return "loop"
    if turn["compression"] < LEAST_COMPRESSION:
        return "loop"
    return "salad" if is_salad(turn.get("base_nll"), turn.get("base_tokens", 0)) else ""


def is_salad(nll: float | None, num_tokens: int) -> bool:
    """Whether nats per token over so many tokens are more than language costs."""
    return nll is not None and nll * num_tokens > START_NATS + NATS_PER_TOKEN * num_tokens


def repetition(text: str, n: int = 4) -> float:
    """Share of word n-grams that stand earlier in the text too; 0 for a text shorter than n + 1 words."""
    words = text.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if len(grams) > 1 else 0.0


def compression(text: str) -> float:
    """Smallest ratio of compressed to plain bytes over windows of `WINDOW` bytes, `STEP` apart, and the last one.

    A shorter text is one window, and DEFLATE's few constant bytes then keep the ratio high. An empty text is 1.
    """
    data = text.encode("utf-8", "surrogatepass")
    starts = range(0, max(1, len(data) - WINDOW + 1), STEP)
    windows = [data[start : start + WINDOW] for start in starts] + [data[-WINDOW:]]
    return min((len(deflated(window)) / len(window) for window in windows if window), default=1.0)


def deflated(data: bytes) -> bytes:
    """Raw DEFLATE, without zlib's header and checksum."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return squeeze.compress(data) + squeeze.flush()


def is_alphanumeric(char: str) -> bool:
    """A letter, a digit, or a mark that belongs to a letter (Indic vowels, accents)."""
    return char.isalnum() or unicodedata.category(char).startswith("M")
