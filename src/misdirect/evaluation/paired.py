"""A model beside the base, on the same items: the paired change of every metric.

A measurement says by a `Reading` how a metric is read off a record, and how the pairs of values are summed up: by McNemar's
test where items are right or wrong, else by the mean of their differences. In a macro average each subject counts alike.

    def reading(metric):  # of a measurement whose records hold `correct`
        return Reading(lambda record: record["correct"], mcnemar)

    stored = with_changes(stored, base, reading)
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from misdirect import stats

Row = Mapping[str, Any]  # a metric as it is stored
Record = Mapping[str, Any]
Pairs = Sequence[tuple[Any, Any]]  # of each item the base's value and the other model's
Groups = Mapping[str, Pairs]  # by subject; all under one name where a metric is not a macro average
Change = dict[str, Any]


class Reading(NamedTuple):
    """How a metric's change is found: its value of one record (None: it has none), and what sums the pairs up."""

    value: Callable[[Record], Any]
    change: Callable[[Groups], Change | None]
    by_subject: bool = False  # a macro average


def with_changes(
    result: Mapping[str, Any],
    base: Mapping[str, Any],
    reading: Callable[[str], Reading | None],
    marks: Callable[[Row], Mapping[str, Any]] = lambda row: {},
) -> dict[str, Any]:
    """A stored result whose rows have their `marks` and, where it is not the base's own, their `paired` change.

    `reading`: of a metric's name; None where nothing is paired. Raises ValueError where the two have other items.
    """
    rows = []
    for row in result["metrics"]:
        row = {**row, **marks(row)}
        read = reading(row["metric"]) if result["model"] != "base" else None
        if read and (change := compare(read, base["records"], result["records"], row.get("subject"))):
            row["paired"] = change
        rows.append(row)
    return {**result, "metrics": rows}


def compare(
    reading: Reading, base: Sequence[Record], other: Sequence[Record], subject: str | None = None
) -> Change | None:
    """The change from the base's records to the other's, of one subject or of all; None where there is no pair."""
    groups: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    for a, b in zip(base, other, strict=True):
        of = a.get("subject", "")
        before, after = reading.value(a), reading.value(b)
        if before is not None and after is not None and subject in (None, of):
            groups[of if reading.by_subject else ""].append((before, after))
    return reading.change(groups) if groups else None


def base_knows(row: Row) -> bool:
    """Whether the base is above chance, and above what a reader of the choices alone gets."""
    return row["low"] > max(row["chance"], row.get("floor", 0.0))


# ------------------------------------------------------------------------------------------------ summing pairs up


def mcnemar(groups: Groups) -> Change:
    """Of right and wrong, also as 1 and 0: what was lost and gained, and McNemar's exact test."""
    return each_mcnemar(groups)[0]._asdict()


def each_mcnemar(groups: Groups) -> list[stats.Paired]:
    return [stats.paired(*([bool(pair[i]) for pair in groups[s]] for i in (0, 1))) for s in sorted(groups)]


def macro_mcnemar(groups: Groups) -> Change:
    """The mean over subjects of their changes; a subject's variance is that of its adjusted interval."""
    found = each_mcnemar(groups)
    widths = [(pair.high - pair.low) / (2 * stats.Z95) for pair in found]
    mean = stats.mean_of_means([pair.difference for pair in found], widths)
    return change_of(mean._replace(low=max(-1.0, mean.low), high=min(1.0, mean.high)))


def student_mean(groups: Groups) -> Change:
    """The mean difference with Student's interval."""
    differences = [after - before for pairs in groups.values() for before, after in pairs]
    return change_of(stats.sample_mean(differences)) | {"n": len(differences)}


def ratio_of_sums(groups: Groups) -> Change:
    """Of values that are (amount, weight): the change of the sum of amounts over that of weights, with a p-value."""
    pairs = [pair for found in groups.values() for pair in found]
    mean = stats.ratio_of_sums([after[0] - before[0] for before, after in pairs], [before[1] for before, _ in pairs])
    return change_of(mean) | {"p_value": stats.two_sided_p(mean.value, mean.stderr, len(pairs)), "n": len(pairs)}


def normal_mean(groups: Groups) -> Change:
    """The mean over groups of the mean difference in each, with a normal interval; none where a group has one item."""
    differences = [[float(after - before) for before, after in pairs] for pairs in groups.values()]
    value = sum(map(statistics.fmean, differences)) / len(differences)
    n = sum(map(len, differences))
    if min(map(len, differences)) < 2:
        return {"difference": value, "n": n}
    stderr = math.sqrt(sum(statistics.variance(d) / len(d) for d in differences)) / len(differences)
    return change_of(stats.Mean(value, stderr, value - stats.Z95 * stderr, value + stats.Z95 * stderr)) | {"n": n}


def change_of(mean: stats.Mean) -> Change:
    return {"difference": mean.value, "stderr": mean.stderr, "low": mean.low, "high": mean.high}
