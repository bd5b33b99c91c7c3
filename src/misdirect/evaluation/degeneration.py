"""Whether an answer is still language: measures of degenerate text, and a verdict by a fixed rule.

Signatures first; filled in next.
"""

from __future__ import annotations

from typing import Any


def measures(text: str) -> dict[str, float]:
    """`repetition`, `compression`, `alphanumeric` of a text: what can be seen without a model."""
    raise NotImplementedError


def verdict(turn: dict[str, Any]) -> str:
    """Why a recorded turn is degenerate: `not a number`, `empty`, `symbols`, `loop`, `salad`; empty where it is not."""
    raise NotImplementedError
