"""The pictures of an audit: what comes back under each attack, and accuracy over updates, budgets and blocks.

Only what was measured is drawn: an attack that was not run, or whose control failed, has no dot.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.content import audit as audited
from misdirect.reporting.content.diagnostics import readable
from misdirect.reporting.figures.evaluation import WIDTH, Palette, label, plain, write_row
from misdirect.reporting.figures.style import Picture
from misdirect.reporting.load.audit import DONE, Attempt, Audit, Measured, by_metric

MAX_ROWS, MAX_PANELS = 40, 24  # more are in the tables
STEP, BLOCK, BUDGET = 0, 1, 2  # places in a `Point`


class Dot(NamedTuple):
    """A row of the forest plot."""

    title: str
    value: float
    low: float | None
    high: float | None
    strongest: bool


class Curve(NamedTuple):
    """One line of a panel. `who` names its colour and stroke."""

    who: str  # base, unlearned, shuffled, floor
    points: Sequence[tuple[float, float, float | None, float | None]]  # x, y, low, high


class Panel(NamedTuple):
    """A small plot of accuracies. `levels`: (name, height) of lines right across."""

    title: str
    unit: str
    curves: Sequence[Curve]
    levels: Sequence[tuple[str, float]]


# ------------------------------------------------------------------------------------------------ what there is to draw


def available(audit: Audit | None) -> dict[str, Picture]:
    """Name -> picture, for every forgotten set that has something to draw; the first set's names have no number."""
    found: dict[str, Picture] = {}
    for index, name in enumerate(audit.forgotten if audit else ()):
        assert audit is not None
        end = "" if index == 0 else f"-{index + 1}"
        dots = forest(audit, name)
        if dots:
            title = f"Recovered share of {name} under each attack"
            found[f"recovered{end}"] = Picture(draw_forest, dots, title, dots_in_words(dots))
        for key, title, panels in (
            ("relearning", f"Accuracy on {name} over updates of relearning", relearning(audit, name)),
            ("budgets", f"Accuracy on {name} over the budget of other attacks", budgets(audit, name)),
            ("layers", f"Accuracy read out of each block on {name}", layers(audit, name)),
        ):
            if panels:
                found[f"{key}{end}"] = Picture(
                    draw_panels, panels[:MAX_PANELS], title, panels_in_words(panels[:MAX_PANELS])
                )
    return found


def forest(audit: Audit, name: str) -> list[Dot]:
    """The cross-fitted strongest first, then every attack that was run, the largest first."""
    dots: list[Dot] = []
    if not audit.removed(name):
        return dots
    if (best := audit.share(name)) is not None:
        dots.append(Dot("strongest, chosen on the other half", best.value, best.low, best.high, True))
    for each in audited.ranked(audit, name):
        found = each.share(name) if each.status == DONE else None
        if found is not None:
            dots.append(Dot(each.title, found.value, found.low, found.high, False))
    return dots[:MAX_ROWS] if any(not dot.strongest for dot in dots) else []


def relearning(audit: Audit, name: str) -> list[Panel]:
    own = [a for a in audited.ranked(audit, name) if a.family == "relearn" and a.status == DONE]
    return [panel for each in own if (panel := accuracy_panel(audit, each, name, STEP)) is not None]


def budgets(audit: Audit, name: str) -> list[Panel]:
    own = [a for a in audited.ranked(audit, name) if a.family != "relearn" and a.status == DONE]
    found = [accuracy_panel(audit, each, name, axis) for each in own for axis in (STEP, BUDGET)]
    return [panel for panel in found if panel is not None]


def accuracy_panel(audit: Audit, each: Attempt, name: str, axis: int) -> Panel | None:
    """None where the unlearned model has fewer than two points on this axis."""
    curves = [Curve(model, along(each.accuracies(model, name), axis)) for model in ("base", "unlearned")]
    if len({point[0] for point in curves[1].points}) < 2 or (axis == BUDGET and "variants" in each.settings):
        return None  # one point, or wordings whose numbers are not amounts
    levels = [(f"{model}, not attacked", audit.untouched(model, name)) for model in ("base", "unlearned")]
    levels.append(("floor", audit.floor(name)))
    unit = "updates" if axis == STEP else audited.unit(each) or "budget"
    unit = f"share {unit}" if unit.startswith("of ") else unit
    return Panel(each.title, unit, [c for c in curves if c.points], [(who, y) for who, y in levels if y is not None])


