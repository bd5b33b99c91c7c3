"""Multiple-choice questions: SOURCE -> checked `Question`s. How they are asked stands in `misdirect.data.templates`.

A row holds a question, choices and an answer under the names of the common sets (`QUESTION`, `ANSWER`, and
`misdirect.data.choices` for the forms that choices have). Which choice an answer means is decided once for a whole file
(`misdirect.data.answers`). A text that belongs to the question (`READ`: article, context, ..) is asked with it; a `support`
or `passage` is taken for the source of the fact and not asked, and that is said.

Options stand behind a #: `FILE#from-1`, `#from-0`, `#by-label`, `#by-text` say how answers are meant; `#read=COLUMN` puts a
column's text above the question, `#fact=COLUMN` makes it the fact's source; `#no-header` is MMLU's original CSV.

>>> read_questions("shelf/exam.csv#from-1")      # a list of Question
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from misdirect.data.answers import ALONE, READINGS, Draft, answered, form_of
from misdirect.data.choices import CHOICES as CHOICES
from misdirect.data.choices import (
    LETTERS,
    Offered,
    absent,
    first_of,
    is_unwritten,
    normal,
    offered,
    parse_choices,
    short,
)
from misdirect.data.files import Group, Row, bare_rows
from misdirect.data.sources import file_exists, find_files, read_groups, split_column
from misdirect.data.splits import QUESTIONS, Order
from misdirect.progress import note_once
from misdirect.text import is_unicode, shown

QUESTION = ("question", "query", "stem", "prompt", "sentence", "ctx", "question_stem", "goal", "startphrase", "problem")
ANSWER = (
    "answer", "answerKey", "answer_key", "answer_idx", "answer_index", "correct", "correct_answer", "label", "gold", "cop",
    "correct_option", "correct_choice", "correct_answer_id", "correct_answer_num", "correct_index", "correct_idx",
    "gold_label", "target",
)  # fmt: skip
SUBJECT = ("subject", "topic")
SUPPORT = ("support", "passage")
READ = frozenset(
    {
        "article", "background", "context", "ctx", "dialog", "dialogue", "flores_passage", "narrative", "paragraph", "premise",
        "scenario", "situation", "story",
    }
)  # fmt: skip
# About a question, and no part of it.
BESIDE = frozenset(
    {
        "comment", "comments", "cot", "cot_content", "ctx_a", "ctx_b", "exp", "explanation", "rationale", "reasoning",
        "reference", "references", "solution", "source", "subject", "topic", "url", "category", "mc1_targets", "mc2_targets",
    }
)  # fmt: skip
SAID = frozenset({*SUPPORT, "document", "fact", "fact1", "hint", "lecture", "text"})  # said however short they are
MIN_TEXT = 20  # characters from which on a column is called a text
ENDS = re.compile(r"_(?:test|val|dev)$")  # of the names of MMLU's files


@dataclass(frozen=True)
class Question:
    """One multiple-choice item; `answer` is the index of the right choice.

    `support` states the fact, where the set has such a text: relearning's text, never part of a prompt. `context` is what
    the question is about (an article, a situation): it stands above the question in every prompt.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    support: str = ""
    context: str = ""


class Options(NamedTuple):
    """What stands behind the # of a SOURCE. `rule` is one of `answers.READINGS`, or empty."""

    rule: str = ""
    header: bool = True
    read: tuple[str, ...] = ()
    fact: tuple[str, ...] = ()


