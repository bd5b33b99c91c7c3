"""Attacks one by one, by what they bring back and what they cost, and what was not run.

An attack that was not run, or whose control failed, says nothing; it is never written as one that was resisted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.content.form import Cell
from misdirect.reporting.load.audit import (
    DONE,
    FAILED,
    INCONCLUSIVE,
    NOT_RUN,
    Attempt,
    Audit,
    Measured,
    at,
    headline,
)
from misdirect.reporting.wording import NONE, SPACE, Number
from misdirect.runs.stored import NOWHERE, Point

PERCENT = SPACE + "%"

# access -> what an attacker must have, in a word or two, and who has it
ACCESS: Mapping[str, tuple[str, str]] = {
    "prompt": ("a prompt", "Types text and reads the answer: every user of a chat page or an API has this."),
    "gradients": (
        "gradients",
        "Holds a copy of the weights to compute with, and attacks through what is fed in; the model stays as it is. "
        "Everybody has this with open weights. A text found in this way can then be typed elsewhere.",
    ),
    "weights": (
        "the weights",
        "Changes the weights or what flows between blocks: everybody with open weights, and whoever may finetune "
        "a model through an API that gives the attacker's own copy back.",
    ),
}
ORDER = (DONE, INCONCLUSIVE, FAILED, NOT_RUN)


class Line(NamedTuple):
    """One attack on one set, as text."""

    name: str
    title: str
    note: str
    access: str
    status: str  # "" for done, else what stands in place of the numbers
    share: Number
    after: str
    control: str
    general: Cell  # below it what it was before, and where or why it is of another point
    degenerate: str
    seconds: str
    tokens: str

    @property
    def unrun(self) -> bool:
        return self.status.startswith(NOT_RUN)


# ------------------------------------------------------------------------------------------------ numbers


def share(x: float | None) -> str:
    """`64 %`: whole per cent, since a few dozen questions carry no more."""
    if x is None:
        return NONE
    return f"{100 * x:.0f}{PERCENT}".replace("-0" + SPACE, "0" + SPACE).replace("-", "\u2212")


def share_of(row: Measured | None) -> Number:
    """A share with its interval."""
    ends = wording.ends(row, lambda end: share(end).removesuffix(PERCENT))
    return Number(share(row.value if row else None), *ends, PERCENT)


def bracketed(number: Number) -> str:
    """`61 % [47 to 73 %]`."""
    return f"{number.text} [{number.interval}]" if number.interval else number.text


def right(row: Measured | None) -> str:
    return NONE if row is None else wording.value("accuracy", row.value)


def short_seconds(seconds: float | None) -> str:
    return NONE if seconds is None else wording.duration(seconds)


def tokens_of(count: float | None) -> str:
    """`31,000`, three digits of it; none where an attack reads nothing of its own."""
    return NONE if count is None else "none" if count < 1 else f"{float(f'{count:.3g}'):,.0f}"


UNITS = {"shots": "examples", "words": "added words", "rates": "of the letters", "bits": "bits", "shares": "of the weights",
         "shares_of_std": "of the weights' spread", "epsilons": "median norms"}  # fmt: skip
FAMILY_UNITS = {
    "perturbation": "median norms",
    "prune": "of the weights",
    "noise": "of the weights' spread",
    "quantise": "bits",
}


def unit(each: Attempt) -> str:
    """What the attack's budget counts, as far as its settings tell."""
    return next((UNITS[key] for key in each.settings if key in UNITS), FAMILY_UNITS.get(each.family, ""))


def place(point: Point, each: Attempt | None) -> str:
    """`step 60`, `block 7`, `4 bits`, or the name of the variant whose number stands for the budget."""
    step, block, budget = point
    parts = [f"step {step:g}"] if step is not None else []
    parts += [f"block {block:g}"] if block is not None else []
    if budget is not None:
        parts.append(budget_in_words(budget, each))
    return ", ".join(parts)


def budget_in_words(budget: float, each: Attempt | None) -> str:
    variants = each.settings.get("variants") if each else None
    if isinstance(variants, list) and budget == int(budget) and 0 <= budget < len(variants):
        return str(variants[int(budget)]).replace("-", " ")
    named = unit(each) if each else ""
    return f"{budget:g} {named}" if named else f"budget {budget:g}"


# ------------------------------------------------------------------------------------------------ attack by attack


def access_word(made: Attempt) -> str:
    """`the weights, with the base model`."""
    word = ACCESS[made.access][0] if made.access in ACCESS else made.access or NONE
    return f"{word}, with {made.holds}" if made.holds else word


