"""What a model card says of an audit: the headline and the strongest attacks as numbers, and what was not run. No texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.load.audit import DONE, FAILED, NOT_RUN, Audit

HEAD = "Attack | Set | Access | Comes back | Right after | Base, same attack | General ability | Time | Tokens"
MOST = 8  # attacks of a set


def view(audit: Audit, table: Callable[[str, Sequence[Sequence[str]]], Any]) -> dict[str, Any]:
    """All that the card's template shows. `table` writes a Markdown table."""
    return {
        "said": sentences(audit),
        "attacks": table(HEAD, rows(audit)),
        "more": more(audit),
        "not_run": not_run(audit),
    }


def sentences(audit: Audit) -> list[str]:
    """The headline of every forgotten set with what bounds it, then how to take it."""
    found = [line for each in audited.headlines(audit) for line in (each.sentence, *each.small)]
    crossed = any(audit.share(name) is not None for name in audit.forgotten)
    return [*found, *([audited.EXPLAINED] if crossed else []), *audited.silent(audit), *audited.unknown(audit)]


def rows(audit: Audit) -> list[tuple[str, ...]]:
    """The strongest attacks of every set."""
    out: list[tuple[str, ...]] = []
    for name in audit.forgotten:
        told = [line for line in audited.lines(audit, name) if not line.status]
        for line in told[:MOST]:
            share = line.share + (f" ({line.interval})" if line.interval else "")
            general = line.general + audited.bracketed(line.before, line.aside)
            out.append(
                (line.title, name, line.access, share, line.after, line.control, general, line.seconds, line.tokens)
            )
    return out


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
