"""The headline of a page, what is gone and what is kept, in words and in numbers with their intervals; and its tables.

A forget set is judged by where the unlearned model ends (at guessing, or above it), a set to be kept by its change.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from misdirect.config import Kind, UnlearnConfig
from misdirect.reporting import wording
from misdirect.reporting.load.run import BY_SUBJECT, KINDS, QUESTIONS, Pair, Run
from misdirect.runs.collateral import Change
from misdirect.runs.stored import Chosen, Corpus, Point, Topic

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


class TextRow(NamedTuple):
    """One text set in a panel's table."""

    set: str
    change: str
    interval: str
    perplexity: str
    both: str


class Panel(NamedTuple):
    """All headline numbers of one kind of set."""

    kind: Kind
    heading: str
    sentences: list[str]
    cards: list[Card]
    texts: list[TextRow]


def panels(run: Run) -> list[Panel]:
    """A panel for each kind of set that has been measured."""
    made = []
    for kind in KINDS:
        questions, texts = run.headlines(*QUESTIONS, kind=kind), run.headlines("nll", kind=kind)
        if not questions and not texts:
            continue
        say = {"forget": gone, "retain": kept, "other": lambda run: []}[kind]
        cards = [card(pair, run) for pair in questions]
        made.append(Panel(kind, HEADINGS[kind], say(run), cards, [text_row(pair) for pair in texts]))
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
            f"NLL on {pair.set} changed by {with_interval(pair)} nats per token: "
            f"perplexity \u00d7 {wording.factor(pair.paired.difference or 0.0)}."
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
    before, reached = wording.value(pair.metric, pair.before), wording.value(pair.metric, after)
    right = f"{pair.set}: {reached} right ({wording.interval(pair.metric, pair.unlearned)}), {before} before."
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


def counted_changes(changes: Sequence[Change]) -> str:
    changed = [change for change in changes if change.changed]
    what = wording.counted(len(changes), "set or subject", "sets and subjects")
    if not changed:
        return f"No change is shown on {what} that were to be kept, chance allowed for."
    named = [f"{change.name} ({wording.change(change.metric, change.difference)})" for change in changed[:MAX_SAID]]
    if len(changed) > MAX_SAID:
        named.append(f"{len(changed) - MAX_SAID} more")
    return f"{len(changed)} of {what} that were to be kept changed beyond chance: {wording.listed(named)}."


def with_interval(pair: Pair) -> str:
    """`+7.882 (+7.302 to +8.462)`."""
    span = wording.change_interval(pair.metric, pair.paired)
    return wording.change(pair.metric, pair.paired.difference) + (f" ({span})" if span else "")


# ------------------------------------------------------------------------------------------------ in numbers


def card(pair: Pair, run: Run) -> Card:
    """A forget set shows both values first, a set to be kept its change: that is what each is judged by."""
    difference = pair.paired.difference
    what = wording.metric_label(pair.metric)
    if difference is not None and pair.kind == "retain":
        what += ", change"
        big = wording.change(pair.metric, difference)
        small = [f"95 % interval {wording.change_interval(pair.metric, pair.paired)}", base_to_unlearned(pair)]
    else:
        big = base_to_unlearned(pair)
        rows = (("base", pair.base), ("unlearned", pair.unlearned))
        small = [f"{name} 95 % interval {span}" for name, row in rows if (span := wording.interval(pair.metric, row))]
        if difference is not None:
            span = wording.change_interval(pair.metric, pair.paired)
            small.append(f"change {wording.change(pair.metric, difference)} ({span})")
    small += [levels(pair), over_seeds(pair), macro(pair, run)]
    if not pair.base_knows:
        small.append("base does not know")
    return Card(what, pair.set, big, [line for line in small if line])


def base_to_unlearned(pair: Pair) -> str:
    """`64.2 → 31.2 %`, or the one that there is."""
    rows = [row for row in (pair.base, pair.unlearned) if row is not None]
    values = [wording.value(pair.metric, row.value) for row in rows]
    unit = wording.SPACE + "%" if wording.is_share(pair.metric) else ""
    return " → ".join(text.removesuffix(unit) for text in values) + unit


def levels(pair: Pair) -> str:
    chance = pair.both("chance")
    floors = [row.floor for row in (pair.base, pair.unlearned) if row is not None and row.floor is not None]
    unit = wording.SPACE + "%" if wording.is_share(pair.metric) else ""
    texts = list(dict.fromkeys(wording.value(pair.metric, x).removesuffix(unit) for x in floors))
    found = [f"chance {wording.value(pair.metric, chance)}"] if chance is not None else []
    found += [f"floor {' → '.join(texts)}{unit}"] if texts else []
    return " · ".join(found)


