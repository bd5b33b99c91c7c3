"""What a model card says of an audit: the headline and the strongest attacks as numbers, and what was not run. No texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content import audit_headline
from misdirect.reporting.content.form import Cell, Table
from misdirect.reporting.load.audit import DONE, FAILED, NOT_RUN, Audit
from misdirect.reporting.wording import Number

HEAD = (
    "Attack",
    "Set",
    "Access",
    "Comes back",
    "Right after",
    "Base, same attack",
    "General ability",
    "Time",
    "Tokens",
)
MOST = 8  # attacks of a set


def view(audit: Audit) -> dict[str, Any]:
    """All that the card's template shows."""
    return {
        "said": sentences(audit),
        "attacks": table(audit),
        "more": more(audit),
        "not_run": not_run(audit),
    }


def sentences(audit: Audit) -> list[str]:
    """The headline of every forgotten set with what bounds it, then how to take it."""
    found = [line for each in audit_headline.headlines(audit) for line in (each.sentence, *each.small)]
    crossed = any(audit.share(name) is not None for name in audit.forgotten)
    return [
        *found,
        *([audit_headline.EXPLAINED] if crossed else []),
        *audit_headline.silent(audit),
        *audit_headline.unknown(audit),
    ]


def table(audit: Audit) -> Table:
    """The strongest attacks of every set."""
    rows: list[tuple[str | Number | Cell, ...]] = []
    for name in audit.forgotten:
        told = [line for line in audited.lines(audit, name) if not line.status]
        for line in told[:MOST]:
            rows.append((line.title, name, line.access, *numbers(line)))
    return Table(HEAD, rows, 3)


def printed(lines: Sequence[audited.Line]) -> Table:
    """What a terminal has room for."""
    head = ("attack", "comes back (95 %)", "right after", "base, same attack", "general ability", "time", "tokens")
    return Table(head, [(line.title, *numbers(line)) for line in lines], 1)


def numbers(line: audited.Line) -> tuple[str | Number | Cell, ...]:
    return line.share, line.after, line.control, line.general, line.seconds, line.tokens


def more(audit: Audit) -> int:
    """Attacks that were measured and are not in the table, of the set that has most of them."""
    counts = [sum(not line.status for line in audited.lines(audit, name)) for name in audit.forgotten]
    return max(0, max(counts, default=0) - MOST)


def not_run(audit: Audit) -> list[str]:
    """Titles of what says nothing, by status."""
    by_status: dict[str, list[str]] = {}
    for each in audit.attempts:
        if each.status != DONE:
            by_status.setdefault(each.status, []).append(each.title)
    order: Sequence[str] = (*(s for s in by_status if s not in (FAILED, NOT_RUN)), FAILED, NOT_RUN)
    return [f"{status}: {wording.listed(by_status[status])}" for status in order if status in by_status]