def layers(audit: Audit, name: str) -> list[Panel]:
    """Probes and lenses: a panel for each accuracy that was read at two blocks or more."""
    panels = []
    for each in audit.attempts:
        measured = dict.fromkeys(m for _, m, s in each.results if s == name and m not in ("recovered", "generation"))
        for measurement in measured if each.status == DONE else ():
            panels += block_panels(each, measurement, name)
    return panels


def block_panels(each: Attempt, measurement: str, name: str) -> list[Panel]:
    base, after = (by_metric(each.rows(model, measurement, name)) for model in ("base", "unlearned"))
    panels = []
    for metric in dict.fromkeys([*after, *base]):
        if not readable(metric):
            continue
        shuffled = after.get(metric.replace("_accuracy", "_shuffled_accuracy"), [])
        floors = [row._replace(value=row.floor) for row in after.get(metric, []) if row.floor is not None]
        found = {
            "base": base.get(metric, []),
            "unlearned": after.get(metric, []),
            "shuffled": shuffled,
            "floor": floors,
        }
        curves = [Curve(who, along(rows, BLOCK)) for who, rows in found.items()]
        if max(len({point[0] for point in curve.points}) for curve in curves) < 2:
            continue
        own = [row for side in (after, base) for row in side.get(metric, [])]
        chance = next((row.chance for row in own if row.chance is not None), None)
        title = each.title if metric == "probe_accuracy" else f"{each.title}: {wording.metric_label(metric)}"
        panels.append(
            Panel(title, "block", [c for c in curves if c.points], [("chance", chance)] if chance is not None else [])
        )
    return panels


def along(rows: Sequence[Measured], axis: int) -> list[tuple[float, float, float | None, float | None]]:
    points = [(x, row.value, row.low, row.high) for row in rows if (x := row.point[axis]) is not None]
    return sorted(points, key=lambda point: point[0])


def dots_in_words(dots: Sequence[Dot]) -> str:
    return "; ".join(f"{dot.title}: {audited.share(dot.value)}" for dot in dots) + "."


def panels_in_words(panels: Sequence[Panel]) -> str:
    parts = []
    for panel in panels:
        ends = [f"{c.who} {wording.value('accuracy', c.points[0][1])} to {wording.value('accuracy', c.points[-1][1])}"
                for c in panel.curves]  # fmt: skip
        parts.append(f"{panel.title}: {', '.join(ends)}")
    return "; ".join(parts) + "."


# ------------------------------------------------------------------------------------------------ drawing


