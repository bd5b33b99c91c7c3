"""The progress of a long attack on one model, in a file: a killed audit resumes from there.

    kept = read(inputs, attack)               # {} where nothing is kept, or what is kept is of another attack or material
    write(inputs, attack, {"step": 20})       # nothing is written where the inputs name no file

The file is not a result: it goes when the attack is done.
"""

from __future__ import annotations

from typing import Any

from misdirect import storage
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.attacks.scoring import config_of


def read(inputs: AttackInputs, attack: Attack) -> dict[str, Any]:
    if inputs.progress_file is None or not inputs.progress_file.exists():
        return {}
    kept = storage.read_json(inputs.progress_file)
    same = isinstance(kept, dict) and kept.get("config") == storage.json_form(config_of(inputs, attack))
    return kept.get("far", {}) if same else {}


def write(inputs: AttackInputs, attack: Attack, progress: dict[str, Any]) -> None:
    if inputs.progress_file is not None:
        storage.write_json(inputs.progress_file, {"config": config_of(inputs, attack), "far": progress})
