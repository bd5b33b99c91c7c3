"""`report.html`: what is gone and what is kept, pictures, answers, then every metric, settings and how to do it again.

One file without script or request, the same bytes for the same run. Everything that came from outside goes through
Jinja2's escaping; only our own drawings are put in as markup, and those escape their labels themselves. The page's
policy forbids everything but its one style sheet, which it names by its hash.

    report(Path("runs/demo"))  # -> runs/demo/report.html
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from misdirect import runs, storage
from misdirect.reporting import wording
from misdirect.reporting.content import audit_page, metrics, setup
from misdirect.reporting.content.answers import answer_groups
from misdirect.reporting.content.evaluation import panels
from misdirect.reporting.figures import catalogue
from misdirect.reporting.figures import style as figures_style
from misdirect.reporting.load.run import QUESTIONS, Run, read_run
from misdirect.runs.stored import untyped

POLICY = "default-src 'none'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'"


def report(run: Path, show_text: bool | None = None) -> Path:
    """Writes `report.html` into the run directory and returns its path.

    `show_text`: whether prompts and answers are shown; None shows them for the demo alone, since what a model says
    about a hazardous topic should not travel with the numbers. Raises ValueError where `run` is not a run.
    """
    path = run / runs.REPORT
    storage.write_text(path, render(read_run(run), show_text))
    return path


def write_figures(run: Path, folder: Path | None = None) -> list[Path]:
    """Writes the page's pictures as SVG, PNG and PDF, into `run/figures` unless told otherwise; returns the paths."""
    return catalogue.write(catalogue.available(read_run(run)), folder or run / "figures")


def render(run: Run, show_text: bool | None = None) -> str:
    drawn = catalogue.inline(catalogue.available(run))
    return fill("report.html", view(run, show_text), drawn)


def fill(template: str, data: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """A template with plain data, escaped, and our own drawings, which are markup already."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    colors = "\n".join(f"    --{name}: {color};" for name, color in figures_style.PAPER.items())
    style = (
        (Path(__file__).parent / "templates" / "style.css").read_text(encoding="utf-8").replace("/* COLOURS */", colors)
    )
    policy = POLICY.format(base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii"))
    markup = {name: Markup(text) for name, text in drawn.items()}
    return environment.get_template(template).render(data, figures=markup, style=Markup(style), policy=Markup(policy))


def view(run: Run, show_text: bool | None) -> dict[str, Any]:
    """All that the template shows, as text and lists of text."""
    shown = run.is_demo if show_text is None else show_text
    return {
        "title": title(run),
        "unlearning": run.unlearning,  # else the folder of an evaluation of one model
        "summary": summary(run),
        "missing": missing(run),
        "panels": panels(run),
        "audit": audit_page.view(run.audit) if run.audit else None,
        "answers": answer_groups(run),
        "show_text": shown,
        "metrics": metrics.groups(run),
        "collateral": metrics.collateral(run),
        "topics": setup.topics(run),
        "retain": setup.retain(run),
        "settings": setup.settings(run),
        "trained": run.config.chosen.trained,
        "data": wording.flat(untyped(run.config.data)),
        "environment": [row for row in wording.flat(run.environment) if row[0] != "command"],
        "version": run.config.misdirect or run.env.versions.get("misdirect", ""),
        "command": run.config.command or run.env.command or "",
    }


def title(run: Run) -> str:
    if run.topics:
        return f"Unlearning {wording.listed(run.topics)}" + (f" in {run.model_name}" if run.model else "")
    if run.audit and not run.unlearning:
        return audit_page.title(run.audit)
    return f"Evaluation of {run.model_name}" if run.model else "Evaluation of one model"


def summary(run: Run) -> str:
    """One sentence on what was done, as far as the run says."""
    if not run.unlearning:
        if run.audit:
            return audit_page.summary(run.audit)
        return "Measurements of one model as it is; nothing was unlearned in this folder."
    names = run.config.chosen.trained
    blocks = sorted({int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))})
    matrices = wording.counted(len(names), "matrix", "matrices") if names else "the MLP output matrices"
    where = (
        f" in {'block' if len(blocks) == 1 else 'blocks'} {wording.listed([str(b) for b in blocks])}" if blocks else ""
    )
    block = run.config.chosen.block
    text = f"misdirect trained {matrices}{where} of {run.config.model or 'the model'} so that text about "
    text += wording.listed(run.topics) or "the forget topic"
    if run.method == "rmu":
        text += " ends in a fixed random direction" + (f" after block {block}" if block is not None else "")
        text += " while other text stays where it was"
    else:
        text += f" becomes unlikely ({run.method}) while the predictions on other text stay what they were"
    return f"{text}: {done}." if (done := setup.done(run)) else f"{text}."


def missing(run: Run) -> list[str]:
    """What the run does not have yet."""
    models, asked = {result.model for result in run.results}, run.asked_updates
    notes = []
    if run.log and asked is not None and run.updates is not None and run.updates < asked:
        notes.append(f"The run is unfinished: {run.updates} of {asked} updates were made.")
    if not run.results:
        notes.append("Nothing has been measured yet.")
    elif run.unlearning and models != {"base", "unlearned"}:
        notes.append(f"Only the {models.pop()} model has been measured.")
    elif run.topics and not run.headlines(*QUESTIONS, kind="forget"):
        notes.append(
            "No forget question set has been measured. A set counts as forget when its name is a topic's, or begins "
            "with a topic's name and a hyphen or a full stop."
        )
    return notes