def lines(audit: Audit, name: str) -> list[Line]:
    """Attacks that could bring knowledge back: what comes back first, then those that say nothing."""
    return [line(audit, each, name) for each in ranked(audit, name)]


def ranked(audit: Audit, name: str) -> list[Attempt]:
    def key(each: Attempt) -> tuple[int, float]:
        found = each.share(name) if each.status == DONE else None
        place = ORDER.index(each.status) if each.status in ORDER else len(ORDER)
        return place, -found.value if found else 1e9

    return sorted((each for each in audit.attempts if each.recovers), key=key)


def line(audit: Audit, each: Attempt, name: str) -> Line:
    found = each.share(name)
    after = headline(each.accuracies("unlearned", name))
    point = after.point if after else NOWHERE
    told = each.status == DONE and found is not None and audit.removed(name)
    return Line(
        each.name,
        each.title,
        note_of(each, name, point),
        access_word(each),
        "" if told else status_of(each, audit.removed(name)),
        share_of(found) if told else Number(),
        right(after),
        right(control_of(each, name, point)),
        general(audit, each, point),
        degenerate(each),
        short_seconds(each.cost(name, "attack_seconds")),
        tokens_of(each.cost(name, "attack_tokens")),
    )


def status_of(each: Attempt, removed: bool = True) -> str:
    """What stands where the share would: `not run (needs 12 minutes)`."""
    if each.status == DONE:
        return "not measured on this set" if removed else "nothing was removed"
    if each.status == NOT_RUN:
        return f"not run ({each.why})" if each.why else "not run"
    if each.status == INCONCLUSIVE:
        return f"inconclusive ({each.why or 'its control failed on the base'}): says nothing"
    return f"{each.status} ({each.why})" if each.why else each.status


def note_of(each: Attempt, name: str, point: Point) -> str:
    """Where on its budget the attack is best, when half is back, and what its texts give away."""
    told, half = each.settings.get(GIVEN_AWAY), half_back(each, name)
    parts = (
        [f"best at {place(point, each)}"] if each.status == DONE and len(each.accuracies("unlearned", name)) > 1 else []
    )
    parts += [f"half is back at step {half:g}"] if half is not None else []
    parts += [f"{int(told)} of its texts state a tested fact"] if told else []
    return "; ".join(parts)


GIVEN_AWAY = "texts_that_state_a_tested_fact"


def half_back(each: Attempt, name: str) -> float | None:
    rows = [row.value for row in each.rows("unlearned", "recovered", name) if row.metric == "steps_to_half"]
    return rows[0] if rows and each.status == DONE else None


def control_of(each: Attempt, name: str, point: Point) -> Measured | None:
    """The base under the same attack, at the same point."""
    rows = each.accuracies("base", name)
    return at(rows, point) or headline(rows)


def general(audit: Audit, each: Attempt, point: Point) -> Cell:
    """Mean accuracy on the sets to be kept after the attack; below it what it was before, and where it was taken if not at
    `point`: `41.2 %`, `before 43.0 %`, `at step 60`."""
    after = [(general_row(each.accuracies("unlearned", name), point), name) for name in audit.retained]
    pairs = [(row.value, audit.untouched("unlearned", name)) for row, name in after if row]
    if not pairs:
        return unchanged(audit, each)
    text = wording.value("accuracy", sum(value for value, _ in pairs) / len(pairs))
    before = [x for _, x in pairs if x is not None]
    taken = next(row.point for row, _ in after if row)
    told = [f"before {wording.value('accuracy', sum(before) / len(before))}"] if len(before) == len(pairs) else []
    told += [f"at {place(taken, each)}"] if taken != point and place(taken, each) else []
    return Cell(text, told)


def unchanged(audit: Audit, each: Attempt) -> Cell:
    """Of an attack through what is fed in, where nothing else was asked: the model is what it was."""
    found = [x for name in audit.retained if (x := audit.untouched("unlearned", name)) is not None]
    if each.access not in ("prompt", "gradients") or each.status != DONE or not found:
        return Cell()
    return Cell(wording.value("accuracy", sum(found) / len(found)), ["model unchanged"])


def general_row(rows: Sequence[Measured], point: Point) -> Measured | None:
    """At the attack's own point, else at the last one measured."""
    return at(rows, point) or (rows[-1] if rows else None)


def degenerate(each: Attempt) -> str:
    """Of the answers in words; none where the base has not read them, since salad is then not told from language."""
    for name in each.sets("generation"):
        for row in each.rows("unlearned", "generation", name):
            if row.metric == "degenerate_share" and not each.results["unlearned", "generation", name].records:
                return share(row.value)
    return NONE
