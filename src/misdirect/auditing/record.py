"""An audit's record, `audit.json`, and the stored results that it speaks of.

The record holds what is compared, how the questions were split, and each attack with its status and the seconds it took on
each model. A number of seconds means that the results on that model are stored.

What the base does under attack can be taken over from another audit (`take_over`): several models unlearned from one base
share their controls. That is done where base, questions, texts, split and the attack's settings are the same, and where
what the attack does to the base does not hang on the unlearned model (`Attack.base_independent`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misdirect import runs, storage
from misdirect.attacks import scoring
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.auditing.pair import MODELS, Model
from misdirect.runs import unsound
from misdirect.runs.audit import NOT_RUN, control_held


def read(folder: Path) -> dict[str, Any]:
    """The stored record, empty where there is none yet; an attack whose results were removed, or are not finite, is as if
    never run.

    Raises ValueError where something else has that name.
    """
    path = folder / runs.AUDIT
    record = storage.read_json(path) if path.exists() else {}
    if not is_record(record):
        raise ValueError(f"{path} is no audit of misdirect; expected that file removed, or the folder of an audit")
    for entry in record.setdefault("attacks", []):
        why = {model: wrong_with(folder, entry["name"], model) for model in entry.setdefault("seconds", {})}
        there = {model: x for model, x in entry["seconds"].items() if not why[model]}
        if there != entry["seconds"]:
            entry |= {"seconds": there, "status": NOT_RUN, "why": next(filter(None, why.values()))}
    return record


def wrong_with(folder: Path, attack: str, model: str) -> str:
    """Why the stored results of an attack on one model do not count, or nothing."""
    paths = paths_of(folder, attack, model)
    spoilt = any(unsound.num_unsound(runs.read_result(path)) for path in paths)
    return "its results were removed" if not paths else "its results hold numbers that are not finite" if spoilt else ""


def is_record(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    forms, entries = found.get("forms", {}), found.get("attacks", [])
    if not isinstance(forms, dict) or not all(isinstance(form, str) for form in forms.values()):
        return False
    return isinstance(entries, list) and all(
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and all(isinstance(entry.get(key, {}), dict) for key in ("seconds", "settings"))
        for entry in entries
    )


def save(folder: Path, record: Mapping[str, Any]) -> None:
    storage.write_json(folder / runs.AUDIT, record)


def refuse_other_settings(
    folder: Path, record: Mapping[str, Any], inputs: AttackInputs, wanted: Sequence[Attack]
) -> None:
    """Raises ValueError where an attack has results that were measured with other settings."""
    for attack in wanted:
        entry = entry_of(record, attack.name)
        if entry and entry["seconds"]:
            names = runs.differing(entry.get("settings", {}), storage.json_form(scoring.config_of(inputs, attack)))
            if names:
                raise ValueError(
                    f"{attack.name} was run with other settings ({', '.join(names)} differ); expected the same, another "
                    f"--out, or {runs.attack_folder(folder, attack.name)} removed"
                )


def entry_of(record: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((entry for entry in record["attacks"] if entry["name"] == name), None)


def seconds_on(record: Mapping[str, Any], attack: Attack) -> Mapping[str, float]:
    """Seconds that a stored attack took, by model."""
    return (entry_of(record, attack.name) or {"seconds": {}})["seconds"]


def finished(entry: Mapping[str, Any] | None) -> bool:
    """Whether an attack's results on both models are stored."""
    return entry is not None and all(model in entry.get("seconds", {}) for model in MODELS)


def note_status(record: dict[str, Any], attack: Attack, status: str, why: str = "", **more: Any) -> dict[str, Any]:
    """Writes an attack's line of the record, keeping what is known of it."""
    entry = entry_of(record, attack.name)
    if entry is None:
        entry = {"name": attack.name, "seconds": {}}
        record["attacks"].append(entry)
    about = {
        "family": attack.family,
        "title": attack.title,
        "access": attack.attacker_access,
        "holds": attack.attacker_knowledge,
        "recovers": attack.recovers,
    }
    entry |= about | {"status": status, "why": why} | more
    return entry


def paths_of(folder: Path, attack: str, model: str) -> list[Path]:
    return sorted((runs.attack_folder(folder, attack) / model).glob("*.json"))


def results_of(folder: Path, attack: str, model: Model) -> list[dict[str, Any]]:
    return [runs.read_result(path) for path in paths_of(folder, attack, model)]


def controlled(folder: Path, attack: str) -> bool:
    """Whether an attack did on the base what it is meant to do."""
    return all(control_held(result) for result in results_of(folder, attack, "base"))


def teaches(entry: Mapping[str, Any]) -> bool:
    """Whether its text states tested facts: what it brings back may have been taught, so it is never the headline."""
    return bool(entry.get("settings", {}).get("texts_that_state_a_tested_fact"))


def answers_of(folder: Path, attack: str, model: Model, name: str) -> dict[str, Any]:
    """The stored result of one set."""
    return runs.read_result(runs.result_path(folder, model, scoring.MEASUREMENT, name, attack))


def entries(other: Path) -> dict[str, Mapping[str, Any]]:
    """The attacks of another audit whose results on the base are stored, by name. Raises ValueError where it is none."""
    if not (other / runs.AUDIT).exists():
        raise ValueError(f"--controls {other} is not an audit (no {runs.AUDIT}); expected the folder of one")
    return {entry["name"]: entry for entry in read(other)["attacks"] if "base" in entry["seconds"]}


def same(entry: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a stored attack differs from `config` in nothing but the unlearned model."""
    stored, asked = (dict(x) | {"models_sha256": x["models_sha256"]["base"]} for x in (entry["settings"], config))
    return not runs.differing(stored, asked)


def take_over(other: Path, folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Copies an attack's results on the base into an audit's folder, under that audit's own settings."""
    for path in paths_of(other, name, "base"):
        own = runs.attack_folder(folder, name) / "base" / path.name
        storage.write_json(own, runs.read_result(path) | {"config": dict(config)})
