"""Values out of stored JSON: a mapping, rows, a finite number, or nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def mappings(data: Any) -> list[Mapping[str, Any]]:
    return [row for row in data if isinstance(row, Mapping)] if isinstance(data, list) else []


def number(row: Mapping[str, Any] | None, key: str) -> float | None:
    """A finite number, or None."""
    value = mapping(row).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None
