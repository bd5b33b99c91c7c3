"""The collateral map: what else changed, set by set and subject by subject, worst first.

Reads the rows of `summary.json`: for every question set its judged format, by subject where it has subjects, and for
every text set the NLL. With many subjects some differ by chance alone, so p-values (McNemar's for accuracy,
Student's for the paired mean of NLL) are adjusted over all sets that were to be kept by Holm's method (Holm 1979): of the ones
marked as changed, the chance that any is false is 5 %. What was to be forgotten is listed too, and not part of that family.

>>> for change in collateral(read_json(run / runs.SUMMARY), topics=["biology"]): print(change.name, change.difference)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from misdirect import runs, stats, storage
from misdirect.config import Kind, doubtful, kind_of
from misdirect.progress import note

LEVEL = 0.05


@dataclass(frozen=True)
class Change:
    """One paired change, unlearned less base: in accuracy (a fraction of 1) or in nats per token."""

    measurement: str
    set: str
    subject: str | None
    kind: Kind
    metric: str
    base: float
    difference: float
    stderr: float
    low: float  # 95 % interval of this change alone
    high: float
    p_value: float
    adjusted_p: float | None  # Holm's, over everything that was to be kept; None for what was to be forgotten
    n: int

    @property
    def name(self) -> str:
        return self.set if self.subject is None else f"{self.set}: {self.subject}"

    @property
    def changed(self) -> bool:
        """Whether it differs from nothing after the correction."""
        return self.adjusted_p is not None and self.adjusted_p < LEVEL


def collateral(rows: Iterable[Mapping[str, Any]], topics: Sequence[str]) -> list[Change]:
    """Accuracy changes, the largest loss first, then NLL changes, the largest rise first.

    A set is one to be forgotten when it is named like a topic. Rows without a paired change are left out.
    """
    rows = [row for row in rows if row.get("attack") is None]
    base = {key_of(row): row for row in rows if row["model"] == "base"}
    unlearned = [row for row in rows if row["model"] == "unlearned" and is_shown(row, rows)]
    found = [made for row in unlearned if (made := change_of(row, base.get(key_of(row)), topics)) is not None]
    kept = [change for change in found if change.kind != "forget"]
    adjusted = iter(stats.holm([change.p_value for change in kept]))
    found = [replace(c, adjusted_p=next(adjusted)) if c.kind != "forget" else c for c in found]
    return sorted(
        found, key=lambda c: (c.measurement == "nll", -c.difference if c.measurement == "nll" else c.difference)
    )


def topics_of(folder: Path) -> list[str]:
    """The topics that a run was to forget; none for the folder of one model's evaluation."""
    if not runs.is_run(folder):
        return []
    return [topic["name"] for topic in storage.read_json(folder / runs.CONFIG)["topics"]]


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["measurement"], row["set"], row["metric"], row.get("subject")


def is_shown(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> bool:
    """A set's judged metric stands for it, unless its subjects do."""
    if row["measurement"] == "generation":
        return False
    same = [
        r
        for r in rows
        if r["model"] == row["model"] and (r["measurement"], r["set"]) == (row["measurement"], row["set"])
    ]
    judged = {r["metric"] for r in same if r.get("headline")}
    by_subject = {r["metric"] for r in same if r["metric"].removesuffix("_by_subject") in judged and r.get("subject")}
    return row["metric"] in (by_subject or judged)


def change_of(row: Mapping[str, Any], base: Mapping[str, Any] | None, topics: Sequence[str]) -> Change | None:
    paired = row.get("paired") or {}
    needed = [paired.get(name) for name in ("difference", "stderr", "low", "high")]
    p_value = paired.get("p_value", 0.0)  # null where an older version stored a test of numbers that are none
    if base is None or base.get("value") is None or any(x is None or not math.isfinite(x) for x in (*needed, p_value)):
        return None
    difference, stderr, low, high = (float(x) for x in needed if x is not None)
    p_value = paired.get("p_value")
    return Change(
        row["measurement"],
        row["set"],
        row.get("subject"),
        kind_of(row["set"], topics),
        row["metric"].removesuffix("_by_subject"),
        base["value"],
        difference,
        stderr,
        low,
        high,
        stats.two_sided_p(difference, stderr, row.get("n", 0)) if p_value is None else p_value,
        None,
        row.get("n", 0),
    )


def say_doubtful(run: Path, names: Sequence[str] = ()) -> None:
    """Says which of these sets, and of those measured already, may be named unlike the topic that they are meant for."""
    stored = storage.read_json(run / runs.SUMMARY) if (run / runs.SUMMARY).is_file() else []
    rows = [row for row in stored if isinstance(row, dict)] if isinstance(stored, list) else []
    there = [
        str(row.get("set")) for row in rows if row.get("attack") is None and row.get("measurement") != "generation"
    ]
    for doubt in doubtful(list(dict.fromkeys([*names, *there])), topics_of(run)):
        note(doubt)