def read_questions(source: str, order: Order = QUESTIONS) -> list[Question]:
    """The questions of SOURCE; a row without `id` is named by its number from 0. `order`: which split, where there are several.

    Raises ValueError naming the row for a missing column, fewer than two choices, an answer that is not one of them or that
    can be read in two ways, and an id that comes twice.
    """
    name, options = parse_source(source)
    drafts: list[Draft] = []
    for group in read_groups(name, order) if options.header else headless_groups(name):
        first = len(drafts)
        rows = enumerate(group.rows, first)
        drafts += [draft(row, f"{group.where}, row {number - first + 1}", number, options) for number, row in rows]
    if not drafts:
        raise ValueError(f"{shown(source)} is empty; expected at least one row")
    seen: set[str] = set()
    for item in drafts:
        if item.id in seen:
            raise ValueError(
                f"{item.where}: the id {shown(item.id, 40)!r} is already taken; expected one id a question"
            )
        seen.add(item.id)
    answers = answered(drafts, shown(name), options.rule)
    left_out = list(dict.fromkeys(column for item in drafts for column in item.left_out))
    if left_out:
        say_left_out(shown(name), left_out)
    twins = sum(item.choices.count(item.choices[answer]) > 1 for item, answer in zip(drafts, answers, strict=True))
    if twins:
        note_once(
            f"{shown(name)}: the right choice stands twice in {twins} question(s); only the one that is named counts"
        )
    return [finished(item, answer) for item, answer in zip(drafts, answers, strict=True)]


def parse_question(row: Row, where: str, number: int) -> Question:
    """One row alone, where a number counts from 0. Raises ValueError, beginning with `where`, for what is not a question."""
    item = draft(row, where, number - 1, Options())
    if item.form is None and not item.loose:
        item = item._replace(form=ALONE)
    return finished(item, answered([item], where)[0])


def finished(item: Draft, answer: int) -> Question:
    return Question(item.id, item.question, item.choices, answer, item.subject, item.support, item.context)


def parse_source(source: str) -> tuple[str, Options]:
    """`SOURCE#OPTION#OPTION` -> (SOURCE, options). Raises ValueError for an option that is none."""
    name, said = split_column(source)
    options = Options()
    for part in [] if said is None else said.split("#"):
        key, _, column = part.partition("=")
        if part in READINGS and not options.rule:
            options = options._replace(rule=part)
        elif part == "no-header":
            options = options._replace(header=False)
        elif key == "read" and column:
            options = options._replace(read=(*options.read, normal(column)))
        elif key == "fact" and column:
            options = options._replace(fact=(*options.fact, normal(column)))
        else:
            raise ValueError(
                f"{shown(source)} names the column {shown(part, 40)!r}; expected questions without #COLUMN, or with one of "
                f"{', '.join('#' + rule for rule in READINGS)}, #read=COLUMN, #fact=COLUMN, #no-header"
            )
    return name, options


def say_left_out(source: str, columns: Sequence[str]) -> None:
    named = ", ".join(shown(column, 40) for column in columns[:5]) + (", ..." if len(columns) > 5 else "")
    note_once(
        f"{source}: asked without the text of {named}; SOURCE#read={shown(columns[0], 40)} puts it above the question"
    )


def headless_groups(source: str) -> Iterator[Group]:
    """CSV files as MMLU's own are: question, choices, answer by position; the subject in the file's name."""
    if not file_exists(source):
        raise ValueError(f"{shown(source)}#no-header is not a local file or folder; expected a .csv or .tsv file")
    for path in find_files(source, QUESTIONS):
        subject = (
            ENDS.sub("", path.name.split(".")[0]).replace("_", " ") if ENDS.search(path.name.split(".")[0]) else ""
        )
        yield Group(shown(path), headless_rows(path, subject))


def headless_rows(path: Path, subject: str) -> Iterator[Row]:
    for number, cells in enumerate(bare_rows(path), 1):
        if not 4 <= len(cells) <= 2 + len(LETTERS):
            raise ValueError(f"{shown(path)}, row {number} has {len(cells)} fields; expected question, choices, answer")
        yield {
            "question": cells[0],
            **dict(zip(LETTERS, cells[1:-1], strict=False)),
            "answer": cells[-1],
            "subject": subject,
        }