def over_seeds(pair: Pair) -> str:
    """`unlearned over 3 seeds: 27.1 to 28.9 %, mean 28.0 %`."""
    if pair.seeds is None:
        return ""
    span = wording.interval(pair.metric, pair.seeds)
    return f"unlearned over {pair.seeds.n} seeds: {span}, mean {wording.value(pair.metric, pair.seeds.mean)}"


def macro(pair: Pair, run: Run) -> str:
    """The mean over subjects, which is how some benchmarks are given."""
    place = (pair.measurement, pair.set, pair.metric + "_macro")
    found = next((p for p in run.pairs if (p.measurement, p.set, p.metric) == place), None)
    return f"mean over subjects {base_to_unlearned(found)}" if found else ""


def text_row(pair: Pair) -> TextRow:
    difference = pair.paired.difference
    span = wording.change_interval(pair.metric, pair.paired)
    times = wording.NONE if difference is None else f"\u00d7{wording.SPACE}{wording.factor(difference)}"
    change = wording.change(pair.metric, difference)
    if difference is None:  # one model: its own value
        span = wording.interval(pair.metric, pair.unlearned or pair.base)
    return TextRow(pair.set, change, span, times, base_to_unlearned(pair))


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
    counts = list(dict.fromkeys(wording.count(row.n) for row in (pair.base, pair.unlearned) if row))
    places = [(key, pair.both(key)) for key in Point._fields]
    position = ", ".join(f"{key} {x:g}" for key, x in places if x is not None)
    limits = [wording.value(pair.metric, pair.both(key)) for key in ("chance", "floor")]
    turned = [wording.setting(count) for count in (pair.paired.lost, pair.paired.gained)]
    return {
        "metric": wording.metric_label(pair.metric) + (f" ({position})" if position else ""),
        "headline": pair.headline,
        "base_knows": pair.base_knows,
        "n": " / ".join(counts),
        "base": wording.value(pair.metric, pair.before),
        "base_interval": wording.interval(pair.metric, pair.base),
        "unlearned": wording.value(pair.metric, pair.after),
        "unlearned_interval": wording.interval(pair.metric, pair.unlearned),
        "limits": slashed(limits),
        "change": wording.change(pair.metric, pair.paired.difference),
        "change_interval": wording.change_interval(pair.metric, pair.paired),
        "p": wording.p_value(pair.paired.p_value),
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
            wording.change_interval(change.metric, change),
            wording.p_value(change.p_value),
            wording.p_value(change.adjusted_p) + (" *" if change.changed else ""),
            f"{change.n:,}",
        )
        for change in run.changes
    ]
    return Table(("Set or subject", "Kind", "Metric", "Change", "95 % interval", "p", "Adjusted p", "n"), rows)


def topics_table(run: Run) -> Table:
    """Each topic with what was asked and what was chosen from measurement."""
    asked = {topic.name: topic for topic in run.config.topics}
    rows = []
    for name in run.topics:
        made = run.config.chosen.topics.get(name, Chosen())
        values = (made.steering_coefficient, made.median_norm, made.retain_weight, made.num_samples, made.tokens)
        source = asked.get(name, Topic(name)).source
        rows.append((name, *map(wording.setting, (source, *values))))
    head = ("Topic", "Source", "Steering coefficient", "Median token norm", "Retain weight", "Samples", "Tokens")
    return Table(head, rows)


def retain_table(run: Run) -> Table:
    chosen = run.config.chosen.retain

    def row(corpus: Corpus) -> tuple[str, ...]:
        values = (corpus.source, corpus.weight, chosen.get(corpus.name, Chosen()).num_samples)
        return corpus.name, *map(wording.setting, values)

    rows = [row(corpus) for corpus in run.config.retain]
    return Table(("Retain corpus", "Source", "Weight in the mixture", "Samples"), rows)


def settings_table(run: Run) -> Table:
    """Every setting with its help text; those that are not set are left out."""
    helps: Mapping[str, str] = {f.name: str(f.metadata["help"]) for f in dataclasses.fields(UnlearnConfig)}
    rows = [
        (name, wording.setting(data), re.sub(r" \[default:.*\]$", "", helps.get(name, "")))
        for name, data in run.config.settings.items()
        if data is not None
    ]
    return Table(("Setting", "Value", "Meaning"), rows)
