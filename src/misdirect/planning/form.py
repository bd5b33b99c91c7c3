"""A plan as data, and as the words and tables that a terminal shows. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GB = 1e9


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
    kept: bool
    note: str


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
        return dataclasses.asdict(self) | {"seconds": self.seconds, "memory": self.memory, "disk": self.disk}


COLUMNS = ("stage", "time", "memory", "rests on")


def table_rows(plan: Plan) -> list[tuple[str, str, str, str]]:
    """The rows under `COLUMNS`: a stage each, then the total."""
    raise NotImplementedError


def lines(plan: Plan) -> list[str]:
    """What stands under the table: disk, problems, assumptions. One sentence a line."""
    raise NotImplementedError
