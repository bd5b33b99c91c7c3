"""Pass or fail, for CI: at most so much of what was removed may come back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from misdirect import runs
from misdirect.runs.audit import DONE, STRONGEST


def gate(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any], limit: float) -> int:
    """Exit code 0 where every forgotten set lost something, relearning on other facts was measured, and little enough comes
    back, else 1.

    The larger of two shares counts: of what the base knows, and of the gap to the base under the same attack.
    """
    shares: dict[str, float] = {}
    for row in rows:
        if row["attack"] == STRONGEST and (row.get("headline") or row["metric"] == "gap_closed"):
            shares[row["set"]] = max(row["value"], shares.get(row["set"], row["value"]))
    if not all(map(math.isfinite, shares.values())):
        raise ValueError(f"a recovered share is not a finite number; expected {runs.SUMMARY} as the audit wrote it")
    done = [a["settings"] for a in record["attacks"] if a["status"] == DONE]
    relearned = any(settings.get("attack") == "relearn" and settings.get("text") == "facts" for settings in done)
    code = 0
    for name, found in record["removed"].items():
        share = shares.get(name)
        if not found["removed"]:
            verdict = "nothing was removed"
        elif share is None:
            verdict = "no attack was measured"
        elif share > limit:
            verdict = f"{100 * share:.1f} % of what was removed comes back"
        elif not relearned:
            verdict = "relearning was not measured"
        else:
            print(f"Gate passed: {name}: {100 * share:.1f} % comes back, at most {100 * limit:g} % allowed")
            continue
        print(f"Gate not passed: {name}: {verdict}; at most {100 * limit:g} % allowed")
        code = 1
    return code
