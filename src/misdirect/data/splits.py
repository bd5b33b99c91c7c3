"""Splits of a data set: what they are called, and which one is read where none was named.

>>> pick(["test", "dev", "auxiliary_train"], QUESTIONS)
'test'
"""

from __future__ import annotations

import re
from collections.abc import Iterable

Order = tuple[str, ...]
TEXT: Order = ("train",)
QUESTIONS: Order = ("test", "validation")
EXAMPLES: Order = ("dev", "validation", "train")  # answered ones, to be shown before a question
PROMPTS: Order = ("test", "validation", "train")
SAME: tuple[Order, ...] = (
    ("train", "training"),
    ("validation", "valid", "val", "dev", "development"),
    ("test", "testing", "eval", "evaluation"),
)
WORDS = frozenset(word for words in SAME for word in words) | {"auxiliary_train"}
BORDER = re.compile(r"[-_. ]+|(?<=[a-z])(?=[0-9])")


def pick(splits: Iterable[str], order: Order) -> str | None:
    """The first of `order` that is there, by its own name or a usual other one; else the only split there is, or None."""
    there = list(dict.fromkeys(splits))
    for wanted in order:
        for name in (wanted, *next((words for words in SAME if wanted in words), ())):
            if found := next((split for split in there if split.casefold() == name), None):
                return found
    return there[0] if len(there) == 1 else None


def word_of(name: str) -> str | None:
    """The split that a file's name begins or ends with: `test`, `train-v2`, `biology_dev`, `test2`."""
    text = name.casefold()
    if text in WORDS:
        return text
    if re.search(r"(^|[-_. ])auxiliary_train([-_. ]|$)", text):
        return "auxiliary_train"
    parts = [part for part in BORDER.split(text) if part and not part.isdigit()]
    return next((part for part in (parts[-1:] + parts[:1]) if part in WORDS), None)
