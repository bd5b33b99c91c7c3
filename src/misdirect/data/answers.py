"""Which choice an answer means, decided once for a whole file.

A reading is tried on every row: a label of the choices, an index from 0 or from 1 (or a letter), a choice's text. Of those
that read all rows a label that is there wins; then the count of a set that is known by its columns (`FORMS`); then the
documented one, from 0. Where two of them differ and nothing decides, the file is refused with the `#` that does.

    answered(drafts)                 # the index of each row's right choice
    answered(drafts, "from-1")       # SOURCE#from-1
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from misdirect.data.choices import LETTERS, absent, short, written
from misdirect.progress import note_once

# Sets that are known by their columns, and what their numbers count from. A count that does not fit a file is not used.
FORMS: tuple[tuple[str, frozenset[str], str], ...] = (
    ("PIQA", frozenset({"goal", "sol1", "sol2"}), "from-0"),
    ("HellaSwag", frozenset({"ctx", "endings"}), "from-0"),
    ("SocialIQA", frozenset({"context", "answera", "answerb", "answerc"}), "from-1"),
    ("KMMLU", frozenset({"a", "b", "c", "d", "category"}), "from-1"),
    ("KMMLU", frozenset({"a", "b", "c", "d", "human_accuracy"}), "from-1"),
    ("Belebele", frozenset({"mc_answer1", "correct_answer_num"}), "from-1"),
)
# One letter or number, as it is also written: "(B)", "B.", "b)", "Option B", "opb", "2.0".
BARE = re.compile(
    r"((?:option|choice|answer|ending|opt|op)[\s:_.-]*)?[(\[]?\s*([a-z]|[0-9]{1,3})(?:\.0+)?\s*[)\].:]*",
    re.IGNORECASE | re.ASCII,
)
LETTERED = re.compile(r"[(\[]?([a-z])[)\].:]+\s*(\S.*)", re.IGNORECASE | re.ASCII | re.DOTALL)  # "B. iron"
MISSING = ("-1", "-1.0", "nan", "none", "null", "n/a", "<na>")  # what splits without answers have in their place
TRUTH = {True: ("true", "yes"), False: ("false", "no")}
UNLIKELY = 1e-3  # a chance: files without a 0 are counted from 0 down to it
BY_LABEL, FROM_0, FROM_1, BY_TEXT = "by-label", "from-0", "from-1", "by-text"
ALONE = ("", FROM_0)  # the form of a row that is read without its file: a number counts from 0, as documented


class Draft(NamedTuple):
    """A row whose answer is not read yet. `labels`, `loose`, `right`: see `misdirect.data.choices.Offered`; `unwritten`: the
    choices were not texts; `form`: the set's name in `FORMS` and its count; `left_out`: columns of text that are not read."""

    where: str
    id: str
    question: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    loose: bool
    unwritten: bool
    right: int | None
    answer: Any
    form: tuple[str, str] | None
    subject: str
    support: str
    context: str
    left_out: tuple[str, ...]


def form_of(columns: set[str]) -> tuple[str, str] | None:
    return next(((name, count) for name, needed, count in FORMS if needed <= columns), None)


def answered(drafts: Sequence[Draft], source: str, rule: str = "") -> list[int]:
    """The index of each row's right choice. `rule`: the reading named behind the SOURCE's #.

    Where no reading reads all rows, the one that reads most names the first row that it cannot read.
    """
    names = [rule] if rule else [name for name in READINGS if name != FROM_1 or may_count_from_1(drafts)]
    readings = {BY_LABEL: either(labeled)} if rule == BY_LABEL else READINGS
    read = {name: [readings[name](item) for item in drafts] for name in names}
    whole = [name for name in names if None not in read[name]]
    name = chosen(drafts, whole) if whole else max(names, key=lambda n: sum(index is not None for index in read[n]))
    out = []
    for item, index in zip(drafts, read[name], strict=True):
        if index is None:
            raise ValueError(f"{item.where}{complaint(item, rule)}")
        out.append(index)
    if name != count_of_form(drafts):
        check_agreement(drafts, name, {other: read[other] for other in whole})
    if not rule:
        check_count(drafts, name, source)
    return out


