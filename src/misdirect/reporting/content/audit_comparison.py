"""Audits side by side: what comes back of each set in each run, under the strongest attack and under every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content.diagnostics import SHARED
from misdirect.reporting.content.form import Cell, Table
from misdirect.reporting.load.audit import DONE, Attempt, Audit
from misdirect.reporting.wording import NONE

Audits = Sequence[tuple[str, Audit | None]]  # a run's label, its audit


def tables(runs: Audits) -> list[dict[str, Any]]:
    """For every forgotten set a table: attacks down, runs across. Empty where no run was audited."""
    names = dict.fromkeys(name for _, audit in runs if audit for name in audit.forgotten)
    return [{"set": name, "table": table(runs, name)} for name in names]


def table(runs: Audits, name: str) -> Table:
    rows: list[tuple[str | Cell, ...]] = [
        (Cell("Strongest attack", ["chosen on the other half"]), *(strongest(audit, name) for _, audit in runs)),
        (Cell("Without attack", ["base \u2192 unlearned"]), *(removed(audit, name) for _, audit in runs)),
        *((Cell(title, differing(runs, key)), *(cell(audit, name, key) for _, audit in runs))
          for key, title in listed(runs, name).items()),
    ]  # fmt: skip
    return Table(("Comes back", *(label for label, _ in runs)), rows, 1)


def listed(runs: Audits, name: str) -> dict[str, str]:
    """Attack -> title, what brings most back in any run first; what no run has finished comes last."""
    found: dict[str, tuple[float, str]] = {}
    for _, audit in runs:
        for each in audit.attempts if audit else ():
            share = each.share(name) if each.status == DONE else None
            value = share.value if share else -1e9
            if each.recovers and value >= found.get(each.name, (-1e9, ""))[0]:
                found[each.name] = (value, each.title)
    return {key: title for key, (_, title) in sorted(found.items(), key=lambda item: -item[1][0])}


def strongest(audit: Audit | None, name: str) -> str | Cell:
    if audit is None or name not in audit.forgotten:
        return "not audited"
    if not audit.removed(name):
        return "nothing was removed"
    share = audit.share(name)
    if share is None:
        return "not attacked"
    chosen = dict.fromkeys(attack for attack, _ in audit.chosen(name))
    titles = [made.title if (made := audit.attempt(attack)) else attack for attack in chosen]
    return Cell(audited.share_of(share), titles)


def removed(audit: Audit | None, name: str) -> str:
    values = [audit.untouched(model, name) for model in ("base", "unlearned")] if audit else []
    return " \u2192 ".join(wording.value("accuracy", x) for x in values) or NONE


def cell(audit: Audit | None, name: str, key: str) -> str | Cell:
    """The share with its interval, and the general ability left; a status where there is none."""
    each = audit.attempt(key) if audit else None
    if audit is None or each is None or name not in audit.forgotten:
        return NONE
    line = audited.line(audit, each, name)
    if line.status:
        return each.status if each.status != DONE else line.status
    return Cell(line.share, [f"general {line.general.value}"] if line.general.value != NONE else [])


def differing(runs: Audits, key: str) -> list[str]:
    """`settings differ: seed`, where the attack was not the same in all runs that have it."""
    made = [each for _, audit in runs if audit and (each := audit.attempt(key)) and each.status == DONE]
    names = dict.fromkeys(name for each in made for name in own(each) if own(each)[name] != own(made[0]).get(name))
    return [f"settings differ: {wording.listed(list(names))}"] if names else []


def own(each: Attempt) -> Mapping[str, Any]:
    return {key: value for key, value in each.settings.items() if key not in SHARED}


def base_hash(audit: Audit | None) -> str:
    """The hash of the base model's weights, as the audit stores it with every attack; empty where it does not."""
    for each in [audit.none, *audit.attempts] if audit else ():
        hashes = each.settings.get("models_sha256") if each else None
        if isinstance(hashes, dict) and hashes.get("base"):
            return str(hashes["base"])
    return ""
