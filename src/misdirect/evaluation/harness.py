"""Any task of lm-evaluation-harness, measured on a model in memory: the door to the field's other benchmarks.

The harness itself renders the prompts, asks the model and computes the metrics, so that the numbers are its own; the
extra `eval` installs it. A task is named as the harness names it (`hellaswag`, a group such as `mmlu`, a tag), or is a
YAML file of that form. `NAME=SOURCE` keeps the task's prompts and metrics and takes its documents from local files.

    task = read_task("mmlu_anatomy", "anatomy/", EvaluateConfig(limit=50))   # anatomy/{test,dev}.jsonl
    result = harness(lm, task.name, task, EvaluateConfig(limit=50), None)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from misdirect.config import EvaluateConfig
from misdirect.model.load import LM
from misdirect.runs import Result

MEASUREMENT = "harness"


@dataclass(frozen=True)
class HarnessTask:
    """A task or group, its documents read and its prompts rendered; `leaves`: the harness's own task objects."""

    name: str
    leaves: tuple[Any, ...]


def parse_tasks(texts: Sequence[str]) -> dict[str, str | None]:
    """`["mmlu,hellaswag", "mmlu_anatomy=FOLDER"]` -> task -> SOURCE, or None where the harness fetches its data.

    Raises ValueError for an empty name and for one that comes twice.
    """
    raise NotImplementedError


def read_task(spec: str, source: str | None, config: EvaluateConfig) -> HarnessTask:
    """Finds a task, reads its documents and renders its prompts, before any model is loaded.

    `limit` documents are drawn with the seed, over all tasks of a group together. `shots` 0 keeps the task's own number
    of examples. Raises ValueError, one line each: lm-evaluation-harness is not installed, no such task, no data.
    """
    raise NotImplementedError


def config_of(config: EvaluateConfig, task: HarnessTask) -> dict[str, Any]:
    """What determines the numbers: the task's version and a hash of its documents and prompts among it."""
    raise NotImplementedError


def num_items(task: HarnessTask, config: EvaluateConfig) -> int:
    """How many requests `harness` advances by in all."""
    raise NotImplementedError


def num_chars(task: HarnessTask, config: EvaluateConfig) -> int:
    """Characters that the model reads in all, for an estimate of the time."""
    raise NotImplementedError


def harness(
    lm: LM, name: str, task: HarnessTask, config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> Result:
    """Asks the model; rows as the harness names them (`acc`, `acc_norm`, ..), for a group also `_macro`, `_by_subject`."""
    raise NotImplementedError


def judged(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with `base_knows` and, where it is not the base's own, paired comparisons (by subject too)."""
    raise NotImplementedError
