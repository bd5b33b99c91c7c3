"""Results of measurements as files, and `summary.json`, the flat list of every metric of a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misdirect.config import SPEED_ONLY
from misdirect.progress import note_once
from misdirect.runs import unsound
from misdirect.runs.folder import SUMMARY
from misdirect.runs.stored import StoredResult, typed
from misdirect.storage import json_form, read_json, write_json


@dataclass(frozen=True)
class Metric:
    """One number with its uncertainty: a row of `summary.json` less what the result says once."""

    metric: str
    value: float
    stderr: float | None = None
    n: int | None = None
    low: float | None = None
    high: float | None = None
    chance: float | None = None
    floor: float | None = None
    step: int | None = None
    block: int | None = None
    budget: float | None = None
    subject: str | None = None
    base_knows: bool | None = None
    headline: bool | None = None
    paired: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Result:
    """A measurement: its own config, metrics, and the per-item records that every metric can be computed from again."""

    measurement: str
    set: str
    config: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    records: tuple[Mapping[str, Any], ...]
    seconds: float = 0.0


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the settings that differ, those that only change the speed left out."""
    names = []
    for key in sorted(old.keys() | new.keys()):
        if key in SPEED_ONLY or old.get(key) == new.get(key):
            continue
        names.append(key)
    return names


def result_path(run: Path, model: str, measurement: str, name: str, attack: str | None = None) -> Path:
    """`results/base/mcq.biology.json`; under an attack `results/attacks/ATTACK/base/mcq.biology.json`.

    The set's name is the user's, so only its safe characters stay, 50 at most; attacks have safe names.
    """
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:50]
    if safe != name:
        safe += "-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    folder = run / "results" if attack is None else attack_folder(run, attack)
    return folder / model / f"{measurement}.{safe}.json"


def attack_folder(run: Path, attack: str) -> Path:
    return run / "results" / "attacks" / attack


def save_result(run: Path, model: str, result: Result, attack: str | None = None) -> dict[str, Any]:
    """Returns what is stored, as it is read again."""
    metrics = [row_of(metric) for metric in result.metrics]
    stored = json_form(asdict(result) | {"model": model, "attack": attack, "metrics": metrics})
    write_json(result_path(run, model, result.measurement, result.set, attack), stored)
    return stored


def row_of(metric: Metric) -> dict[str, Any]:
    """A metric as a row, without what it does not have."""
    return {key: value for key, value in asdict(metric).items() if value is not None}


def load_result(
    run: Path, model: str, measurement: str, name: str, config: Mapping[str, Any], attack: str | None = None
) -> dict[str, Any] | None:
    """The stored result, or None when there is none yet, or one that an audit made for itself with other settings.

    Raises ValueError naming the fields when it was measured with other settings.
    """
    path = result_path(run, model, measurement, name, attack)
    if not path.exists():
        return None
    stored = read_result(path)
    check_sound(path, stored)
    own = dict(stored["config"])
    provisional = own.pop("asked_by", None) == "audit"  # a sample, to find the format: an evaluation takes its place
    fields = differing(own, json_form(config))
    if fields and provisional:
        return None
    if fields:
        changes = ", ".join(f"{f} {stored['config'].get(f)!r} -> {config.get(f)!r}" for f in fields)
        raise ValueError(
            f"{path} was measured with other settings ({changes}); expected the same, another NAME, or that file removed"
        )
    return stored


def load_results(run: Path) -> list[dict[str, Any]]:
    """Every result of a run in a fixed order: base, unlearned, then attacks; what is not sound is left out, and said."""
    results, lines = unsound.usable([(path, read_result(path)) for path in sorted((run / "results").rglob("*.json"))])
    for line in lines:
        note_once(line)
    return results


def check_sound(path: Path, result: Mapping[str, Any]) -> None:
    """Raises ValueError where a stored result holds log-probabilities that are not finite."""
    if line := unsound.complaint(path, result):
        raise ValueError(line)


def read_result(path: Path) -> dict[str, Any]:
    """Raises ValueError where the file is not a result that misdirect wrote."""
    result = read_json(path)
    try:
        typed(result, StoredResult)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a result of misdirect ({error}); expected that file removed: it is measured again"
        ) from None
    return result


@contextmanager
def as_damaged(*paths: Path) -> Iterator[None]:
    """Around work on stored records: what they lack is a ValueError that names the files."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(
            f"{' or '.join(map(str, paths))} is no result of misdirect ({what}); expected that file removed: it is "
            "measured again"
        ) from None


def summary_rows(results: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every metric of every result as one flat list: the shape that reports, CI and other people's scripts read."""
    return [
        {"model": r["model"], "attack": r["attack"], "measurement": r["measurement"], "set": r["set"]} | metric
        for r in results
        for metric in r["metrics"]
    ]


def write_summary(run: Path, further: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """`further`: rows that no single result holds, such as the spread over seeds."""
    rows = [*summary_rows(load_results(run)), *map(dict, further)]
    write_json(run / SUMMARY, rows)
    return rows