def may_count_from_1(drafts: Sequence[Draft]) -> bool:
    """Choices without labels of their own have the documented form: there an index is from 0 unless the user says else."""
    return all(item.form != ALONE and (item.labels or item.form) for item in drafts)


def count_of_form(drafts: Sequence[Draft]) -> str:
    forms = {item.form for item in drafts}
    form = forms.pop() if len(forms) == 1 else None
    return form[1] if form else ""


def chosen(drafts: Sequence[Draft], whole: Sequence[str]) -> str:
    """A label that is there in every row, the count of the set's form, the first reading."""
    if BY_LABEL in whole and all(labeled(item) is not None and not item.loose for item in drafts):
        return BY_LABEL
    count = count_of_form(drafts)
    return count if count in whole else whole[0]


def check_agreement(drafts: Sequence[Draft], name: str, read: dict[str, list[int | None]]) -> None:
    """Raises ValueError where another reading of the whole file gives another answer, and no label says which is meant."""
    for row, item in enumerate(drafts):
        sure = name == BY_LABEL and not item.loose and labeled(item) is not None
        for other in read:
            if read[other][row] != read[name][row] and not sure:
                meant = {typed(item, each): item.choices[read[each][row] or 0] for each in read}
                raise ValueError(
                    f"{item.where}: the answer {short(item.answer)} can be read as choice {read[name][row]} or "
                    f"{read[other][row]} counted from 0; expected letters in the whole file, or "
                    + ", ".join(f"SOURCE#{each} where it is {short(choice)}" for each, choice in meant.items())
                )


def typed(item: Draft, name: str) -> str:
    """What to put behind the # for a reading; `by-label` without a label is the count from 0."""
    return FROM_0 if name == BY_LABEL and labeled(item) is None else name


def check_count(drafts: Sequence[Draft], name: str, source: str) -> None:
    """Says from what numbers are counted where it is not seen. Raises ValueError where the documented 0 is all but ruled out."""
    numbers = [(item, token(item.answer) or "") for item in drafts if labeled(item) is None and item.right is None]
    numbers = [(item, found) for item, found in numbers if found.isdigit()]
    if not numbers or name == BY_TEXT:
        return
    if name == FROM_1:
        form = numbers[0][0].form
        note_once(
            f"{source}: answers are counted from 1" + (f", as {form[0]}'s are" if form and form[1] == FROM_1 else "")
        )
    elif all(item.form is None and int(found) for item, found in numbers):
        if math.prod(1 - 1 / len(item.choices) for item, _ in numbers) < UNLIKELY:
            raise ValueError(
                f"{source}: none of {len(numbers)} answers is 0, though an index counts from 0; expected SOURCE#{FROM_1} where "
                f"they are counted from 1, else SOURCE#{FROM_0}"
            )
        note_once(f"{source}: no answer is 0; they are counted from 0. Where they are counted from 1: SOURCE#{FROM_1}")


def token(value: Any) -> str | None:
    """The letter or number that an answer is, bare."""
    if isinstance(value, str):
        match = BARE.fullmatch(value.strip())
        return match[2] if match else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1000 or value != int(value):
        return None
    return str(int(value))


def labeled(item: Draft) -> int | None:
    """One of the choices' own labels, as it is written or bare."""
    for value in (item.answer.strip() if isinstance(item.answer, str) else None, token(item.answer)):
        if value is not None and value in item.labels:
            return item.labels.index(value)
    return None


def by_label(item: Draft) -> int | None:
    """A label; without labels an index or letter. A number beside numbered labels is one of them, or no label at all."""
    found = labeled(item)
    numbered = all(label.isdigit() for label in item.labels)
    if found is not None or item.loose or (item.labels and numbered and (token(item.answer) or "").isdigit()):
        return found
    return by_count(item, 0)


