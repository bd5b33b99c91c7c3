"""The choices of a row, in the forms in which question sets hold them, each with the labels that the set gives it.

A list; `{"text": [...], "label": [...]}` (ARC) or a list of such pairs (OpenBookQA); `{"A": ..., "B": ...}`; any of them as
JSON, or as pandas writes them into a CSV cell (`['a', 'b']`, `['a' 'b']`, `{'text': array([...])}`); columns of their own
(A, B, ..; choice_a, ..; option1, ..; opa, ..). Three forms say which choice is right by where it stands: `correct_answer`
beside `distractor1`, .. (SciQ) or `incorrect_answer_1`, .. (GPQA), and `mc1_targets` (TruthfulQA). There the right one
always comes first, so the choices are put in an order drawn from the question's id.

>>> offered({"A": "iron", "B": "neon"}, "1").labels
('A', 'B')
"""

from __future__ import annotations

import ast
import io
import json
import math
import random
import re
import tokenize
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from misdirect.data.files import Row
from misdirect.text import shown

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CHOICES = ("choices", "options", "endings")
RARE_CHOICES = ("choice", "answers", "candidates")
COLUMN = re.compile(r"(?:(choice|option|opt|op|ending|answer|mc_answer)[ _.-]?)?([a-z]|[0-9]{1,2})", re.IGNORECASE)
RIGHT = ("correct_answer", "best_answer")
WRONG = re.compile(r"(?:distractor|incorrect_answer|wrong_answer)_?(\d{1,2})")
WRONG_LISTS = ("incorrect_answers", "distractors")
TARGETS = "mc1_targets"
NUMERALS = [str(i) for i in range(100)]


class Offered(NamedTuple):
    """`labels`: the choices' own names, or none; `loose`: they are numbers out of column names, counted from 1, which are
    seldom what the answer means. `right`: the right choice, where the form itself says it. `used`: the columns read."""

    choices: Any
    labels: tuple[str, ...] = ()
    loose: bool = False
    right: int | None = None
    used: tuple[str, ...] = ()


def normal(name: Any) -> str:
    """`Correct Answer` -> correct_answer."""
    return re.sub(r"[\s.-]+", "_", str(name).strip()).lower()


def first_of(row: Row, names: Sequence[str], loosely: bool = True) -> str | None:
    """The row's column for the first of `names` that it has; as written, else without case and spaces."""
    exact = next((name for name in names if name in row), None)
    if exact is not None or not loosely:
        return exact
    spelled = {normal(name): str(name) for name in reversed(row)}
    return next((spelled[normal(name)] for name in names if normal(name) in spelled), None)


def absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def offered(row: Row, identity: str) -> Offered | None:
    """What a row offers to choose from, or None. Its choices are not checked yet."""
    listed = first_of(row, CHOICES, loosely=False)
    table = choice_columns(row) if listed is None else None
    if table is not None:
        labels = tuple(table)
        return Offered([row[name] for name in table.values()], labels, labels[0] == "1", used=tuple(table.values()))
    listed = listed or first_of(row, (*CHOICES, *RARE_CHOICES))
    if listed is not None:
        return Offered(*split_labels(row[listed]), used=(listed,))
    if {"sol1", "sol2"} <= row.keys():  # PIQA, whose labels are 0 and 1
        return Offered([row["sol1"], row["sol2"]], used=("sol1", "sol2"))
    return right_and_wrong(row, identity) or one_target(row, identity)


def choice_columns(row: Row) -> dict[str, str] | None:
    """Label -> column where every choice has a column of its own: A, B, ..; choice_a, ..; option1, .. or option0, ..

    Empty cells at the end mean fewer choices. None where there are no two such columns.
    """
    found: dict[str, dict[str, str]] = {}
    for name in row:
        match = COLUMN.fullmatch(str(name))
        if match and (match[1] or match[2].isalpha()):
            found.setdefault((match[1] or "").lower(), {})[match[2].upper()] = str(name)
    for columns in found.values():
        for labels in (LETTERS, NUMERALS, NUMERALS[1:]):
            kept = next((i for i, label in enumerate(labels) if label not in columns), len(labels))
            while kept > 2 and absent(row[columns[labels[kept - 1]]]):
                kept -= 1
            if kept >= 2:
                return {label: columns[label] for label in labels[:kept]}
    return None


def right_and_wrong(row: Row, identity: str) -> Offered | None:
    """SciQ, GPQA and the like: the right answer in one column, the wrong ones in others or in a list."""
    right = first_of(row, RIGHT)
    listed = first_of(row, WRONG_LISTS)
    columns = {int(match[1]): str(name) for name in row if (match := WRONG.fullmatch(normal(name)))}
    used = [columns[number] for number in sorted(columns) if not absent(row[columns[number]])]
    wrong = [row[name] for name in used]
    if not wrong and listed is not None and isinstance(found := unpacked(row[listed]), list):
        wrong, used = found, [listed]
    if right is None or not wrong or absent(row[right]):
        return None
    return mixed([row[right], *wrong], 0, identity, (right, *used))


