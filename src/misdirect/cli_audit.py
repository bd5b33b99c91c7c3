"""The verbs that try an unlearned model: `audit`, `attack` (an audit of one kind of attack), `chat`."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter

from misdirect import runs, storage
from misdirect.cli_input import pairs
from misdirect.config import AuditConfig, ChatTemplate, Device, Dtype, knob
from misdirect.terminal import say_next
from misdirect.terminal_audit import print_audit

Repeated = Parameter(negative=(), consume_multiple=False, show_default=False)
Flag = Parameter(negative=(), show_default=False)
Settings = Group("Settings", sort_key=2)


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
    out: Path | None = knob(None, "Where the audit of two checkpoints goes.")
    skip: Annotated[list[str], Repeated] = listed("A family or name of attacks to leave out; repeat for several.")
    controls: Path | None = knob(
        None,
        "The folder of an audit of another model unlearned from the same BASE: what was measured on the base is taken over.",
    )
    fail_above: float | None = knob(
        None,
        "Exit with code 1 when a larger share than this (0.3 is 30 %) of what was removed comes back, when nothing was "
        "removed, or when relearning was not measured: for release gates.",
    )
    trust_remote_code: Annotated[bool, Flag] = knob(False, "Run the code that comes with the model. Read it first.")
    allow_pickle: Annotated[bool, Flag] = knob(
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
    attacks are not repeated, so the same command goes on after a kill, and does more with more --minutes.

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
        raise ValueError(f"--fail-above {limit} is no share; expected such as 0.3, which is 30 %")
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


def gate(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any], limit: float) -> int:
    """Exit code 0 where every forgotten set lost something, relearning on other facts was measured, and little enough comes
    back, else 1.

    The larger of two shares counts: of what the base knows, and of the gap to the base under the same attack.
    """
    shares: dict[str, float] = {}
    for row in rows:
        if row["attack"] == "strongest" and (row.get("headline") or row["metric"] == "gap_closed"):
            shares[row["set"]] = max(row["value"], shares.get(row["set"], row["value"]))
    if not all(map(math.isfinite, shares.values())):
        raise ValueError(f"a recovered share is not a finite number; expected {runs.SUMMARY} as the audit wrote it")
    done = [a["settings"] for a in record["attacks"] if a["status"] == "done"]
    relearned = any(settings.get("attack") == "relearn" and settings.get("text") == "facts" for settings in done)
    code = 0
    for name, found in record["removed"].items():
        share = shares.get(name)
        if not found["removed"]:
            verdict = "nothing was removed"
        elif share is None:
            verdict = "no attack was measured"
        elif share > limit:
            verdict = f"{100 * share:.1f} % of what was removed comes back"
        elif not relearned:
            verdict = "relearning was not measured"
        else:
            print(f"Gate passed: {name}: {100 * share:.1f} % comes back, at most {100 * limit:g} % allowed")
            continue
        print(f"Gate not passed: {name}: {verdict}; at most {100 * limit:g} % allowed")
        code = 1
    return code


def chat(
    run: Path,
    *,
    model: str | None = None,
    new_tokens: int = 120,
    temperature: float = 0.0,
    top_p: float = 1.0,
    chat_template: ChatTemplate = "auto",
    seed: int = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    trust_remote_code: Annotated[bool, Flag] = False,
    allow_pickle: Annotated[bool, Flag] = False,
) -> None:
    """Talk to a run: base and unlearned model answer each prompt side by side.

    Prompts come from the keyboard, or one a line from a pipe.

    Parameters
    ----------
    run
        A run directory.
    model
        Where the run's base lies now, if not where it was unlearned from.
    new_tokens
        Longest answer in tokens.
    temperature
        0 takes the likeliest token each time; above 0 answers are drawn, both models with the same noise.
    top_p
        Drawn answers take the likeliest tokens that hold this probability together.
    chat_template
        Prompts as a user's turn where the model has a chat template, or as they are.
    seed
        Seed of drawn answers.
    device
        Where to compute: auto takes a GPU when there is one.
    dtype
        The model's dtype: auto is float32 on a CPU, bfloat16 on a GPU.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    from misdirect import api

    api.chat(
        run,
        model=model,
        new_tokens=new_tokens,
        temperature=temperature,
        top_p=top_p,
        chat_template=chat_template,
        seed=seed,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )
