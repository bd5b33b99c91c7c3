"""The command that repeats a run: every setting written out, so that a later change of a recipe does not matter."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from misdirect.config import Corpus, Topic, UnlearnConfig, flag

# Settings that are said another way, or that do not change the numbers.
UNSAID = frozenset({"recipe", "steering", "alpha", "checkpoint_every", "device"})


def unlearn_command(
    model: str, topics: Sequence[Topic], retain: Sequence[Corpus], config: UnlearnConfig, out: str
) -> str:
    """`config` is resolved: what the recipe, the flags and the model's depth gave."""
    words = ["misdirect", "unlearn", model]
    words += [word for t in topics for word in ("--forget", f"{t.name}={t.source}")]
    words += [word for c in retain for word in ("--retain", f"{c.name}={c.source}@{c.weight}")]
    for name, common, own in (
        ("--steering", config.steering, {t.name: t.steering for t in topics}),
        ("--alpha", config.alpha, {t.name: t.retain_weight for t in topics}),
    ):
        words += [name, str(common)]
        words += [word for topic, value in own.items() if value is not None for word in (name, f"{topic}={value}")]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in UNSAID and value is not None and not (config.epochs and field.name == "updates"):
            words += [flag(field.name), str(value)]
    if config.numerics == "published":  # the three have no effect there and are refused
        for name in ("--schedule", "--warmup", "--clip"):
            at = words.index(name)
            del words[at : at + 2]
    return " ".join(shlex.quote(word) for word in [*words, "--out", out])
