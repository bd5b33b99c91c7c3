"""Names that an audit's files share between who writes and who reads them, and when an attack's control held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BASELINE = "none"  # the pseudo-attack in which both models are asked as they are
STRONGEST = "strongest"  # the pseudo-attack whose headline is the audit's
RECOVERED = "recovered"  # the measurement that holds the recovered share
AXES = ("step", "block", "budget")  # where on its budget a point of an attack stands
DONE, INCONCLUSIVE, NOT_RUN, FAILED = "done", "inconclusive", "not run", "failed"
POSITIVE_CONTROL = "positive_control"


def control_held(result: Mapping[str, Any]) -> bool:
    """Whether an attack did what it should on the model of a stored result, where it says so."""
    rows = [m for m in result["metrics"] if m["metric"] == POSITIVE_CONTROL]
    return all(row["value"] and row["value"] > 0 for row in rows)
