"""The tables of a page: every metric set by set, subjects, the collateral map in numbers, settings."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from misdirect.config import UnlearnConfig
from misdirect.reporting import wording
from misdirect.reporting.reading import BY_SUBJECT, POSITION, Pair, Run, mapping, mappings, number


class Table(NamedTuple):
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def metric_groups(run: Run) -> list[dict[str, Any]]:
    """Set by set: its rows, and those by subject, a table for each metric."""
    keys = dict.fromkeys((pair.kind, pair.measurement, pair.set) for pair in run.pairs)
    groups = []
    for kind, measurement, name in keys:
        own = [p for p in run.pairs if (p.kind, p.measurement, p.set) == (kind, measurement, name)]
        whole = [metric_row(pair) for pair in own if pair.subject is None]
        subjects: dict[str, list[dict[str, Any]]] = {}
        for pair in own:
            if pair.subject is not None:
                label = wording.metric_label(pair.metric.removesuffix(BY_SUBJECT))
                subjects.setdefault(label, []).append(metric_row(pair) | {"metric": pair.subject})
        groups.append({"set": name, "kind": kind, "measurement": measurement, "rows": whole, "subjects": subjects})
    return groups


def metric_row(pair: Pair) -> dict[str, Any]:
    counts = list(dict.fromkeys(wording.count(row.get("n")) for row in (pair.base, pair.unlearned) if row))
    places = [(key, number({key: pair.both(key)}, key)) for key in POSITION]
    position = ", ".join(f"{key} {x:g}" for key, x in places if x is not None)
    limits = [wording.value(pair.metric, number({key: pair.both(key)}, key)) for key in ("chance", "floor")]
    turned = [wording.setting(pair.paired.get(key)) for key in ("lost", "gained")]
    return {
        "metric": wording.metric_label(pair.metric) + (f" ({position})" if position else ""),
        "headline": pair.headline,
        "base_knows": pair.base_knows,
        "n": " / ".join(counts),
        "base": wording.value(pair.metric, number(pair.base, "value")),
        "base_interval": wording.interval(pair.metric, pair.base),
        "unlearned": wording.value(pair.metric, number(pair.unlearned, "value")),
        "unlearned_interval": wording.interval(pair.metric, pair.unlearned),
        "limits": slashed(limits),
        "change": wording.change(pair.metric, number(pair.paired, "difference")),
        "change_interval": wording.change_interval(pair.metric, pair.paired),
        "p": wording.p_value(number(pair.paired, "p_value")),
        "turned": slashed(turned),
    }


def slashed(values: Sequence[str]) -> str:
    return wording.NONE if set(values) == {wording.NONE} else " / ".join(values)


def collateral_table(run: Run) -> Table:
    """Every change, sorted as `collateral` sorts: accuracy by loss, then NLL by rise."""
    rows = [
        (
            change.name,
            change.kind,
            wording.metric_label(change.metric),
            wording.change(change.metric, change.difference),
            wording.change_interval(change.metric, {"low": change.low, "high": change.high}),
            wording.p_value(change.p_value),
            wording.p_value(change.adjusted_p) + (" *" if change.changed else ""),
            f"{change.n:,}",
        )
        for change in run.changes
    ]
    return Table(("Set or subject", "Kind", "Metric", "Change", "95 % interval", "p", "Adjusted p", "n"), rows)


def topics_table(run: Run) -> Table:
    """Each topic with what was asked and what was chosen from measurement."""
    chosen = mapping(mapping(run.config.get("chosen")).get("topics"))
    asked = {str(t.get("name")): t for t in mappings(run.config.get("topics"))}
    rows = []
    for name in run.topics:
        made = mapping(chosen.get(name))
        keys = ("steering_coefficient", "median_norm", "retain_weight", "num_samples", "tokens")
        source = wording.setting(asked.get(name, {}).get("source"))
        rows.append((name, source, *(wording.setting(made.get(k)) for k in keys)))
    head = ("Topic", "Source", "Steering coefficient", "Median token norm", "Retain weight", "Samples", "Tokens")
    return Table(head, rows)


def retain_table(run: Run) -> Table:
    chosen = mapping(mapping(run.config.get("chosen")).get("retain"))
    rows = [
        (
            str(corpus.get("name", wording.NONE)),
            wording.setting(corpus.get("source")),
            wording.setting(corpus.get("weight")),
            wording.setting(mapping(chosen.get(str(corpus.get("name")))).get("num_samples")),
        )
        for corpus in mappings(run.config.get("retain"))
    ]
    return Table(("Retain corpus", "Source", "Weight in the mixture", "Samples"), rows)


def settings_table(run: Run) -> Table:
    """Every setting with its help text; those that are not set are left out."""
    helps: Mapping[str, str] = {f.name: str(f.metadata["help"]) for f in dataclasses.fields(UnlearnConfig)}
    settings = mapping(run.config.get("settings"))
    rows = [
        (name, wording.setting(data), re.sub(r" \[default:.*\]$", "", helps.get(name, "")))
        for name, data in settings.items()
        if data is not None
    ]
    return Table(("Setting", "Value", "Meaning"), rows)
