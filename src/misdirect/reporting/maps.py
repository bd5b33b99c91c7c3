"""Two pictures of many numbers: the collateral map of a run, and the trade-off plane of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.figures import SERIES, WIDTH, Palette, label, plain
from misdirect.runs.collateral import Change

MAX_ROWS = 80  # rows of one panel: MMLU has 57
ROW, WIDE_ROW, MANY = 0.165, 0.22, 25  # inches a row where there are many, and where there are at most `MANY`
NAMES = 0.40  # where the plane of a map begins, as a share of its width; names stand left of it
VALUES = 0.86  # and where it ends


def drawable(changes: Sequence[Change]) -> list[Change]:
    """What the map shows: what was not meant to change, in a unit of its own."""
    return [c for c in changes if c.kind != "forget" and (wording.is_share(c.metric) or c.measurement == "nll")]


def names_of(changes: Sequence[Change]) -> list[str]:
    """Subjects alone where all are of one set."""
    sets = {change.set for change in changes if change.subject is not None}
    return [change.subject if change.subject is not None and len(sets) == 1 else change.name for change in changes]


def collateral_map(changes: Sequence[Change], palette: Palette) -> Any:
    """A row a set or subject, the worst first, with its 95 % interval. Filled: changed beyond chance after Holm."""
    from matplotlib.figure import Figure

    groups = [("Accuracy, percentage points", 100.0, [c for c in changes if c.measurement != "nll"]),
              ("NLL, nats per token", 1.0, [c for c in changes if c.measurement == "nll"])]  # fmt: skip
    groups = [(title, scale, rows) for title, scale, rows in groups if rows]
    shown = [min(len(rows), MAX_ROWS) for _, _, rows in groups]
    row = ROW if sum(shown) > MANY else WIDE_ROW
    height = row * sum(shown) + 0.62 * len(groups) + 0.1
    figure: Any = Figure(figsize=(WIDTH, height))
    top = height - 0.28
    for (title, scale, rows), count in zip(groups, shown, strict=True):
        size = row * count
        axes = figure.add_axes((NAMES, (top - size) / height, VALUES - NAMES, size / height))
        draw_map(axes, rows[:count], scale, palette, 7.0 if row == ROW else 7.8)
        axes.text(
            -NAMES / (VALUES - NAMES), 1 + 0.09 / size, title, transform=axes.transAxes, weight="bold",
            color=palette["ink"], va="bottom",
        )  # fmt: skip
        top -= size + 0.62
    return figure


def draw_map(axes: Any, rows: Sequence[Change], scale: float, palette: Palette, font_size: float) -> None:
    """The rows in axes coordinates of the height of a row each; names left and values right of the plane."""
    where = axes.get_yaxis_transform()
    left, right = -NAMES / (VALUES - NAMES), 1 + (1 - VALUES) / (VALUES - NAMES)
    plain(axes, palette)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=palette["rule"], linewidth=0.5)
    axes.set_axisbelow(True)
    axes.axvline(0, color=palette["muted"], linewidth=1.0)
    for index, (change, name) in enumerate(zip(rows, names_of(rows), strict=True)):
        colour = palette[change.kind] if change.changed else palette["muted"]
        axes.plot([scale * change.low, scale * change.high], [index] * 2, color=colour, linewidth=1.1)
        face = colour if change.changed else palette["page"]
        axes.plot([scale * change.difference], [index], "o", color=colour, markerfacecolor=face, markersize=3.6)
        style = {"transform": where, "va": "center", "fontsize": font_size, "color": palette["ink"]}
        style |= {"weight": "bold"} if change.changed else {}
        axes.text(left, index, label(name, 30), ha="left", **style)
        value = wording.change(change.metric, change.difference).removesuffix(wording.SPACE + "pp")
        axes.text(right, index, value + (" *" if change.changed else ""), ha="right", **style)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+g}".replace("-", "\u2212") if x else "0")


class Point(NamedTuple):
    """A run in the trade-off plane; each value a fraction of 1 with its interval."""

    name: str
    forget: tuple[float, float, float]  # value, low, high
    retain: tuple[float, float, float]


class Plane(NamedTuple):
    """Runs of one base on the same questions."""

    points: Sequence[Point]
    base: Point | None
    limit: float | None  # chance or floor of the forget sets: where forgetting ends


def tradeoff(plane: Plane, palette: Palette) -> Any:
    """Accuracy on what was to be forgotten (left is better) against accuracy on what was to be kept (up is better)."""
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    plain(axes, palette)
    axes.grid(color=palette["rule"], linewidth=0.5)
    axes.set_axisbelow(True)
    if plane.limit is not None:
        axes.axvline(100 * plane.limit, linestyle=":", color=palette["muted"], linewidth=1.1)
    if plane.base is not None:
        axes.axhline(100 * plane.base.retain[0], linestyle="--", color=palette["muted"], linewidth=0.9)
        draw_point(axes, plane.base, palette["muted"], palette["page"], palette)
    for index, point in enumerate(plane.points):
        colour = palette[SERIES[index % len(SERIES)]]
        draw_point(axes, point, colour, colour, palette)
    axes.margins(0.12)
    axes.set_xlabel("forget sets: % right (less is better)", color=palette["muted"], fontsize=8)
    axes.set_ylabel("retain sets: % right (more is better)", color=palette["muted"], fontsize=8)
    return figure


def draw_point(axes: Any, point: Point, colour: str, face: str, palette: Palette) -> None:
    (x, *ends), (y, *heights) = ([100 * v for v in values] for values in (point.forget, point.retain))
    axes.plot(ends, [y, y], color=colour, linewidth=1.1)
    axes.plot([x, x], heights, color=colour, linewidth=1.1)
    axes.plot([x], [y], "o", color=colour, markerfacecolor=face, markersize=5.5, zorder=3)
    box = {"facecolor": palette["page"], "edgecolor": "none", "pad": 0.8}
    axes.annotate(label(point.name, 24), (x, y), (5, 5), textcoords="offset points", color=palette["ink"],
                  fontsize=8, bbox=box, zorder=4)  # fmt: skip
