"""What unlearning took away: both models without any attack, on the very questions that the attacks are measured by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misdirect.attacks import scoring
from misdirect.attacks.interface import AttackInputs
from misdirect.auditing import recovery
from misdirect.auditing.inputs import MIN_QUESTIONS
from misdirect.auditing.pair import MODELS, Model
from misdirect.auditing.record import answers_of
from misdirect.progress import note
from misdirect.runs.audit import BASELINE


def baseline_answers(folder: Path, inputs: AttackInputs, model: Model) -> scoring.ChoiceLogprobs:
    """What a model answers without attack, out of the stored records."""
    names = (*inputs.forgotten, *inputs.retained)
    found = {name: answers_of(folder, BASELINE, model, name)["records"] for name in names}
    return {name: [list(map(float, r["points"][0]["logprobs"])) for r in records] for name, records in found.items()}


def tested(folder: Path, inputs: AttackInputs, name: str) -> recovery.Removal:
    base, unlearned = (answers_of(folder, BASELINE, model, name) for model in MODELS)
    return recovery.tested(base, unlearned, inputs.forgotten[name].facts)


def split_of(folder: Path, inputs: AttackInputs) -> dict[str, dict[str, int]]:
    return {
        name: {
            "asked": len(halves.train) + len(halves.test),
            "attacked": len(halves.train),
            "tested": len(halves.test),
            "known": int(tested(folder, inputs, name).base.sum()),
        }
        for name, halves in inputs.forgotten.items()
    }


def removed(folder: Path, inputs: AttackInputs) -> dict[str, dict[str, Any]]:
    """What unlearning took away on the tested questions: a positive share of all, and whether it is more than chance.

    `attacked`: where a loss shows, or where there are too few questions for any to show and fewer are right than before.
    """
    out = {}
    for name in inputs.forgotten:
        found = tested(folder, inputs, name)
        change = found.removed
        out[name] = {
            "value": -change.difference, "stderr": change.stderr, "low": -change.high, "high": -change.low, "n": change.n,
            "removed": found.anything_removed,
            "attacked": found.anything_removed or bool(change.n < MIN_QUESTIONS and change.difference < 0),
            "base": float(found.base.mean()), "unlearned": float(found.unlearned.mean()),
        }  # fmt: skip
    return out


def say(name: str, found: Mapping[str, Any]) -> None:
    value, low, high = (100 * found[key] for key in ("value", "low", "high"))
    span = f"{100 * found['base']:.1f} % before, {100 * found['unlearned']:.1f} % after"
    lost = f"{value:.1f} points [{low:.1f}, {high:.1f}]"
    lost += "" if found["removed"] else ": nothing was removed, as far as so many questions can tell"
    note(f"{name}, {found['n']} tested questions: {span}, {lost}")
