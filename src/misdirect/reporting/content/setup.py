"""What a run was made of, in tables: topics, corpora, settings, data by hash, and what it is called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from misdirect.config import UnlearnConfig
from misdirect.reporting import wording
from misdirect.reporting.content.form import Table
from misdirect.reporting.load.run import Run
from misdirect.reporting.wording import NONE
from misdirect.runs.stored import Chosen, Corpus, Topic

SHOWN = ("block", "num_blocks", "updates", "epochs", "batch_size", "retain_batch_size", "max_tokens", "lr", "schedule",
         "warmup", "clip", "numerics", "seed", "recipe")  # fmt: skip
MEASURED = {"mcq": "questions", "nll": "held-out text", "generation": "prompts", "harness": "harness task"}


def done(run: Run) -> str:
    """`150 updates in 7 minutes`; empty where no update is known of."""
    if run.updates is None:
        return ""
    took = f" in {wording.duration(run.seconds)}" if run.seconds else ""
    return f"{wording.counted(run.updates, 'update')}{took}"


def topics(run: Run) -> Table:
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


def strengths(run: Run) -> Table:
    """Each topic's steering coefficient beside the norm that it is measured by."""
    rows = []
    for name in run.topics:
        made = run.config.chosen.topics.get(name, Chosen())
        norm, strength = made.median_norm, made.steering_coefficient
        ratio = f"{strength / norm:.3g}" if norm and strength is not None else NONE
        values = [NONE if x is None else f"{x:.4g}" for x in (strength, norm, made.retain_weight)]
        rows.append((name, values[0], values[1], ratio, values[2]))
    head = ("Topic", "Steering coefficient c", "Median token norm", "c over that norm", "Retain weight alpha")
    return Table(head, rows)


def retain(run: Run) -> Table:
    chosen = run.config.chosen.retain

    def row(corpus: Corpus) -> tuple[str, ...]:
        values = (corpus.source, corpus.weight, chosen.get(corpus.name, Chosen()).num_samples)
        return corpus.name, *map(wording.setting, values)

    rows = [row(corpus) for corpus in run.config.retain]
    return Table(("Retain corpus", "Source", "Weight in the mixture", "Samples"), rows)


def settings(run: Run) -> Table:
    """Every setting with its help text; those that are not set are left out."""
    helps: Mapping[str, str] = {f.name: str(f.metadata["help"]) for f in dataclasses.fields(UnlearnConfig)}
    rows = [
        (name, wording.setting(data), re.sub(r" \[default:.*\]$", "", helps.get(name, "")))
        for name, data in run.config.settings.items()
        if data is not None
    ]
    return Table(("Setting", "Value", "Meaning"), rows)


def settings_in_words(run: Run) -> str:
    found = run.config.settings
    return ", ".join(f"{name} {wording.setting(found[name])}" for name in SHOWN if found.get(name) is not None)


def data(run: Run) -> Table:
    """All data by name and hash: what was trained on, then what was measured (its hash is kept, its source is not)."""
    config = run.config
    rows: list[tuple[str, ...]] = []
    asked: tuple[tuple[str, Sequence[Topic | Corpus], Mapping[str, str], Mapping[str, Chosen]], ...] = (
        ("forget text", config.topics, config.data.forget_sha256, config.chosen.topics),
        ("retain text", config.retain, config.data.retain_sha256, config.chosen.retain),
    )
    for role, sources, hashes, chosen in asked:
        for row in sources:
            samples = chosen.get(row.name, Chosen()).num_samples
            items = NONE if samples is None else f"{samples:,} samples"
            rows.append((row.name, role, wording.setting(row.source), items, hashes.get(row.name, NONE)))
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for result in run.results:
        role, how = MEASURED.get(result.measurement, "measured"), result.config
        items = wording.count(how.get("questions", how.get("texts")))
        found[role, result.set] = (result.set, role, NONE, items, str(how.get("sha256") or NONE))
    return Table(("Name", "Role", "Source", "Size", "SHA-256"), [*rows, *found.values()])
