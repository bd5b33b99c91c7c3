"""The verb `export`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from misdirect.cli.app import Flag, Repeated, Settings
from misdirect.cli.flags import pairs
from misdirect.cli.output import say_next
from misdirect.exporting.settings import ExportConfig


def export(
    run: str,
    *,
    out: Path,
    settings: Annotated[ExportConfig, Parameter(name="*", group=Settings)] = ExportConfig(),  # noqa: B008
    questions: Annotated[list[str], Repeated] = [],  # noqa: B006 - never changed
    model: str | None = None,
    push: str | None = None,
    public: Annotated[bool, Flag] = False,
    trust_remote_code: Annotated[bool, Flag] = False,
    allow_pickle: Annotated[bool, Flag] = False,
) -> None:
    """Write a run as a folder that other tools read: a whole checkpoint, a LoRA adapter, or what may be published of it.

    Files of the base in which nothing changes are hard links where the file system has them. The folder is read back
    before it is there under its name: its states are those of the run.

    Parameters
    ----------
    run
        A finished run.
    out
        The folder to write; there must be nothing.
    questions
        NAME=SOURCE: sets by which an adapter is compared with the change. [default: the run's own text; the demo's questions]
    model
        Where the run's base lies now, if it has moved.
    push
        OWNER/NAME on the hub, where the folder is uploaded to, privately.
    public
        Let everybody see what --push uploads.
    trust_remote_code
        Run the code that comes with the model. Read it first.
    allow_pickle
        Read pickle checkpoints, which can run code. Safetensors need no flag.
    """
    from misdirect import api

    asked = pairs("--questions", questions)
    lines = api.export(
        run, out, settings, model=model, questions=asked, push=push, public=public, trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    print("\n".join([f"Written: {out}", *lines]))
    if settings.format == "full":
        print("With transformers: AutoModelForCausalLM.from_pretrained(" + repr(str(out)) + ")")
    folder = shlex.quote(str(out))
    say_next(f"misdirect evaluate {folder} --questions NAME=QUESTIONS.jsonl --out {folder}-results" if settings.format != "delta"
             else f"hf upload OWNER/NAME {folder} --private")  # fmt: skip
