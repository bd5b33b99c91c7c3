"""Settings of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from misdirect.config import Dtype, option

Format = Literal["full", "delta", "adapter"]


@dataclass(frozen=True)
class ExportConfig:
    """What an export holds."""

    format: Format = option(
        "full",
        "full (a whole checkpoint for any tool), adapter (a PEFT LoRA of the change), delta (what may be published of the run).",
    )
    dtype: Dtype = option("auto", "Dtype of the numbers; auto is that of the base's files, for an adapter float32.")
    max_shard_size: str | None = option(None, "Largest file, such as 5GB. [default: the base's own files]")
    keep: float = option(0.99, "Share of the squared change that an adapter keeps; its rank is the smallest that does.")

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ValueError(f"--keep {self.keep} is not a share; expected more than 0 and at most 1, such as 0.99")
