"""How far a long attack is on one model, in a file: a killed audit goes on from there.

    kept = read(case, attack)              # {} where nothing is kept, or what is kept is of another attack or material
    write(case, attack, {"step": 20})      # nothing is written where the case names no file

The file is no result: it goes when the attack is done.
"""

from __future__ import annotations

from typing import Any

from misdirect import storage
from misdirect.attacks.interface import Attack, Case
from misdirect.attacks.scoring import config_of


def read(case: Case, attack: Attack) -> dict[str, Any]:
    if case.unfinished is None or not case.unfinished.exists():
        return {}
    kept = storage.read_json(case.unfinished)
    same = isinstance(kept, dict) and kept.get("config") == storage.json_form(config_of(case, attack))
    return kept.get("far", {}) if same else {}


def write(case: Case, attack: Attack, far: dict[str, Any]) -> None:
    if case.unfinished is not None:
        storage.write_json(case.unfinished, {"config": config_of(case, attack), "far": far})
