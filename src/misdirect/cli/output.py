"""What is printed when a verb is done: a table of the headline numbers, and the next command to type."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LISTED = 8  # attacks that were not run: with more, the page lists them
COLUMNS = ("attack", "comes back (95 %)", "right after", "base, same attack", "general ability", "cost")


def say_next(command: str, tool: bool = True) -> None:
    print(f"Next: {command}" if tool else f"Open it in a browser: {Path(shlex.split(command)[1]).resolve().as_uri()}")


def print_plan(plan: Any) -> None:
    """A `misdirect.planning.Plan`: a row a stage, then disk, what does not fit, and what was assumed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from misdirect.planning import COLUMNS, heading, lines, table_rows

    table = Table(box=None, pad_edge=False)
    for title in COLUMNS:
        table.add_column(title, justify="right" if title in ("time", "memory") else "left")
    for row in table_rows(plan):
        table.add_row(*map(escape, row))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    print(heading(plan))
    console.print(table)
    for line in lines(plan):
        print(line)


SHORT = {
    "cloze_accuracy": "cloze",
    "letter_accuracy": "letter",
    "nll_per_token": "NLL",
    "degenerate_share": "degenerate answers",
    "judge_score": "judge, 1 to 10",
}


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """The headline rows, base beside unlearned, with 95 % intervals and the paired change."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("set", "metric", "base", "unlearned", "change (95 %)", "floor", "n"):
        table.add_column(title, justify="left" if title in ("set", "metric") else "right")
    shown = [r for r in rows if r.get("headline") or r["metric"] in ("degenerate_share", "judge_score")]
    sets = dict.fromkeys((r["measurement"], r["set"], r["metric"]) for r in shown)
    for key in sets:
        found = {r["model"]: r for r in rows if (r["measurement"], r["set"], r["metric"]) == key and not r["attack"]}
        if "base" not in found:
            continue
        percent = key[0] == "mcq" or key[2] in ("degenerate_share", "acc", "acc_norm")
        base, other = found["base"], found.get("unlearned")
        table.add_row(
            escape(key[1]),
            SHORT.get(key[2], escape(key[2])) + ("" if base.get("base_knows", True) else ", base not shown to know"),
            interval(base, percent),
            interval(other, percent) if other else "-",
            paired_change(other, percent) if other else "-",
            f"{100 * base['floor']:.1f} %" if "floor" in base else "",
            str(base["n"]),
        )
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def print_collateral(rows: Sequence[dict[str, Any]], topics: Sequence[str], shown: int = 5) -> None:
    """Where sets have subjects: how many of those to be kept have changed, and the worst of them."""
    from misdirect.runs.collateral import collateral

    if not any(row.get("subject") for row in rows):
        return
    kept = [change for change in collateral(rows, topics) if change.kind != "forget"]
    if not kept:
        return
    changed = [change for change in kept if change.changed]
    print(f"\nCollateral: {len(changed)} of {len(kept)} sets and subjects changed (Holm's correction, 5 %). The worst:")
    for change in kept[:shown]:
        span = paired_change({"paired": vars(change)}, change.measurement != "nll")
        print(f"  {change.name}: {span}, n = {change.n}" + ("  *" if change.changed else ""))


def interval(row: dict[str, Any], percent: bool) -> str:
    if row.get("value") is None:
        return "not a number"
    if row.get("low") is None:
        return f"{row['value']:.3f}"
    if percent:
        return f"{100 * row['value']:.1f} % [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def paired_change(row: dict[str, Any], percent: bool) -> str:
    paired = row.get("paired")
    if not paired or paired.get("low") is None:
        return "-"
    scale, digits = (100, 1) if percent else (1, 3)
    value, low, high = (f"{scale * paired[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def print_audit(rows: Sequence[Mapping[str, Any]], audit: Mapping[str, Any], run: Path | None = None) -> None:
    """`rows`: those of summary.json; `audit`: audit.json. `run`: the audit's folder, to name the strongest attack."""
    from rich.console import Console
    from rich.markup import escape

    from misdirect.reporting.content import audit as audited
    from misdirect.reporting.load.audit import STRONGEST, audit_of, results_of
    from misdirect.runs.stored import AuditRecord, typed
    from misdirect.text import clean

    stored = strongest_of(run) if run else []
    results = [r for r in results_of(rows) if not (stored and r.attack == STRONGEST)] + stored
    found = audit_of(typed(clean(dict(audit)), AuditRecord), results)
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


def strongest_of(run: Path) -> list[Any]:
    from misdirect import runs
    from misdirect.reporting.load.audit import STRONGEST
    from misdirect.runs.stored import StoredResult, typed
    from misdirect.text import clean

    paths = sorted(runs.attack_folder(run, STRONGEST).rglob("*.json"))
    return [typed(clean(runs.read_result(path)), StoredResult) for path in paths]


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
