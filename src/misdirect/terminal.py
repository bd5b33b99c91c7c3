"""What is printed when a verb is done: a table of the headline numbers, and the next command to type."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
    from misdirect.collateral import collateral

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
