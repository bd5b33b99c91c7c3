"""A plan as data, and as the words and tables that a terminal shows. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from misdirect.text import duration, size


@dataclass(frozen=True)
class Stage:
    """One stage of a run: its time, the peak memory of the process in it, and what both rest on."""

    name: str
    seconds: float
    memory: int  # bytes
    basis: str


@dataclass(frozen=True)
class File:
    """One thing that a run writes or fetches; `kept` where it is still there afterwards."""

    name: str
    bytes: int
    kept: bool = True


@dataclass(frozen=True)
class Machine:
    """Where the run is planned for; `memory` and `disk` are what is free, in bytes."""

    device: str
    dtype: str
    threads: int
    memory: int
    disk: int


@dataclass(frozen=True)
class Plan:
    """What a run takes. `problems`: what does not fit here, each with the setting that does; empty where all fits."""

    model: str
    architecture: str
    num_blocks: int  # of the full model
    num_parameters: int  # of the full model
    machine: Machine
    settings: Mapping[str, Any]  # of the unlearning, resolved
    trained: tuple[str, ...]  # the trained matrices' names in the full model
    stages: tuple[Stage, ...]
    files: tuple[File, ...]
    assumptions: tuple[str, ...]
    problems: tuple[str, ...]
    command: str  # what to type next

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def memory(self) -> int:
        """Peak memory of the process, in bytes."""
        return max(stage.memory for stage in self.stages)

    @property
    def disk(self) -> int:
        """The most that is on the disk at once, in bytes."""
        return sum(file.bytes for file in self.files)

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def as_dict(self) -> dict[str, Any]:
        """The plan as plain JSON data, with its totals."""
        return dataclasses.asdict(self) | {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}


COLUMNS = ("stage", "time", "memory", "rests on")


def table_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """The rows under `COLUMNS`: a stage each, then the total."""
    rows = [(s.name, duration(s.seconds), size(s.memory), s.basis) for s in plan.stages]
    return [*rows, ("all", duration(plan.seconds), size(plan.memory), "the sum of the times, the largest memory")]


def heading(plan: Plan) -> str:
    """The line above the table: the model and the machine."""
    here = plan.machine
    threads = f", {here.threads} thread{'s' * (here.threads != 1)}" if here.device == "cpu" else ""
    return (
        f"{plan.model}: {plan.architecture}, {plan.num_parameters / 1e6:,.0f} million parameters, {plan.num_blocks} blocks; "
        f"here on {here.device}{threads} in {here.dtype}, {size(here.memory)} of memory and {size(here.disk)} of disk free"
    )


def lines(plan: Plan) -> list[str]:
    """What stands under the table, one sentence a line: what does not fit, disk, what is trained, assumptions."""
    kept = sum(file.bytes for file in plan.files if file.kept)
    files = ", ".join(f"{f.name} {size(f.bytes)}{'' if f.kept else ' (while it runs)'}" for f in plan.files)
    return [
        *(f"Does not fit: {problem}" for problem in plan.problems),
        f"Disk: {size(plan.disk)}, of which {size(kept)} stay: {files}",
        f"Trained: {', '.join(plan.trained)}",
        *(f"Assumed: {text}" for text in plan.assumptions),
    ]