def one_target(row: Row, identity: str) -> Offered | None:
    """TruthfulQA's mc1: {"choices": [...], "labels": [1, 0, 0]}."""
    value = unpacked(row.get(TARGETS))
    if not isinstance(value, dict) or not {"choices", "labels"} <= value.keys():
        return None
    choices, labels = value["choices"], value["labels"]
    if not isinstance(choices, list) or not isinstance(labels, list) or len(labels) != len(choices):
        return None
    right = [i for i, label in enumerate(labels) if label == 1]
    return mixed(choices, right[0], identity, (TARGETS,)) if len(right) == 1 else None


def mixed(choices: Sequence[Any], right: int, identity: str, used: tuple[str, ...]) -> Offered:
    """In an order drawn from the question's id: the right one stands first in every row, and a letter would give it away."""
    order = list(range(len(choices)))
    random.Random(f"choices:{identity}").shuffle(order)
    return Offered([choices[i] for i in order], right=order.index(right), used=used)


def split_labels(value: Any) -> tuple[Any, tuple[str, ...]]:
    """(the choices, their own labels or none) of the forms in which sets hold them."""
    value = unpacked(value)
    if isinstance(value, dict) and "text" in value:  # ARC: {"text": [...], "label": [...]}
        return value["text"], label_texts(value.get("label"))
    if isinstance(value, dict) and is_numbered(value):
        kept = len(value)
        while kept > 2 and absent(list(value.values())[kept - 1]):  # fewer choices than others of the file
            kept -= 1
        return list(value.values())[:kept], tuple(str(label).strip().upper() for label in value)[:kept]
    if isinstance(value, list) and value and all(isinstance(v, dict) and {"text", "label"} <= v.keys() for v in value):
        return [v["text"] for v in value], label_texts([v["label"] for v in value])
    return value, ()


def is_numbered(value: Mapping[Any, Any]) -> bool:
    """Whether the keys are A, B, .. or a, b, .. or 0, 1, .. or 1, 2, .."""
    keys = [str(key).strip().upper() for key in value]
    return len(keys) >= 2 and any(keys == list(run[: len(keys)]) for run in (LETTERS, NUMERALS, NUMERALS[1:]))


def label_texts(labels: Any) -> tuple[str, ...]:
    """The labels as texts, or none where they are not all texts or numbers, or one comes twice."""
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str | int) for label in labels):
        return ()
    found = tuple(str(label).strip() for label in labels)
    return found if len(set(found)) == len(found) else ()


def unpacked(value: Any) -> Any:
    """A list or dict that a CSV cell holds as JSON, or as pandas writes it; anything else as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{", "(", "array(")):
        return value
    for read in (json.loads, literal):
        try:
            return read(value)
        except (ValueError, RecursionError, MemoryError, SyntaxError, tokenize.TokenError):
            continue
    return value


def literal(text: str) -> Any:
    """What Python's or numpy's own writing of a list or dict means, calling nothing.

    numpy puts no comma between elements, and Python takes `'a' 'b'` for one text: so commas are put in. Raises ValueError or
    SyntaxError for anything else.
    """
    parts: list[str] = []
    ends = False  # whether the token before was a value
    for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline):
        is_value = token.type in (tokenize.STRING, tokenize.NUMBER)
        if token.type in (tokenize.STRING, tokenize.NUMBER, tokenize.NAME, tokenize.OP):
            parts += [",", token.string] if is_value and ends else [token.string]
            ends = is_value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash that Python would warn of
        return plain(ast.parse(" ".join(parts), mode="eval").body)


def plain(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, str | int | float)):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [plain(part) for part in node.elts]
    if isinstance(node, ast.Dict):
        return {plain_key(key): plain(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array" and node.args:
        return plain(node.args[0])
    raise ValueError("not a list or dict of texts and numbers")


def plain_key(node: ast.expr | None) -> Any:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str | int):
        raise ValueError("a key that is neither text nor a number")
    return node.value


def parse_choices(value: Any, where: str) -> tuple[str, ...]:
    """The choices as texts; a number as it is written. Raises ValueError for what is no list of two or more."""
    texts = [written(choice) for choice in value] if isinstance(value, list | tuple) else None
    is_mixed = texts is not None and len({isinstance(choice, str) for choice in value}) > 1
    if texts is None or is_mixed or not all(text is not None and text.strip() for text in texts):
        raise ValueError(
            f"{where}: the choices are {short(value)}; expected a list of texts (in a CSV: JSON, or columns A, B, C, D)"
        )
    if len(texts) < 2:
        raise ValueError(f"{where} has {len(texts)} choice(s); expected 2 to {len(LETTERS)}, or more for cloze alone")
    return tuple(text for text in texts if text is not None)


def written(value: Any) -> str | None:
    """A text, number or truth value as text; None for anything else, and for numbers that are none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e300:
        return str(value)
    return None


def is_unwritten(value: Iterable[Any]) -> bool:
    """Whether the choices were numbers or truth values, so that an answer of that kind may be a choice itself."""
    return not isinstance(value, str) and not all(isinstance(choice, str) for choice in value)


def short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, a number too long
        text = type(value).__name__
    return shown(text if len(text) <= 60 else text[:57] + "...")