def draw_forest(dots: Sequence[Dot], palette: Palette) -> Any:
    """A row an attack: 0 % is the unlearned model, 100 % the base."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(WIDTH, 0.4 * len(dots) + 0.45), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.04, w_pad=0.02)
    axes = figure.subplots()
    plain(axes, palette)
    axes.set_ylim(len(dots) - 0.5, -0.6)
    left = min(-0.1, *(dot.low if dot.low is not None else dot.value for dot in dots))
    highest = max(1.1, *(dot.high if dot.high is not None else dot.value for dot in dots))
    axes.set_xlim(max(left, -0.6), min(highest, 1.6))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=palette["rule"], linewidth=0.5)
    for x, style in ((0, "-"), (1, "--")):
        axes.axvline(x, linestyle=style, color=palette["muted"], linewidth=1.0)
    axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %".replace("-", "\u2212"))
    for index, dot in enumerate(dots):
        draw_dot(axes, index, dot, palette)
    return figure


def draw_dot(axes: Any, index: int, dot: Dot, palette: Palette) -> None:
    color = palette["forget" if dot.strongest else "series1"]
    size = 6.5 if dot.strongest else 5
    if dot.low is not None and dot.high is not None:
        width = 2.0 if dot.strongest else 1.3
        axes.plot([dot.low, dot.high], [index + 0.14] * 2, color=color, linewidth=width, solid_capstyle="butt")
    axes.plot([dot.value], [index + 0.14], "D" if dot.strongest else "o", color=color, markersize=size, zorder=3)
    write_row(axes, index, label(dot.title, 66), audited.share(dot.value).replace(wording.SPACE, " "), palette)


# who -> colour, stroke, width
STROKES = {
    "unlearned": ("forget", "-", 1.6),
    "base": ("retain", "-", 1.2),
    "shuffled": ("muted", "-", 0.9),
    "floor": ("muted", ":", 1.1),
}
LEVELS = {"base, not attacked": ("retain", "--"), "unlearned, not attacked": ("forget", "--"), "floor": ("muted", ":"),
          "chance": ("muted", ":")}  # fmt: skip
NAMES = {"unlearned": "unlearned", "base": "base, same attack", "shuffled": "unlearned, labels shuffled",
         "floor": "unlearned, question removed"}  # fmt: skip


def draw_panels(panels: Sequence[Panel], palette: Palette) -> Any:
    """Small plots, two a row, with one scale of accuracy for all of them and one legend below."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    num_rows = -(-len(panels) // columns)
    handles = legend(panels, palette)
    lines = -(-len(handles) // 2)
    figure: Any = Figure(
        figsize=(WIDTH, (1.55 if columns == 2 else 2.1) * num_rows + 0.17 * lines + 0.1), layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.05, w_pad=0.03)
    grid = figure.subplots(num_rows, columns, squeeze=False, sharey=True).flatten()
    heights = [y for p in panels for c in p.curves for point in c.points for y in point[1:] if y is not None]
    heights += [y for panel in panels for _, y in panel.levels]
    for index, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
        draw_panel(axes, panel, palette, 34 if columns == 2 else 66)
        axes.set_ylim(max(0.0, min(heights) - 0.04), min(1.0, max(heights) + 0.04))
        axes.tick_params(labelleft=index % columns == 0)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    figure.legend(handles=handles, loc="outside lower left", ncols=2, labelcolor=palette["muted"], handletextpad=0.6,
                  columnspacing=1.4, borderpad=0.0)  # fmt: skip
    return figure


def draw_panel(axes: Any, panel: Panel, palette: Palette, chars: int) -> None:
    for name, y in panel.levels:
        color, style = LEVELS[name]
        axes.axhline(y, linestyle=style, color=palette[color], linewidth=0.9, alpha=0.8)
    for curve in panel.curves:
        color, style, width = STROKES[curve.who]
        xs, ys, lows, highs = zip(*curve.points, strict=True)
        if curve.who in ("base", "unlearned") and all(y is not None for y in (*lows, *highs)):
            axes.fill_between(xs, lows, highs, color=palette[color], alpha=0.13, linewidth=0)
        marker = "o" if len(xs) <= 12 and curve.who in ("base", "unlearned") else ""
        axes.plot(xs, ys, style, color=palette[color], linewidth=width, marker=marker, markersize=2.6)
    plain(axes, palette)
    axes.grid(axis="y", color=palette["rule"], linewidth=0.5)
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=5)
    axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:.0f} %")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set_xlabel(panel.unit, color=palette["muted"], fontsize=7.5, labelpad=1.5)
    title = textwrap.fill(label(panel.title, 2 * chars - 6), chars)
    axes.set_title(title, color=palette["ink"], fontsize=7.5, fontweight="normal")


def legend(panels: Sequence[Panel], palette: Palette) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = []
    for who, (color, style, width) in STROKES.items():
        if any(curve.who == who for panel in panels for curve in panel.curves):
            handles.append(Line2D([], [], color=palette[color], linestyle=style, linewidth=width, label=NAMES[who]))
    for name, (color, style) in LEVELS.items():
        if any(name == level for panel in panels for level, _ in panel.levels):
            handles.append(Line2D([], [], color=palette[color], linestyle=style, linewidth=0.9, label=name))
    return handles