def draft(row: Row, where: str, number: int, options: Options) -> Draft:
    row = flattened(row)
    identity = str(number) if row.get("id") is None else scalar(row["id"], f"{where}: the id")
    asked, answer, offer = first_of(row, QUESTION), first_of(row, ANSWER), offered(row, identity)
    is_told = offer is not None and offer.right is not None
    missing = [
        part
        for part, found in (("question", asked), ("choices", offer), ("answer", answer or (is_told or None)))
        if found is None
    ]
    if asked is None or offer is None or missing:
        headless = "; a CSV without a header: SOURCE#no-header" if re.search(r"\.[ct]sv\b", where.lower()) else ""
        raise ValueError(
            f"{where} lacks {', '.join(missing)}; expected the columns question, choices, answer{headless}"
        )
    question = row[asked]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: the question is {short(question)}; expected text")
    choices = parse_choices(offer.choices, where)
    used = {asked, answer, *offer.used}
    context = read_text(row, where, options, used, question)
    fact = [name for name in row if normal(name) in options.fact] or [n for n in SUPPORT if n not in options.read]
    support = next((row[name] for name in fact if isinstance(row.get(name), str)), "").strip()
    names = [first_of(row, [name], loosely=asked not in QUESTION) or name for name in SUBJECT]
    subject = next((scalar(row[name], f"{where}: the {name}") for name in names if not absent(row.get(name))), "")
    if not all(map(is_unicode, (question, *choices, identity, subject, support, context))):
        raise ValueError(f"{where} holds half a surrogate pair; expected Unicode text")
    left_out = unread(row, options, used, "\n".join([context, question, *choices]))
    return Draft(
        where, identity, question, choices, labels_of(offer, choices), offer.loose, is_unwritten(offer.choices), offer.right,
        alone(row.get(answer)) if answer else None, form_of(set(map(normal, row))), subject, support, context, left_out,
    )  # fmt: skip


def labels_of(offer: Offered, choices: Sequence[str]) -> tuple[str, ...]:
    return offer.labels if len(offer.labels) == len(choices) else ()


def alone(value: Any) -> Any:
    """The only element of a list, as some sets hold an answer."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def flattened(row: Row) -> Row:
    """OpenBookQA's own file holds `stem` and `choices` inside `question`; HellaSwag's context may be in two parts."""
    nested = row.get("question")
    if isinstance(nested, dict) and "stem" in nested:
        row = {**{name: value for name, value in row.items() if name != "question"}, **nested}
    if "ctx" not in row and isinstance(row.get("ctx_a"), str):
        row = {**row, "ctx": f"{row['ctx_a']} {row.get('ctx_b') or ''}".strip()}
    return row


def read_text(row: Row, where: str, options: Options, used: set[str | None], question: str) -> str:
    """The text of the columns that are read with the question, those of `READ` and those that the user names."""
    missing = {*options.read, *options.fact} - set(map(normal, row))
    if missing:
        raise ValueError(
            f"{where} has no column {shown(min(missing), 40)!r}; expected one of {shown(', '.join(map(str, row)), 120)}"
        )
    texts = []
    for name, value in row.items():
        key = normal(name)
        if key in options.fact or (key not in options.read and (key not in READ or name in used)):
            continue
        text = "\n".join(value) if is_lines(value) else value
        if isinstance(text, str) and text.strip() not in question:
            texts.append(text.strip())
        elif not isinstance(text, str) and key in options.read and not absent(value):
            raise ValueError(f"{where}: {shown(name, 40)!r} is {short(value)}; expected text, or a list of texts")
    return "\n".join(texts)


def is_lines(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(line, str) for line in value)


def unread(row: Row, options: Options, used: set[str | None], shown_text: str) -> tuple[str, ...]:
    """The columns with a text that no prompt shows, those apart that are known to be about the question."""
    found = []
    for name, value in row.items():
        key, text = normal(name), "\n".join(value) if is_lines(value) else value
        if name in used or key in BESIDE or key in options.fact or key in map(normal, ANSWER):
            continue
        is_nested = key in READ and isinstance(value, dict | list) and bool(value) and not is_lines(value)
        is_text = isinstance(text, str) and (is_prose(text) or key in SAID) and text.strip() not in shown_text
        if is_nested or is_text:
            found.append(str(name))
    return tuple(found)


def is_prose(text: str) -> bool:
    """Not a number, name or address."""
    text = text.strip()
    return len(text) >= MIN_TEXT and (" " in text or not text.isascii())


def scalar(value: Any, what: str) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{what} is {short(value)}; expected text or a number")
    return str(value)
