"""The run directory, the only interface between stages: paths, atomic files, environment, what is complete.

A file is written under a temporary name beside its place and renamed, so existing means complete. This module imports
no torch; JSON here, tensors in `misdirect.model.delta`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from misdirect import storage
from misdirect.runs.stored import RunConfig, typed
from misdirect.storage import read_json, require_file

CONFIG, ENV, LOG, SUMMARY = "config.json", "env.json", "log.jsonl", "summary.json"
DELTA, CONTROL, CHECKPOINT = "delta.safetensors", "control.safetensors", "checkpoint.safetensors"
REPORT, AUDIT = "report.html", "audit.json"


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


def is_run(path: Path) -> bool:
    """Whether a folder holds a run of ours; a model folder has a `config.json` too, but no `misdirect` in it.

    Raises ValueError where its `config.json` is not what misdirect writes.
    """
    if not (path / CONFIG).is_file():
        return False
    config = read_json(path / CONFIG)
    if not isinstance(config, dict) or "misdirect" not in config:
        return False
    read_config(path)
    return True


# What `config.json` of a finished run has at least
FINISHED = ("model", "settings", "topics", "retain", "data.model_sha256", "data.dtype", "chosen.block")


def read_config(run: Path) -> RunConfig:
    """Raises ValueError where `config.json` is not what misdirect writes."""
    config = read_json(run / CONFIG)
    try:
        return typed(config, RunConfig)
    except ValueError as error:
        raise damaged(run, str(error)) from None


def damaged(run: Path, what: str) -> ValueError:
    return ValueError(f"{run / CONFIG} is damaged ({what}); expected the file as it was, or another folder")


def require_run(path: Path) -> None:
    """Raises ValueError unless `path` is a finished run."""
    if not is_run(path):
        raise ValueError(f"{path} is not a run (no {CONFIG}); expected a folder that `misdirect unlearn` wrote")
    config = read_json(path / CONFIG)
    for name in FINISHED:
        group, _, entry = name.rpartition(".")
        if (config.get(group, {}) if group else config).get(entry) is None:
            raise damaged(path, f"{name} is missing")
    if not (path / DELTA).is_file():
        raise ValueError(
            f"{path} is an unfinished run (no {DELTA}); expected the same misdirect unlearn command again: it resumes"
        )


def read_env(run: Path) -> dict[str, Any]:
    """`env.json`, empty where there is none. Raises ValueError where it is not JSON object."""
    env = read_json(run / ENV) if (run / ENV).exists() else {}
    if not isinstance(env, dict):
        raise ValueError(f"{run / ENV} is damaged: it holds no JSON object; expected that file removed")
    return env


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
