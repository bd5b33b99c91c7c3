"""Audits side by side: what comes back of each set in each run, under the strongest attack and under every one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content.diagnostics import SHARED
from misdirect.reporting.content.evaluation import Table
from misdirect.reporting.load.audit import DONE, Attempt, Audit

Audits = Sequence[tuple[str, Audit | None]]  # a run's label, its audit


def tables(runs: Audits) -> list[dict[str, Any]]:
    """For every forgotten set a table: attacks down, runs across. Empty where no run was audited."""
    names = dict.fromkeys(name for _, audit in runs if audit for name in audit.forgotten)
    return [{"set": name, "table": table(runs, name)} for name in names]


def table(runs: Audits, name: str) -> Table:
    rows = [("Strongest attack\nchosen on the other half", *(strongest(audit, name) for _, audit in runs))]
    rows.append(("Without attack\nbase \u2192 unlearned", *(removed(audit, name) for _, audit in runs)))
    for key, title in listed(runs, name).items():
        rows.append((title + differing(runs, key), *(cell(audit, name, key) for _, audit in runs)))
    return Table(("Comes back", *(label for label, _ in runs)), rows)


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


def strongest(audit: Audit | None, name: str) -> str:
    if audit is None or name not in audit.forgotten:
        return "not audited"
    if not audit.removed(name):
        return "nothing was removed"
    share = audit.share(name)
    if share is None:
        return "not attacked"
    chosen = dict.fromkeys(attack for attack, _ in audit.chosen(name))
    titles = [made.title if (made := audit.attempt(attack)) else attack for attack in chosen]
    return "\n".join(part for part in (audited.share(share.value), audited.span(share), *titles) if part)


def removed(audit: Audit | None, name: str) -> str:
    if audit is None:
        return wording.NONE
    values = [audit.untouched(model, name) for model in ("base", "unlearned")]
    return " \u2192 ".join(wording.value("accuracy", x) for x in values)


def cell(audit: Audit | None, name: str, key: str) -> str:
    """The share with its interval, and the general ability left; a status where there is none."""
    each = audit.attempt(key) if audit else None
    if audit is None or each is None or name not in audit.forgotten:
        return wording.NONE
    line = audited.line(audit, each, name)
    if line.status:
        return each.status if each.status != DONE else line.status
    general = f"general {line.general}" if line.general != wording.NONE else ""
    return "\n".join(part for part in (line.share, line.interval, general) if part)


def differing(runs: Audits, key: str) -> str:
    """`, settings differ: seed`, where the attack was not the same in all runs that have it."""
    made = [each for _, audit in runs if audit and (each := audit.attempt(key)) and each.status == DONE]
    names = dict.fromkeys(name for each in made for name in own(each) if own(each)[name] != own(made[0]).get(name))
    return f"\nsettings differ: {wording.listed(list(names))}" if names else ""


def own(each: Attempt) -> Mapping[str, Any]:
    return {key: value for key, value in each.settings.items() if key not in SHARED}


def base_hash(audit: Audit | None) -> str:
    """The hash of the base model's weights, as the audit stores it with every attack; empty where it does not."""
    for each in [audit.none, *audit.attempts] if audit else ():
        hashes = each.settings.get("models_sha256") if each else None
        if isinstance(hashes, dict) and hashes.get("base"):
            return str(hashes["base"])
    return ""
