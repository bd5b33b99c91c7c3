"""The run directory, the only interface between stages: paths, atomic files, environment, what is complete.

A file is written under a temporary name beside its place and renamed, so existing means complete. This module imports
no torch; JSON here, tensors in `misdirect.model.delta`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misdirect import storage, unsound
from misdirect.config import SPEED_ONLY
from misdirect.progress import note_once
from misdirect.storage import json_form, read_json, require_file, write_json

CONFIG, ENV, LOG, SUMMARY = "config.json", "env.json", "log.jsonl", "summary.json"
DELTA, CONTROL, CHECKPOINT = "delta.safetensors", "control.safetensors", "checkpoint.safetensors"
REPORT, AUDIT = "report.html", "audit.json"


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


@contextmanager
def writing(*folders: Path) -> Iterator[None]:
    """Held while a run directory is written to: one writer a folder, and what a killed one had half written is removed.

    Nested calls of one thread count as one, so a verb may call another. Raises ValueError, naming the holder, where
    another process is at work in one of the folders.
    """
    with ExitStack() as stack:
        for folder in folders:
            if stack.enter_context(storage.held(folder)):
                remove_torn(folder)
        yield


def remove_torn(folder: Path) -> None:
    """Removes what a killed process had half written; `seeds` holds folders with a lock of their own."""
    for pattern in (".*.part", "results/**/.*.part", "figures/**/.*.part"):
        for torn in folder.glob(pattern):
            with suppress(OSError):
                torn.unlink()


def read_log(run: Path) -> list[dict[str, Any]]:
    """The lines of `log.jsonl`, a torn last one and whatever else is no line of a log left out."""
    if not (run / LOG).exists():
        return []
    require_file(run / LOG)
    try:
        text = (run / LOG).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ValueError(f"{run / LOG} cannot be read: {error.strerror}") from None
    rows = []
    for line in text.split("\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int:
                rows.append(row)
    return rows


# What a run's `config.json` holds at least, for those who measure it
CONFIG_TYPES = {
    "model": str, "settings": dict, "topics": list, "retain": list, "data": dict, "chosen": dict,
    "data.model_sha256": str, "data.dtype": str, "chosen.block": int,
}  # fmt: skip


def wrong_in_config(config: Mapping[str, Any], complete: bool) -> str | None:
    """The first entry that has another type than misdirect gave it, or, of a `complete` one, that is missing."""
    for name, kind in CONFIG_TYPES.items():
        head, _, tail = name.partition(".")
        found = config.get(head) if not tail else (config.get(head) or {}).get(tail)
        if not isinstance(found, kind) and (complete or found is not None):
            return name
    for name in ("topics", "retain"):
        for one in config.get(name) or ():
            if not isinstance(one, dict) or not isinstance(one.get("name"), str):
                return name
    return None


def is_run(path: Path) -> bool:
    """Whether a folder holds a run of ours; a model folder has a `config.json` too, but no `misdirect` in it.

    Raises ValueError where its `config.json` is not what misdirect writes.
    """
    if not (path / CONFIG).is_file():
        return False
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "misdirect" not in config:
        return False
    refuse_damaged(path, config, complete=False)
    return True


def of_the_demo(config: Mapping[str, Any]) -> bool:
    """Whether a run's `config.json` names the demo's model and built-in topics alone; there, text may be shown."""
    topics = config.get("topics")
    rows = [row for row in topics if isinstance(row, Mapping)] if isinstance(topics, list) else []
    return config.get("model") == "demo" and all(str(row.get("source")).startswith("demo-") for row in rows)


def refuse_damaged(path: Path, config: Mapping[str, Any], complete: bool) -> None:
    wrong = wrong_in_config(config, complete)
    if wrong:
        raise ValueError(
            f"{path / CONFIG} is damaged: {wrong} is missing or no entry of misdirect's; expected the file as it was, or "
            "another folder"
        )


def require_run(path: Path) -> None:
    """Raises ValueError unless `path` is a finished run."""
    if not is_run(path):
        raise ValueError(f"{path} is no run (no {CONFIG}); expected a folder that `misdirect unlearn` wrote")
    refuse_damaged(path, read_json(path / CONFIG), complete=True)
    if not (path / DELTA).is_file():
        raise ValueError(
            f"{path} is an unfinished run (no {DELTA}); expected the same misdirect unlearn command again: it goes on"
        )


def read_env(run: Path) -> dict[str, Any]:
    """`env.json`, empty where there is none. Raises ValueError where it is no JSON object."""
    env = read_json(run / ENV) if (run / ENV).exists() else {}
    if not isinstance(env, dict):
        raise ValueError(f"{run / ENV} is damaged: it holds no JSON object; expected that file removed")
    return env


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


def save_result(run: Path, model: str, result: Result, attack: str | None = None) -> None:
    metrics = [row_of(metric) for metric in result.metrics]
    write_json(
        result_path(run, model, result.measurement, result.set, attack),
        asdict(result) | {"model": model, "attack": attack, "metrics": metrics},
    )


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
    wrong = wrong_in_result(result)
    if wrong:
        raise ValueError(
            f"{path} is no result of misdirect ({wrong}); expected that file removed: it is measured again"
        )
    return result


RESULT_TYPES = {
    "model": str, "attack": str | None, "measurement": str, "set": str, "config": dict, "metrics": list, "records": list,
}  # fmt: skip
NUMBERS = ("value", "stderr", "n", "low", "high", "chance", "floor", "step", "block", "budget")


def wrong_in_result(result: Any) -> str | None:
    """What a result lacks or has of another type, in words."""
    if not isinstance(result, dict):
        return "no JSON object"
    for name, kind in RESULT_TYPES.items():
        if name not in result and name != "records":
            return f"{name} is missing"
        if not isinstance(result.get(name, []), kind):
            return f"{name} has another type"
    if not all(isinstance(record, dict) for record in result.get("records", ())):
        return "a record is no object"
    return next((wrong for metric in result["metrics"] if (wrong := wrong_in_metric(metric))), None)


def wrong_in_metric(metric: Any) -> str | None:
    if not isinstance(metric, dict) or not isinstance(metric.get("metric"), str) or "value" not in metric:
        return "a metric has no name or no value"
    paired = metric.get("paired")
    if not isinstance(paired, dict | None) or not isinstance(metric.get("subject"), str | None):
        return f"{metric['metric']} has another type"
    for name, value in [*((name, metric.get(name)) for name in NUMBERS), *(paired or {}).items()]:
        if not isinstance(value, int | float | None) or isinstance(value, bool):
            return f"{name} of {metric['metric']} is no number"
    return None


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


def environment() -> dict[str, Any]:
    """Versions of what computes, without importing it."""
    versions = {}
    for package in ("misdirect", "torch", "transformers", "tokenizers", "safetensors", "numpy", "lm_eval"):
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "command": shlex.join(["misdirect", *sys.argv[1:]]),
    }