def by_count(item: Draft, first: int) -> int | None:
    """first .. first + C - 1, or a letter."""
    found = token(item.answer)
    if found is None or (item.loose and isinstance(item.answer, str) and names_column(item.answer)):
        return None
    index = int(found) - first if found.isdigit() else LETTERS.index(found.upper())
    return index if 0 <= index < len(item.choices) else None


def names_column(value: str) -> bool:
    """Whether it is "option2", not "2"."""
    match = BARE.fullmatch(value.strip())
    return match is not None and bool(match[1])


def by_text(item: Draft) -> int | None:
    """The text of exactly one choice, also behind its letter."""
    same = same_text(item)
    if not same and isinstance(item.answer, str) and (match := LETTERED.fullmatch(item.answer.strip())):
        index = LETTERS.index(match[1].upper())
        return index if index < len(item.choices) and item.choices[index].strip() == match[2] else None
    return same[0] if len(same) == 1 else None


def same_text(item: Draft) -> list[int]:
    """The choices that are the answer's text. A number is a text only where the choices were numbers too."""
    value = item.answer
    if isinstance(value, bool):
        wanted, choices = set(TRUTH[value]), [choice.strip().lower() for choice in item.choices]
    else:
        text = value.strip() if isinstance(value, str) else written(value) if item.unwritten else None
        wanted = set() if text is None else {text}
        if item.unwritten and isinstance(value, int | float) and abs(value) < 2**53 and value == int(value):
            wanted |= {str(int(value)), str(float(value))}  # pandas writes 3 as 3.0 where a column lacks a number
        choices = [choice.strip() for choice in item.choices]
    return [i for i, choice in enumerate(choices) if choice in wanted]


def either(reading: Callable[[Draft], int | None]) -> Callable[[Draft], int | None]:
    """A form that says itself which choice is right needs no reading."""
    return lambda item: reading(item) if item.right is None else item.right


READINGS: dict[str, Callable[[Draft], int | None]] = {
    BY_LABEL: either(by_label),
    FROM_0: either(lambda item: by_count(item, 0)),
    FROM_1: either(lambda item: by_count(item, 1)),
    BY_TEXT: either(by_text),
}


def complaint(item: Draft, rule: str) -> str:
    """What is wrong with an answer that no reading, or not the one that was named, can read."""
    count, value = len(item.choices), item.answer
    letters = f"A to {LETTERS[min(count, len(LETTERS)) - 1]}"
    numbers = f"1 to {count}" if rule == FROM_1 else f"0 to {count - 1}"
    expected = {
        BY_TEXT: f"expected one choice's text, as SOURCE#{rule} says",
        BY_LABEL: f"expected one of the labels {', '.join(item.labels[:8]) or '(there are none)'}, as SOURCE#{rule} says",
    }.get(rule, f"expected {numbers} or {letters}" + (f", as SOURCE#{rule} says" if rule else ", or one choice's text"))
    found, same = token(value), same_text(item)
    if absent(value) or str(value).strip().lower() in MISSING or value == []:
        return f" has no answer ({short(value)}); {expected}. A split without answers cannot be scored"
    if len(same) > 1:
        return f": the answer {short(value)} is the text of {len(same)} choices; expected the letter of one"
    if isinstance(value, bool):
        return f": the answer {short(value)} is a truth value, and no choice says true or false; {expected}"
    if found or (isinstance(value, int) or (isinstance(value, str) and value.strip().lstrip("+-").isdecimal())):
        hint = f"; where answers are counted from 1: SOURCE#{FROM_1}" if found == str(count) and not rule else ""
        return f": the answer {short(value)} is out of range; {expected}{hint}"
    return f": the answer {short(value)} is not an index, a letter or one choice's text; {expected}"
