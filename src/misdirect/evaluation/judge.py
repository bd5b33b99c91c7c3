"""Scores of 1 to 10 for stored answers from a judge: any OpenAI-compatible endpoint that the user names. Never needed.

Signatures first; filled in next. Nothing but prompts and answers leaves the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from misdirect.config import EvaluateConfig


def check(config: EvaluateConfig) -> None:
    """Asks the judge for one score before anything runs. Raises ValueError where the address, key or model is wrong."""
    raise NotImplementedError


def unscored(result: Mapping[str, Any], config: EvaluateConfig) -> int:
    """Answers of a stored `generation` result that this judge has still to be asked about; 0 where no judge is named."""
    raise NotImplementedError


def scored(
    result: Mapping[str, Any], config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """A stored `generation` result with the judge's scores and the metric `judge_score`; what is scored is not asked again.

    Never raises for a judge that goes down in the middle: those answers stay without a score, one line says so, and
    the next call asks about them.
    """
    raise NotImplementedError
