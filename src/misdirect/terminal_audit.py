"""What `audit` prints when it is done: a row an attack, the strongest first, what says nothing, then the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LISTED = 8  # attacks that were not run: with more, the page lists them
COLUMNS = ("attack", "comes back (95 %)", "right after", "base, same attack", "general ability", "cost")


def print_audit(rows: Sequence[Mapping[str, Any]], audit: Mapping[str, Any], run: Path | None = None) -> None:
    """`rows`: those of summary.json; `audit`: audit.json. `run`: the audit's folder, to name the strongest attack."""
    from rich.console import Console
    from rich.markup import escape

    from misdirect.reporting import audited
    from misdirect.reporting.audits import STRONGEST, audit_of, results_of
    from misdirect.text import clean

    stored = strongest_of(run) if run else []
    results = [r for r in results_of(rows) if not (stored and r["attack"] == STRONGEST)] + stored
    found = audit_of(clean(dict(audit)), [clean(result) for result in results])
    if found is None:
        return
    console = Console()
    if not console.is_terminal:
        console.width = 130
    for name in found.forgotten:
        print(f"\n{plain(name)}" if len(found.forgotten) > 1 else "")
        lines = [audited.line(found, each, name) for each in audited.ranked(found, name)]
        if any(not line.status for line in lines):
            console.print(table_of([line for line in lines if not line.status]))
        unrun = [line for line in lines if line.unrun]
        for line in lines:
            if line.status and not (line.unrun and len(unrun) > LISTED):
                console.print(escape(plain(f"{line.title}: {line.status}")), style="dim", highlight=False)
        if len(unrun) > LISTED:
            console.print(f"Not run: {len(unrun)} attacks; the page says why", style="dim", highlight=False)
    console.print()
    for each in audited.headlines(found):
        console.print(escape(plain(each.sentence)), style="bold", highlight=False)
        for text in each.small[:-1]:
            console.print(escape(plain(text)), highlight=False)
    for text in (*audited.silent(found), *audited.unknown(found)):
        console.print(escape(plain(text)), highlight=False)


def strongest_of(run: Path) -> list[dict[str, Any]]:
    from misdirect import runs
    from misdirect.reporting.audits import STRONGEST

    return [runs.read_result(path) for path in sorted(runs.attack_folder(run, STRONGEST).rglob("*.json"))]


def table_of(lines: Sequence[Any]) -> Any:
    """A rich table of `audited.Line`s that have a share."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        table.add_column(title, justify="left" if title == "attack" else "right", no_wrap=title != "attack")
    for line in lines:
        share = line.share + (f" [{line.interval.replace(' to ', ', ')}]" if line.interval else "")
        before = line.before.removeprefix("before ").removesuffix("\u00a0%")
        general = f"{before} \u2192 {line.general}" if before else line.general
        cost = line.seconds + (f", {line.tokens} tokens" if line.tokens[0].isdigit() else "")
        cells = (line.title, share, line.after, line.control, general, cost)
        table.add_row(*(escape(plain(cell)) for cell in cells))
    return table


def plain(text: str) -> str:
    return " ".join(text.split())
