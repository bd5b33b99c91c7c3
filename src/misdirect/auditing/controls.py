"""What the base does under attack, out of another audit: several models unlearned from one base share their controls.

A result is taken over when base, questions, texts, split and the attack's settings are the same, and when what the attack
does to the base does not hang on the unlearned model (`Attack.base_alone`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misdirect import runs, storage
from misdirect.auditing import record


def entries(other: Path) -> dict[str, Mapping[str, Any]]:
    """The attacks of another audit whose results on the base are stored, by name. Raises ValueError where it is none."""
    if not (other / runs.AUDIT).exists():
        raise ValueError(f"--controls {other} is no audit (no {runs.AUDIT}); expected the folder of one")
    return {entry["name"]: entry for entry in record.read(other)["attacks"] if "base" in entry["seconds"]}


def same(entry: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a stored attack differs from `config` in nothing but the unlearned model."""
    stored, asked = (dict(x) | {"models_sha256": x["models_sha256"]["base"]} for x in (entry["settings"], config))
    return not runs.differing(stored, asked)


def take_over(other: Path, folder: Path, name: str, config: Mapping[str, Any]) -> None:
    """Copies an attack's results on the base into an audit's folder, under that audit's own settings."""
    for path in record.paths_of(other, name, "base"):
        own = runs.attack_folder(folder, name) / "base" / path.name
        storage.write_json(own, runs.read_result(path) | {"config": dict(config)})
