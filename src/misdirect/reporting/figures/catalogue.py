"""Which pictures a run has: as SVG inside its page, and as SVG, PNG and PDF files, the same bytes every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from misdirect import storage
from misdirect.reporting import wording
from misdirect.reporting.figures import evaluation as drawing
from misdirect.reporting.figures import style
from misdirect.reporting.figures.style import Picture
from misdirect.reporting.load.run import QUESTIONS, Pair, Run
from misdirect.runs.collateral import Change

# file ending -> metadata, without which a file says when and by what it was drawn
FORMATS: Mapping[str, Mapping[str, Any]] = {
    "svg": {"Date": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def available(run: Run) -> dict[str, Picture]:
    """Name -> each picture that the run has data for."""
    from misdirect.reporting.figures import audit  # it makes a `Picture`

    found = {}
    scored = [
        pair
        for pair in run.headlines(*QUESTIONS)
        if wording.is_share(pair.metric) and (pair.before is not None or pair.after is not None)
    ]
    if scored:
        title = "Accuracy of base and unlearned model"
        found["accuracy"] = Picture(drawing.accuracy, scored, title, accuracy_in_words(scored))
    if changes := drawing.drawable(run.changes):
        title = "Changes of what was to be kept"
        found["collateral"] = Picture(drawing.collateral_map, changes, title, changes_in_words(changes))
    if drawing.curve_keys(run.log):
        words = f"Values in the log over {len(run.log)} updates."
        found["training"] = Picture(drawing.curves, run.log, "Training curves", words)
    return found | audit.available(run.audit)


def accuracy_in_words(pairs: Sequence[Pair]) -> str:
    parts = []
    for pair in pairs:
        values = [wording.value(pair.metric, x) for x in (pair.before, pair.after)]
        parts.append(f"{pair.kind} set {pair.set}: base {values[0]}, unlearned {values[1]}")
    return "; ".join(parts) + "."


def changes_in_words(changes: Sequence[Change]) -> str:
    parts = [f"{c.name}: {wording.change(c.metric, c.difference)}" + ", changed" * c.changed for c in changes]
    return "; ".join(parts) + "."


def inline(pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Name -> SVG markup that stands inside a page."""
    with style.styled():
        return {
            name: style.inline(each.draw(each.data, style.INLINE), f"fig-{name}", each.title, each.description)
            for name, each in pictures.items()
        }


def write(pictures: Mapping[str, Picture], folder: Path) -> list[Path]:
    """Every picture in every format, on white."""
    paths = []
    with style.styled():
        for name, each in pictures.items():
            figure = each.draw(each.data, style.PAPER)
            for ending, metadata in FORMATS.items():
                path = folder / f"{name}.{ending}"
                how = {"format": ending, "dpi": 200, "facecolor": "white", "transparent": False}
                with storage.replacing(path) as temporary:
                    figure.savefig(temporary, metadata=dict(metadata), **how)
                paths.append(path)
    return paths
