"""What was forgotten against what was kept, over the sets that several runs share: means with their errors, and the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from misdirect import stats
from misdirect.reporting.content.evaluation import limit
from misdirect.reporting.figures import evaluation, style
from misdirect.reporting.load.run import Pair, Run
from misdirect.runs.stored import Paired
from misdirect.runs.stored import Row as StoredRow


class Named(NamedTuple):
    """A run with its letter and the name of its folder."""

    letter: str
    name: str
    run: Run

    @property
    def label(self) -> str:
        return f"{self.letter} {self.name}"


class Row(NamedTuple):
    """One metric of one set, asked in one way, of every run that has it."""

    measurement: str
    set: str
    metric: str
    config: Mapping[str, Any]
    pairs: Mapping[str, Pair]  # letter -> its pair


def average(rows: Sequence[stats.Mean | None]) -> stats.Mean | None:
    """The plain mean over sets, with its standard error; None where a number is missing."""
    known = [row for row in rows if row is not None]
    if not known or len(known) < len(rows):
        return None
    if len(known) == 1:  # Wilson's, where there is nothing to average
        return known[0]
    return stats.mean_of_means([row.value for row in known], [row.stderr for row in known])


def ends(rows: Sequence[Row], letter: str, model: str) -> stats.Mean | None:
    found = [getattr(row.pairs[letter], model) for row in rows]
    return average([mean_of(row.value, row) if row else None for row in found])


def moved(rows: Sequence[Row], letter: str) -> stats.Mean | None:
    found = [row.pairs[letter].paired for row in rows]
    return average([mean_of(change.difference, change) for change in found])


def mean_of(value: float | None, row: StoredRow | Paired) -> stats.Mean | None:
    """None where a number is missing."""
    if value is None or row.stderr is None:
        return None
    if row.low is None or row.high is None:
        return stats.mean_of_means([value], [row.stderr])
    return stats.Mean(value, row.stderr, row.low, row.high)


def plane(group: Sequence[Named], forget: Sequence[Row], retain: Sequence[Row]) -> style.Picture | None:
    """The trade-off plane of the runs of one base; None where a number is missing."""

    def point(label: str, letter: str, model: str) -> evaluation.Point | None:
        x, y = ends(forget, letter, model), ends(retain, letter, model)
        return evaluation.Point(label, (x.value, x.low, x.high), (y.value, y.low, y.high)) if x and y else None

    short = len(group) <= 4
    points = [point(each.label if short else each.letter, each.letter, "unlearned") for each in group]
    found = [each for each in points if each is not None]
    if not found:
        return None
    levels = [level for row in forget if (level := limit(row.pairs[group[0].letter])[1]) is not None]
    mean = sum(levels) / len(levels) if levels else None
    words = [f"{p.name}: forget {100 * p.forget[0]:.1f} %, retain {100 * p.retain[0]:.1f} %" for p in found]
    data = evaluation.Plane(found, point("base", group[0].letter, "base"), mean)
    return style.Picture(evaluation.tradeoff, data, "What was forgotten against what was kept", "; ".join(words) + ".")
