"""All that the page shows of an audit, as text and lists of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from misdirect import runs
from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content import audit_headline, diagnostics
from misdirect.reporting.content.form import Cell, Row, Table
from misdirect.reporting.load.audit import Audit
from misdirect.reporting.redact import public_name


def view(audit: Audit) -> dict[str, Any]:
    groups = []
    for index, name in enumerate(audit.forgotten):
        lines = audited.lines(audit, name)
        groups.append(
            {
                "set": name,
                "attacks": attacks([line for line in lines if not line.unrun]),
                "unrun": unrun([line for line in lines if line.unrun]),
                "end": "" if index == 0 else f"-{index + 1}",
            }
        )
    used = {each.access for each in audit.attempts}
    return {
        "headlines": audit_headline.headlines(audit),
        "crossed": any(audit.share(name) is not None for name in audit.forgotten),
        "explained": audit_headline.EXPLAINED,
        "silent": audit_headline.silent(audit),
        "groups": groups,
        "unknown": audit_headline.unknown(audit),
        "inside": diagnostics.inside_table(audit),
        "brittle": diagnostics.brittle_table(audit),
        "other": diagnostics.other_table(audit),
        "silent_diagnostics": diagnostics.silent_diagnostics(audit),
        "texts": diagnostics.texts_table(audit),
        "points": diagnostics.points_table(audit),
        "settings": diagnostics.settings_table(audit),
        "costs": [*((model, source(audit, model)) for model in ("base", "unlearned")), *diagnostics.cost_rows(audit)],
        "access": [words for key, words in audited.ACCESS.items() if key in used],
    }


def attacks(lines: Sequence[audited.Line]) -> Table:
    head = ("Attack", "Comes back, 95 %", "Right after", "Base, same attack", "General ability", "Not language", "Time",
            "Tokens", "Access")  # fmt: skip
    rows = []
    for line in lines:
        title = Cell(line.title, [line.note])
        if line.status:
            rows.append(Row((title, Cell(line.status, span=len(head) - 2), line.access), "silent"))
        else:
            rows.append(Row((title, line.share, line.after, line.control, line.general, line.degenerate, line.seconds,
                             line.tokens, line.access)))  # fmt: skip
    return Table(head, rows, 1, 1)


def unrun(lines: Sequence[audited.Line]) -> Table:
    rows = [Row((line.title, line.status, line.access), "silent") for line in lines]
    return Table(("Attack", "Why not", "Access"), rows)


def source(audit: Audit, model: str) -> str:
    """What the audit calls one of its two models, without folders; a change by the folder that holds it."""
    about = audit.about.base if model == "base" else audit.about.unlearned
    if about.delta and (parts := about.delta.replace("\\", "/").rstrip("/").split("/"))[-1]:
        return parts[-2] if parts[-1] == runs.DELTA and len(parts) > 1 else parts[-1]
    return public_name(about.source) if about.source else f"the {model} model"


def title(audit: Audit) -> str:
    return f"Audit of {source(audit, 'unlearned')}"


def summary(audit: Audit) -> str:
    names = f" of {wording.listed(audit.forgotten)}" if audit.forgotten else ""
    return (
        f"{source(audit, 'unlearned')} against {source(audit, 'base')}: how much of what was removed{names} comes back "
        "under attack. Measured from the two checkpoints, whoever made them."
    )
