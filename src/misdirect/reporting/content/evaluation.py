"""The headline of a page, what is gone and what is kept, in words and in numbers with their intervals.

A forget set is judged by where the unlearned model ends (at guessing, or above it), a set to be kept by its change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from misdirect.config import Kind
from misdirect.reporting import wording
from misdirect.reporting.content import metrics
from misdirect.reporting.content.form import Cell, Table, in_line, joined
from misdirect.reporting.load.run import KINDS, QUESTIONS, Pair, Run
from misdirect.reporting.wording import NONE
from misdirect.runs.collateral import Change

HEADINGS: dict[Kind, str] = {
    "forget": "What was to be forgotten",
    "retain": "What was to be kept",
    "other": "What was measured",
}
MAX_SAID = 4  # sets named in a sentence


class Card(NamedTuple):
    """One headline number."""

    what: str
    set: str
    big: str
    small: list[str]


class Panel(NamedTuple):
    """All headline numbers of one kind of set."""

    kind: Kind
    heading: str
    sentences: list[str]
    cards: list[Card]
    texts: Table


def panels(run: Run) -> list[Panel]:
    """A panel for each kind of set that has been measured."""
    made = []
    for kind in KINDS:
        questions, texts = run.headlines(*QUESTIONS, kind=kind), run.headlines("nll", kind=kind)
        if not questions and not texts:
            continue
        say = {"forget": gone, "retain": kept, "other": lambda run: []}[kind]
        cards = [card(pair, run) for pair in questions]
        made.append(Panel(kind, HEADINGS[kind], say(run), cards, text_table(texts)))
    return made


# ------------------------------------------------------------------------------------------------ in words


def gone(run: Run) -> list[str]:
    """A sentence for each question set to be forgotten, and one on its text."""
    pairs = run.headlines(*QUESTIONS, kind="forget")
    sentences = [verdict(pair) for pair in pairs[:MAX_SAID]]
    if len(pairs) > MAX_SAID:
        sentences.append(f"{len(pairs) - MAX_SAID} more below.")
    rises = [p for p in run.headlines("nll", kind="forget") if p.paired.difference is not None]
    for pair in rises[:MAX_SAID]:
        sentences.append(
            f"NLL on {pair.set} changed by {in_line(metrics.change_of(pair))} nats per token: "
            f"perplexity \u00d7 {metrics.factor_of(pair)}."
        )
    return [sentence for sentence in sentences if sentence]


def verdict(pair: Pair) -> str:
    """Where the unlearned model ends on a set that was to be forgotten, as a fact and no more."""
    low, after = pair.unlearned.low if pair.unlearned else None, pair.after
    name, level = limit(pair)
    if not pair.base_knows:
        return f"{pair.set}: nothing can be told, since the base model is no better than {name} here."
    if low is None or after is None or level is None:
        return ""
    reached, before = metrics.unlearned_of(pair), metrics.base_of(pair).text
    right = f"{pair.set}: {reached.text} right ({reached.interval}), {before} before."
    bar = f"{name}, {wording.value(pair.metric, level)}"
    if low <= level:
        return f"{right} This cannot be told from {bar}."
    if (pair.paired.high or 0.0) < 0:
        return f"{right} Partly gone: it is still above {bar}."
    return f"{right} Not shown to be gone: it is above {bar}, and the change may be none."


def limit(pair: Pair) -> tuple[str, float | None]:
    """What a model that knows nothing scores: the larger of chance and floor."""
    chance, floor = pair.both("chance"), pair.both("floor")
    if floor is not None and floor >= (chance or 0.0):
        return "the floor", floor
    return "chance", chance


def kept(run: Run) -> list[str]:
    """How many sets changed beyond chance, which, and how large a loss the intervals still allow."""
    changes = [change for change in run.changes if change.kind == "retain"]
    sentences = [counted_changes(changes)] if changes else []
    lows = [(pair.set, pair.paired.low) for pair in run.headlines(*QUESTIONS, kind="retain")
            if wording.is_share(pair.metric)]  # fmt: skip
    bounds = [f"{100 * max(0.0, -low):.1f} points on {name}" for name, low in lows if low is not None]
    if bounds:
        sentences.append(f"Larger losses than these are ruled out at 95 %: {wording.listed(bounds[:MAX_SAID])}.")
    return sentences


def counted_changes(changes: Sequence[Change], named: bool = True) -> str:
    changed = [change for change in changes if change.changed]
    what = wording.counted(len(changes), "set or subject", "sets and subjects")
    if not changed:
        return f"No change is shown on {what} that were to be kept, chance allowed for."
    which = [f"{change.name} ({wording.change(change.metric, change.difference)})" for change in changed[:MAX_SAID]]
    if len(changed) > MAX_SAID:
        which.append(f"{len(changed) - MAX_SAID} more")
    text = f"{len(changed)} of {what} that were to be kept changed beyond chance"
    return f"{text}: {wording.listed(which)}." if named else f"{text}."


# ------------------------------------------------------------------------------------------------ in numbers


def card(pair: Pair, run: Run) -> Card:
    """A forget set shows both values first, a set to be kept its change: that is what each is judged by."""
    change, what, both = metrics.change_of(pair), wording.metric_label(pair.metric), metrics.base_to_unlearned(pair)
    if pair.paired.difference is not None and pair.kind == "retain":
        what, big = f"{what}, change", change.text
        small = [f"95 % interval {change.interval}", both]
    else:
        big = both
        small = [f"{name} 95 % interval {x.interval}" for name, x in metrics.measured(pair).items() if x.interval]
        small += [f"change {in_line(change)}"] if pair.paired.difference is not None else []
    small += [levels(pair), over_seeds(pair), macro(pair, run), "" if pair.base_knows else "base does not know"]
    return Card(what, pair.set, big, [line for line in small if line])


def levels(pair: Pair) -> str:
    """`chance 25.0 % · floor 31.5 → 30.0 %`."""
    chance, floors = metrics.chance_of(pair), metrics.floors_of(pair)
    found = [f"chance {chance}"] if chance != NONE else []
    return " \u00b7 ".join([*found, f"floor {joined(floors)}"] if floors else found)


def over_seeds(pair: Pair) -> str:
    """`unlearned over 3 seeds: 27.1 to 28.9 %, mean 28.0 %`."""
    if pair.seeds is None:
        return ""
    mean = wording.number(pair.metric, pair.seeds.mean, pair.seeds)
    return f"unlearned over {pair.seeds.n} seeds: {mean.interval}, mean {mean.text}"


def macro(pair: Pair, run: Run) -> str:
    """The mean over subjects, which is how some benchmarks are given."""
    place = (pair.measurement, pair.set, pair.metric + "_macro")
    found = next((p for p in run.pairs if (p.measurement, p.set, p.metric) == place), None)
    return f"mean over subjects {metrics.base_to_unlearned(found)}" if found else ""


def text_table(pairs: Sequence[Pair]) -> Table:
    """Text sets in a panel: both values, their change, and by what that multiplies perplexity."""
    rows = []
    for pair in pairs:
        change = metrics.change_of(pair)
        if pair.paired.difference is None:  # one model: its own interval
            one = next(iter(reversed(metrics.measured(pair).values())))
            change = one._replace(text=change.text)
        rows.append((Cell(pair.set, [metrics.base_to_unlearned(pair)]), change, metrics.times(pair)))
    return Table(("Set, NLL", "Change, 95 %", "Perplexity"), rows, 1)
