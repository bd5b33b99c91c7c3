"""What is printed when a verb is done: a table of the headline numbers, and the next command to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misdirect import runs
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content import audit_card, audit_headline, evaluation, metrics
from misdirect.reporting.content.form import Cell, Table
from misdirect.reporting.load.audit import STRONGEST, audit_of, results_of
from misdirect.reporting.load.run import pairs_of
from misdirect.reporting.wording import NONE, Number
from misdirect.runs.collateral import collateral
from misdirect.runs.stored import AuditRecord, StoredResult, typed
from misdirect.text import clean

LISTED = 8  # attacks that were not run: with more, the page lists them
WORST = 5  # rows of collateral


def say_next(command: str, tool: bool = True) -> None:
    print(f"Next: {command}" if tool else f"Open it in a browser: {Path(shlex.split(command)[1]).resolve().as_uri()}")


def print_plan(plan: Any) -> None:
    """A `misdirect.planning.Plan`: a row a stage, then disk, what does not fit, and what was assumed."""
    from misdirect.planning import COLUMNS, heading, lines, table_rows

    print(heading(plan))
    write(Table(COLUMNS, table_rows(plan), 1, 1))
    for line in lines(plan):
        print(line)


def print_table(rows: Sequence[Mapping[str, Any]], topics: Sequence[str]) -> None:
    """The headline rows of `summary.json`, base beside unlearned; then, where sets have subjects, the worst of those kept."""
    found = [row for row in rows if not row["attack"]]
    write(metrics.headlines(pairs_of(results_of(found), topics, {})))
    kept = [change for change in collateral(rows, topics) if change.kind != "forget"]
    if kept and any(row.get("subject") for row in rows):
        print(f"\n{evaluation.counted_changes(kept, named=False)} The worst:")
        write(metrics.worst(kept[:WORST]))


def print_audit(rows: Sequence[Mapping[str, Any]], audit: Mapping[str, Any], run: Path | None = None) -> None:
    """`rows`: those of summary.json; `audit`: audit.json. `run`: the audit's folder, to name the strongest attack."""
    stored = strongest_of(run) if run else []
    results = [r for r in results_of(rows) if not (stored and r.attack == STRONGEST)] + stored
    found = audit_of(typed(clean(dict(audit)), AuditRecord), results)
    if found is None:
        return
    for name in found.forgotten:
        print(f"\n{plain(name)}" if len(found.forgotten) > 1 else "")
        lines = audited.lines(found, name)
        write(audit_card.printed([line for line in lines if not line.status]), wide=130)
        unrun = [line for line in lines if line.unrun]
        for line in lines:
            if line.status and not (line.unrun and len(unrun) > LISTED):
                say(f"{line.title}: {line.status}", "dim")
        if len(unrun) > LISTED:
            say(f"Not run: {len(unrun)} attacks; the page says why", "dim")
    print()
    for each in audit_headline.headlines(found):
        say(each.sentence, "bold")
        for text in each.small[:-1]:
            say(text)
    for text in (*audit_headline.silent(found), *audit_headline.unknown(found)):
        say(text)


def strongest_of(run: Path) -> list[Any]:
    paths = sorted(runs.attack_folder(run, STRONGEST).rglob("*.json"))
    return [typed(clean(runs.read_result(path)), StoredResult) for path in paths]


def console(wide: int = 120) -> Any:
    """The terminal, or `wide` columns where it is none."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = wide
    return made


def say(text: str, style: str = "") -> None:
    from rich.markup import escape

    console(130).print(escape(plain(text)), style=style)


def write(data: Table, wide: int = 120) -> None:
    """A table, its numbers to the right with their intervals in brackets; nothing where it has no rows."""
    from rich.markup import escape
    from rich.table import Table as Drawn

    drawn = Drawn(box=None, pad_edge=False)
    for column, title in enumerate(data.head):
        number = data.is_number(column)  # never cut; words are folded
        drawn.add_column(title, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in data.lines:
        drawn.add_row(*(escape(plain(bracketed(cell))) for cell in row.cells))
    if data.rows:
        console(wide).print(drawn)


def bracketed(cell: Cell) -> str:
    """`62.5 % [55.1, 69.4]`, in the characters of a keyboard."""
    value = cell.value
    span = f" [{value.low}, {value.high}]" if isinstance(value, Number) and value.high else ""
    return f"{cell.text}{span}{''.join(f', {text}' for text in cell.below)}".replace("\u2212", "-").replace(NONE, "-")


def plain(text: str) -> str:
    return " ".join(text.split())
