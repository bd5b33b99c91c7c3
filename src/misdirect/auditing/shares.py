"""The recovered shares of an audit as results: each finished attack's own, and that of the strongest of them all.

The points of finished attacks are read once and then kept in memory, attack by attack.

    points = read(folder, inputs, record)           # and every share is written
    add(folder, record, points, entry)              # another attack is finished
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misdirect import runs
from misdirect.attacks.interface import AttackInputs
from misdirect.auditing import record as records
from misdirect.auditing import recovery, removed
from misdirect.auditing.pair import MODELS
from misdirect.runs.audit import RECOVERED, STRONGEST


@dataclass(frozen=True)
class Points:
    """`without`: both models' answers without an attack, of each set that lost something. `of`: attack -> set -> its points,
    of attacks that are finished, could bring knowledge back, and did on the base what they should."""

    without: Mapping[str, recovery.Removal]
    of: dict[str, dict[str, list[recovery.Candidate]]]


def read(folder: Path, inputs: AttackInputs, record: Mapping[str, Any]) -> Points:
    lost = {
        name: removed.tested(folder, inputs, name) for name in inputs.forgotten if record["removed"][name]["attacked"]
    }
    points = Points(lost, {})
    for entry in record["attacks"]:
        add_own(folder, points, entry)
    write_strongest(folder, record, points)
    return points


def add(folder: Path, record: Mapping[str, Any], points: Points, entry: Mapping[str, Any]) -> None:
    """Writes the shares of one more attack, and of the strongest."""
    add_own(folder, points, entry)
    write_strongest(folder, record, points)


def add_own(folder: Path, points: Points, entry: Mapping[str, Any]) -> None:
    attack = entry["name"]
    if not entry.get("recovers") or not records.finished(entry) or not records.controlled(folder, attack):
        return
    points.of[attack] = {}
    for name, lost in points.without.items():
        base, unlearned = (records.answers_of(folder, attack, model, name) for model in MODELS)
        found = recovery.candidates(attack, unlearned, lost, base)
        points.of[attack][name] = found
        runs.save_result(folder, "unlearned", recovery.recovered(name, lost, attack, found), attack)


def write_strongest(folder: Path, record: Mapping[str, Any], points: Points) -> None:
    for name, lost in points.without.items():
        counted = [entry["name"] for entry in record["attacks"] if not records.teaches(entry)]
        found = [one for attack in counted for one in points.of.get(attack, {}).get(name, ())]
        if found:
            runs.save_result(folder, "unlearned", recovery.recovered(name, lost, STRONGEST, found), STRONGEST)
        else:  # nor may one stand that came from results which no longer count
            runs.result_path(folder, "unlearned", RECOVERED, name, STRONGEST).unlink(missing_ok=True)
