"""The verbs that attack an unlearned model: `audit`, and `attack`, an audit of one kind of attack."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from misdirect import runs, storage
from misdirect.auditing.gate import gate
from misdirect.cli.app import Flag, Repeated, Settings
from misdirect.cli.flags import pairs
from misdirect.cli.output import print_audit, say_next
from misdirect.config import AuditConfig, option


def listed(text: str) -> Any:
    return field(default_factory=list, metadata={"help": text})


@dataclass(frozen=True)
class Asked:
    """What `audit` and `attack` work on."""

    questions: Annotated[list[str], Repeated] = listed(
        "NAME=SOURCE: multiple-choice questions; sets named like a topic are what was to be forgotten, others the general "
        "ability; repeat for several sets. [default for a run of the demo: its own]"
    )
    forget: Annotated[list[str], Repeated] = listed(
        "NAME=SOURCE: text on the topic. [default for a run: what it forgot]"
    )
    retain: Annotated[list[str], Repeated] = listed(
        "NAME=SOURCE: text that was to be kept. [default for a run: what it retained]"
    )
    text: Annotated[list[str], Repeated] = listed("NAME=SOURCE: text that has nothing to do with the topic.")
    out: Path | None = option(None, "Where the audit of two checkpoints goes.")
    skip: Annotated[list[str], Repeated] = listed("A family or name of attacks to leave out; repeat for several.")
    controls: Path | None = option(
        None,
        "The folder of an audit of another model unlearned from the same BASE: what was measured on the base is taken over.",
    )
    fail_above: float | None = option(
        None,
        "Exit with code 1 when a larger share than this (0.3 is 30 %) of what was removed comes back, when nothing was "
        "removed, or when relearning was not measured: for release gates.",
    )
    trust_remote_code: Annotated[bool, Flag] = option(False, "Run the code that comes with the model. Read it first.")
    allow_pickle: Annotated[bool, Flag] = option(
        False, "Read pickle checkpoints, which can run code. Safetensors need no flag."
    )


Material = Parameter(name="*")


def audit(
    base: str,
    unlearned: str | None = None,
    /,
    *,
    only: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    asked: Annotated[Asked, Material] = Asked(),
    settings: Annotated[AuditConfig, Parameter(name="*", group=Settings)] = AuditConfig(),  # noqa: B008
) -> int:
    """Attack what was unlearned, every way that fits into the time: how much of what was removed comes back?

    audit RUN, or audit BASE UNLEARNED for any two checkpoints: model folders, hub ids, run directories, delta files. Finished
    attacks are not repeated, so the same command resumes after a kill, and does more with more --minutes.

    Parameters
    ----------
    base
        A run directory, which holds both models; or the model before unlearning.
    unlearned
        The model after unlearning.
    only
        A family (relearn, direction, lens, ...) or name of attacks to run; repeat for several.
    """
    return audited(base, unlearned, only, asked, settings)


def attack(
    name: str,
    base: str,
    unlearned: str | None = None,
    /,
    *,
    asked: Annotated[Asked, Material] = Asked(),
    settings: Annotated[AuditConfig, Parameter(name="*", group=Settings)] = AuditConfig(),  # noqa: B008
) -> int:
    """Run one attack, or one family of them, as `audit --only NAME` does.

    Parameters
    ----------
    name
        A family (relearn, direction, lens, ...) or the name of one attack.
    base
        A run directory, which holds both models; or the model before unlearning.
    unlearned
        The model after unlearning.
    """
    return audited(base, unlearned, [name], asked, settings)


def audited(base: str, unlearned: str | None, only: Sequence[str], asked: Asked, settings: AuditConfig) -> int:
    from misdirect import api

    limit = asked.fail_above
    if limit is not None and not 0 <= limit < float("inf"):
        raise ValueError(f"--fail-above {limit} is not a share; expected such as 0.3, which is 30 %")
    record = api.audit(
        base,
        unlearned,
        pairs("--questions", asked.questions),
        pairs("--forget", asked.forget),
        pairs("--retain", asked.retain),
        pairs("--text", asked.text),
        settings,
        asked.out,
        only=only,
        skip=asked.skip,
        controls=asked.controls,
        trust_remote_code=asked.trust_remote_code,
        allow_pickle=asked.allow_pickle,
    )
    folder = (asked.out or Path(base)).expanduser()
    rows = storage.read_json(folder / runs.SUMMARY)
    print_audit(rows, record, folder)
    print(f"\nThe page: {folder / runs.REPORT}")
    say_next(f"open {shlex.quote(str(folder / runs.REPORT))}", tool=False)
    return 0 if limit is None else gate(rows, record, limit)
