"""An audit in words and tables: the headline, attacks by what they bring back and what they cost, and what was not run.

An attack that was not run, or whose control failed, says nothing; it is never written as one that was resisted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.content.form import Cell, in_line
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
EXPLAINED = (
    "The strongest attack is chosen on one half of the tested questions and reported on the other, and the other way round, "
    "so that the number is not the luckiest of many."
)


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


# ------------------------------------------------------------------------------------------------ the headline


class Headline(NamedTuple):
    """What stands on top for one forgotten set."""

    set: str
    big: str
    sentence: str
    small: list[str]


def headlines(audit: Audit) -> list[Headline]:
    return [headline_of(audit, name) for name in audit.forgotten]


def headline_of(audit: Audit, name: str) -> Headline:
    removed = removed_in_words(audit, name)
    if not audit.removed(name):
        text = f"{name}: nothing was removed beyond chance{removed}, so nothing can come back."
        return Headline(name, "nothing was removed", text, [])
    found, finished = audit.share(name), finished_attacks(audit, name)
    if found is None:
        known = "" if not finished else " that was chosen on one half of the questions and measured on the other"
        text = (
            f"{name}: no attack has been run that could bring knowledge back{known}. This says nothing about the model."
        )
        if finished and all(each.settings.get(GIVEN_AWAY) for each in finished):
            text = (
                f"{name}: the attacks that were run train on text that states tested facts, so what comes back under them may "
                "have been taught. No other attack has been run."
            )
        return Headline(name, "not attacked", text, [])
    names, prices = strongest_in_words(audit, name)
    text = f"{name}: {bracketed(share_of(found))} of what was removed comes back under {names}"
    text += f"; price: {prices}." if prices else "."
    small = []
    if found.low is not None and found.low <= 0:
        small.append(
            "The interval holds 0: this cannot be told from nothing coming back under the attacks that were run. "
            "Another attack may do better."
        )
    small += beside(audit, name)
    if removed:
        small.append(f"What was removed: {removed.strip(' ():')}.")
    small.append(f"{wording.counted(len(finished), 'attack')} run to the end that could bring knowledge back.")
    return Headline(name, share(found.value), text, small)


def beside(audit: Audit, name: str) -> list[str]:
    """What must be read beside the headline: the base under the same attack, and what is left of the model after it."""
    said = []
    right = audit.strongest_config(name).right
    before, after = right.base, right.base_attacked
    ceiling, gap = (audit.strongest_row(name, metric) for metric in ("recovered_share_base", "gap_closed"))
    if before is not None and after is not None:
        text = f"The base under the same attack: {wording.value('accuracy', before)} to {wording.value('accuracy', after)} right"
        if ceiling is not None:
            text += f"; on the scale of the headline it scores {share(ceiling.value)}, which is what complete recovery would"
        said.append(text + ".")
    if gap is not None:
        text = (
            f"Over all tested questions the attack closes {bracketed(share_of(gap))} of the gap between the unlearned "
        )
        said.append(text + "model and the base under the same attack.")
    chosen = audit.chosen(name)
    made = audit.attempt(chosen[0][0]) if chosen else None
    if made is not None:
        kept, odd = general(audit, made, chosen[0][1]), degenerate(made)
        parts = [f"general ability {in_line(kept)}" if kept.value != NONE else ""]
        parts += [f"answers that are not language {odd}" if odd != NONE else ""]
        if any(parts):
            which = "it" if len({attack for attack, _ in chosen}) == 1 else made.title
            said.append(f"After {which}: {'; '.join(part for part in parts if part)}.")
    return said


def removed_in_words(audit: Audit, name: str) -> str:
    """` (base 64.2 %, unlearned 31.2 %: 33.0 points [25.1 to 40.9])`, as far as it is known."""
    base, after = audit.untouched("base", name), audit.untouched("unlearned", name)
    both = [f"{m} {wording.value('accuracy', x)}" for m, x in (("base", base), ("unlearned", after)) if x is not None]
    change = audit.change(name)
    value, low, high = change.value, change.low, change.high
    drop = f"{points(value)} points" if value is not None else ""
    drop += f", 95 % interval {points(low)} to {points(high)}" if drop and low is not None and high is not None else ""
    parts = [", ".join(both) + (" right" if both else ""), drop]
    return f" ({': '.join(part for part in parts if part)})" if any(parts) else ""


def points(x: float | None) -> str:
    return "" if x is None else wording.signed(100 * x, 1).removeprefix("+")


def strongest_in_words(audit: Audit, name: str) -> tuple[str, str]:
    """(`the strongest attack: TITLE (step 60)`, its price); two where the halves of the questions chose two."""
    chosen = list(dict.fromkeys(audit.chosen(name)))
    if not chosen:
        return "the strongest attack", ""
    attacks = list(dict.fromkeys(attack for attack, _ in chosen))
    made = {attack: audit.attempt(attack) for attack in attacks}
    titles = []
    for attack in attacks:
        each = made[attack]
        spots = wording.listed([text for which, point in chosen if which == attack and (text := place(point, each))])
        titles.append((each.title if each else attack) + (f" ({spots})" if spots else ""))
    prices = list(dict.fromkeys(text for attack in attacks if (text := price(made[attack], name))))
    if len(attacks) == 1:
        return f"the strongest attack: {titles[0]}", "".join(prices)
    told = (
        prices[0] + " each"
        if len(prices) == 1
        else "; ".join(f"{x} for the {n}" for x, n in zip(prices, NTH, strict=False))
    )
    return f"the strongest attack on either half of the questions: {' / '.join(titles)}", told if prices else ""


NTH = ("first", "second")


def price(made: Attempt | None, name: str) -> str:
    """`31,000 tokens, 64 seconds, access to the weights`."""
    if made is None:
        return ""
    tokens, seconds = made.cost(name, "attack_tokens"), made.cost(name, "attack_seconds")
    parts = [f"{tokens_of(tokens)} tokens"] if tokens else []
    parts += [wording.duration(seconds)] if seconds is not None else []
    parts += [f"access to {access_word(made)}"] if made.access else []
    return ", ".join(parts)


def access_word(made: Attempt) -> str:
    """`the weights, with the base model`."""
    word = ACCESS[made.access][0] if made.access in ACCESS else made.access or NONE
    return f"{word}, with {made.holds}" if made.holds else word


def finished_attacks(audit: Audit, name: str) -> list[Attempt]:
    return [a for a in audit.attempts if a.recovers and a.status == DONE and a.share(name) is not None]


def silent(audit: Audit) -> list[str]:
    """How many attacks say nothing, and why that is no good news."""
    own = [a for a in audit.attempts if a.recovers]
    counts = [(sum(a.status == status for a in own), status) for status in (NOT_RUN, INCONCLUSIVE, FAILED)]
    said = [f"{count} {status}" for count, status in counts if count]
    if not said:
        return []
    return [
        f"Of {wording.counted(len(own), 'attack')}, {wording.listed(said)}: these say nothing about the model, good or bad."
    ]


def unknown(audit: Audit) -> list[str]:
    """Questions that the base does not know, set apart: how many, and their accuracy before and after."""
    return [text for name in audit.forgotten if (text := unknown_of(audit, name))]


def unknown_of(audit: Audit, name: str) -> str:
    tested, known = audit.split(name).tested, audit.split(name).known
    apart = audit.strongest_config(name).unknown
    if tested is None or (known is None and apart.n is None):
        return ""
    count = tested - (known or 0) if apart.n is None else apart.n
    text = f"{name}: {tested} questions tested, {tested - count} of which the base knows"
    if not count:
        return text + "; none had to be set apart."
    text += f"; the other {count} are set apart and in no recovered share"
    right = (("unlearned", apart.unlearned_right), ("strongest attack", apart.attacked_right))
    shown = [f"{when} {x}" for when, x in right if x is not None]
    return text + (f"; right among them: base 0, {', '.join(shown)}." if shown else ".")


# ------------------------------------------------------------------------------------------------ attack by attack


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
