"""Every metric of a run in tables: set by set, in the order of the page, and the few by which a set is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from misdirect.config import Kind
from misdirect.reporting import wording
from misdirect.reporting.content.form import Cell, Row, Table, joined
from misdirect.reporting.load.run import BY_SUBJECT, QUESTIONS, Pair, Run
from misdirect.reporting.wording import NONE, SPACE, Number
from misdirect.runs.collateral import Change
from misdirect.runs.stored import Point

ROLES: Mapping[Kind, str] = {"forget": "forgotten", "retain": "kept", "other": "measured"}
ANSWERED = ("degenerate_share", "degenerate_share_sampled", "repetition", "judge_score", "judge_score_sampled")
PRINTED = ("degenerate_share", "judge_score")


# ------------------------------------------------------------------------------------------------ one metric of one set


def base_of(pair: Pair) -> Number:
    return wording.number(pair.metric, pair.before, pair.base)


def unlearned_of(pair: Pair) -> Number:
    return wording.number(pair.metric, pair.after, pair.unlearned)


def change_of(pair: Pair) -> Number:
    return wording.changed(pair.metric, pair.paired.difference, pair.paired)


def measured(pair: Pair) -> dict[str, Number]:
    """Model -> its value, of those that were measured."""
    rows = {"base": pair.base, "unlearned": pair.unlearned}
    return {name: wording.number(pair.metric, row.value, row) for name, row in rows.items() if row is not None}


def base_to_unlearned(pair: Pair) -> str:
    """`64.2 → 31.2 %`, or the one that there is."""
    return joined(list(measured(pair).values()))


def chance_of(pair: Pair) -> str:
    return wording.value(pair.metric, pair.both("chance"))


def floors_of(pair: Pair) -> list[Number]:
    """The floor of each model; once where both have the same."""
    rows = [row for row in (pair.base, pair.unlearned) if row is not None and row.floor is not None]
    return list(dict.fromkeys(wording.number(pair.metric, row.floor) for row in rows))


def factor_of(pair: Pair) -> str:
    """By what perplexity is multiplied."""
    return NONE if pair.paired.difference is None else wording.factor(pair.paired.difference)


def count_of(pair: Pair) -> str:
    return wording.count(pair.both("n"))


# ------------------------------------------------------------------------------------------------ every metric


class Group(NamedTuple):
    """All metrics of one set, and by subject a table for each of them."""

    set: str
    kind: Kind
    measurement: str
    whole: Table
    subjects: Mapping[str, Table]


COLUMNS = ("n", "Base", "Unlearned", "Change", "McNemar p", "Lost / gained", "Chance / floor")


def groups(run: Run) -> list[Group]:
    found = []
    for kind, measurement, name in dict.fromkeys((pair.kind, pair.measurement, pair.set) for pair in run.pairs):
        own = [p for p in run.pairs if (p.kind, p.measurement, p.set) == (kind, measurement, name)]
        whole = [every(pair, label(pair)) for pair in own if pair.subject is None]
        subjects: dict[str, list[Row]] = {}
        for pair in own:
            if pair.subject is not None:
                metric = wording.metric_label(pair.metric.removesuffix(BY_SUBJECT))
                subjects.setdefault(metric, []).append(every(pair, pair.subject))
        tables = {metric: Table(("Subject", *COLUMNS), rows, 1) for metric, rows in subjects.items()}
        found.append(Group(name, kind, measurement, Table(("Metric", *COLUMNS), whole, 1), tables))
    return found


def label(pair: Pair) -> str:
    """`probe accuracy (block 7)`."""
    places = [(key, pair.both(key)) for key in Point._fields]
    position = ", ".join(f"{key} {x:g}" for key, x in places if x is not None)
    return wording.metric_label(pair.metric) + (f" ({position})" if position else "")


def every(pair: Pair, name: str) -> Row:
    counts = list(dict.fromkeys(wording.count(row.n) for row in (pair.base, pair.unlearned) if row))
    turned = [wording.setting(count) for count in (pair.paired.lost, pair.paired.gained)]
    limits = [chance_of(pair), wording.value(pair.metric, pair.both("floor"))]
    first = Cell(name, tag="" if pair.base_knows else "base does not know")
    return Row(
        (first, " / ".join(counts), base_of(pair), unlearned_of(pair), change_of(pair),
         wording.p_value(pair.paired.p_value), slashed(turned), slashed(limits)), "headline" if pair.headline else ""
    )  # fmt: skip


def slashed(values: Sequence[str]) -> str:
    return NONE if set(values) == {NONE} else " / ".join(values)


# ------------------------------------------------------------------------------------------------ those that judge


def questions(run: Run, kind: Kind) -> Table:
    """Question sets of one kind: base beside unlearned in the metric by which each is judged."""
    rows = [
        (pair.set, wording.metric_label(pair.metric), base_of(pair), unlearned_of(pair), change_of(pair),
         chance_of(pair), joined_each(floors_of(pair)), count_of(pair))
        for pair in run.headlines(*QUESTIONS, kind=kind)
    ]  # fmt: skip
    return Table(("Questions", "Scored by", "Base", "Unlearned", "Change", "Chance", "Floor", "n"), rows, 2)


def joined_each(numbers: Sequence[Number]) -> str:
    return " \u2192 ".join(each.text for each in numbers) or NONE


def texts(run: Run) -> Table:
    rows = [
        (pair.set, ROLES[pair.kind], base_of(pair).text, unlearned_of(pair).text, change_of(pair), factor_of(pair),
         count_of(pair))
        for pair in run.headlines("nll")
    ]  # fmt: skip
    return Table(("Text", "Was to be", "Base", "Unlearned", "Change", "Perplexity times", "n"), rows, 2)


def answers(run: Run) -> Table:
    """Sets of prompts."""
    rows = [
        (
            pair.set,
            wording.metric_label(pair.metric),
            base_of(pair),
            unlearned_of(pair),
            change_of(pair),
            count_of(pair),
        )
        for pair in run.pairs
        if pair.measurement == "generation" and pair.metric in ANSWERED
    ]
    return Table(("Prompts", "Measured as", "Base", "Unlearned", "Change", "n"), rows, 2)


def headlines(pairs: Sequence[Pair]) -> Table:
    """What is printed when a measurement is done: every set in the metric by which it is judged, then answers and text."""
    rows = []
    for pair in (p for p in pairs if p.subject is None and (p.headline or p.metric in PRINTED)):
        metric = wording.metric_label(pair.metric) + ("" if pair.base_knows else ", base not shown to know")
        floors = joined(floors_of(pair))
        rows.append((pair.set, metric, base_of(pair), unlearned_of(pair), change_of(pair), floors, count_of(pair)))
    return Table(("set", "metric", "base", "unlearned", "change (95 %)", "floor", "n"), rows, 2)


def seeds(run: Run) -> Table:
    """Spread of each headline number over seeds."""
    rows = [
        (pair.set, wording.metric_label(pair.metric), str(pair.seeds.n),
         *(wording.value(pair.metric, x) for x in (pair.seeds.low, pair.seeds.mean, pair.seeds.high)))
        for pair in run.headlines(*QUESTIONS, "nll")
        if pair.seeds is not None
    ]  # fmt: skip
    return Table(("Set", "Measured as", "Seeds", "Smallest", "Mean", "Largest"), rows, 2)


# ------------------------------------------------------------------------------------------------ collateral


def collateral(run: Run) -> Table:
    """Every change, sorted as `collateral` sorts: accuracy by loss, then NLL by rise."""
    rows = [
        (change.name, change.kind, wording.metric_label(change.metric), moved(change).text, moved(change).interval,
         wording.p_value(change.p_value), wording.p_value(change.adjusted_p) + (" *" if change.changed else ""),
         f"{change.n:,}")
        for change in run.changes
    ]  # fmt: skip
    return Table(("Set or subject", "Kind", "Metric", "Change", "95 % interval", "p", "Adjusted p", "n"), rows, 3)


def moved(change: Change) -> Number:
    return wording.changed(change.metric, change.difference, change)


def worst(changes: Sequence[Change]) -> Table:
    rows = [
        (change.name, wording.metric_label(change.metric), moved(change), wording.p_value(change.adjusted_p),
         "yes" if change.changed else "not shown", f"{change.n:,}")
        for change in changes
    ]  # fmt: skip
    return Table(("Set or subject", "Measured as", "Change", "Adjusted p", "Beyond chance", "n"), rows, 2)


def times(pair: Pair) -> str:
    """The factor behind a multiplication sign."""
    return NONE if pair.paired.difference is None else f"\u00d7{SPACE}{factor_of(pair)}"
