"""The pictures of a run: accuracy, training curves, the map of changes, and the trade-off plane of several runs.

Sets are rows with their name above, so that a picture is still readable at the width of a phone. matplotlib is imported
when something is drawn and not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from misdirect.config import Kind
from misdirect.reporting import wording
from misdirect.reporting.load.run import KINDS, Pair
from misdirect.runs.collateral import Change
from misdirect.runs.stored import LogLine

MAX_ROWS = 80  # rows of one panel: MMLU has 57
ROW, WIDE_ROW, MANY = 0.165, 0.22, 25  # inches a row where there are many, and where there are at most `MANY`
NAMES = 0.40  # where the plane of a map begins, as a share of its width; names stand left of it
VALUES = 0.86  # and where it ends

Palette = Mapping[str, str]  # colour name -> colour
WIDTH = 4.8  # inches; 346 units of the drawing, about the width of a phone
LABEL_CHARS = 36
SERIES = ("series0", "series1", "series2", "series3")
PANEL_TITLES: Mapping[Kind, str] = {"forget": "FORGET", "retain": "RETAIN", "other": "ALL SETS"}
# log key -> title of its panel
CURVES = {
    "forget_loss": "Forget loss",
    "retain_loss": "Retain loss",
    "cosine": "Cosine to control vector",
    "forget_norm": "Median forget token norm",
    "gradient_norm": "Gradient norm",
    "lr": "Learning rate",
}


def label(text: str, chars: int = LABEL_CHARS) -> str:
    """One line of at most `chars` characters: the middle of a longer one goes."""
    text = " ".join(text.split())
    return text if len(text) <= chars else f"{text[: chars - 10]}…{text[-9:]}"


def accuracy(pairs: Sequence[Pair], palette: Palette) -> Any:
    """Accuracy of base (ring) and unlearned (dot) with 95 % intervals, chance and floor; a panel per kind of set."""
    figure, panels = stacked(pairs, palette)
    for axes, kind, rows in panels:
        for index, pair in enumerate(rows):
            draw_accuracy(axes, index, pair, palette)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.set_title(PANEL_TITLES[kind], color=palette[kind])
    handles = accuracy_legend(pairs, palette)
    how = {"ncols": 3 if len(handles) > 4 else 4, "handletextpad": 0.6, "columnspacing": 1.4, "borderpad": 0.0}
    figure.legend(handles=handles, loc="outside lower left", labelcolor=palette["muted"], **how)
    return figure


def draw_accuracy(axes: Any, index: int, pair: Pair, palette: Palette) -> None:
    color = palette[pair.kind]
    for key, style in (("chance", "--"), ("floor", ":")):
        value = pair.both(key)
        if value is not None:
            axes.plot([value] * 2, [index - 0.2, index + 0.4], style, color=palette["muted"], linewidth=1.1)
    points = [(pair.before, pair.base), (pair.after, pair.unlearned)]
    heights = (index + 0.0, index + 0.22) if None not in (points[0][0], points[1][0]) else (index + 0.1,) * 2
    if heights[0] != heights[1]:
        axes.plot([points[0][0], points[1][0]], heights, color=palette["rule"], linewidth=2.5, zorder=1)
    for (value, row), y, face in zip(points, heights, ("none", color), strict=True):
        if value is not None:
            whisker(axes, row, y, color)
            axes.plot([value], [y], "o", color=color, markerfacecolor=face, markersize=5, markeredgewidth=1.3, zorder=3)
    if pair.seeds is not None:
        axes.plot(
            [pair.seeds.low, pair.seeds.high],
            [heights[1]] * 2,
            color=color,
            alpha=0.3,
            linewidth=6,
            solid_capstyle="butt",
        )
    shown = [f"{100 * value:.1f}" for value, _ in points if value is not None]
    note = "" if pair.base_knows else "  (base does not know)"
    write_row(axes, index, label(pair.set, LABEL_CHARS - len(note)) + note, " → ".join(shown) + " %", palette)


def whisker(axes: Any, row: Any, y: float, color: str) -> None:
    if row.low is not None and row.high is not None:
        axes.plot([row.low, row.high], [y, y], color=color, linewidth=1.2, solid_capstyle="butt", zorder=2)


def write_row(axes: Any, index: int, left: str, right: str, palette: Palette) -> None:
    """The set's name and its numbers above the row, on the page's colour so that no line runs through them."""
    box = {"facecolor": palette["page"], "edgecolor": "none", "pad": 1.2}
    where = axes.get_yaxis_transform()
    for x, side, text in ((0, "left", left), (1, "right", right)):
        axes.text(x, index - 0.33, text, transform=where, color=palette["ink"], ha=side, va="center", bbox=box)


def accuracy_legend(pairs: Sequence[Pair], palette: Palette) -> list[Any]:
    from matplotlib.lines import Line2D

    color = palette["muted"]
    marks: list[tuple[str, str, dict[str, Any]]] = [
        ("base", "base", {"marker": "o", "markerfacecolor": "none", "linestyle": ""}),
        ("unlearned", "unlearned", {"marker": "o", "linestyle": ""}),
        ("chance", "chance", {"linestyle": "--"}),
        ("floor", "floor: question removed", {"linestyle": ":"}),
        ("seeds", "spread over seeds", {"linestyle": "-", "linewidth": 6, "alpha": 0.3, "solid_capstyle": "butt"}),
    ]
    seen = {name for name in ("base", "unlearned") if any(getattr(p, name) is not None for p in pairs)}
    seen |= {name for name in ("chance", "floor") if any(p.both(name) is not None for p in pairs)}
    seen |= {"seeds"} if any(p.seeds for p in pairs) else set()
    common: dict[str, Any] = {"color": color, "markersize": 5, "linewidth": 1.1}
    return [Line2D([], [], **(common | how), label=text) for name, text, how in marks if name in seen]


def stacked(pairs: Sequence[Pair], palette: Palette) -> tuple[Any, list[tuple[Any, Kind, list[Pair]]]]:
    """A figure with a panel for each kind of set that there is, a row a set, the first row on top."""
    from matplotlib.figure import Figure

    groups = [(kind, rows) for kind in KINDS if (rows := [p for p in pairs if p.kind == kind])]
    height = sum(0.46 * len(rows) + 0.62 for _, rows in groups) + 0.3
    figure: Any = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.02)
    grid = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[len(rows) + 0.4 for _, rows in groups])
    panels = []
    for axes, (kind, rows) in zip(grid[:, 0], groups, strict=True):
        axes.set_ylim(len(rows) - 0.45, -0.5)
        plain(axes, palette)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", color=palette["rule"], linewidth=0.5)
        axes.set_axisbelow(True)
        panels.append((axes, kind, rows))
    return figure, panels


def plain(axes: Any, palette: Palette) -> None:
    axes.set_facecolor("none")
    axes.tick_params(color=palette["muted"], labelcolor=palette["muted"], length=2.5)
    for spine in axes.spines.values():
        spine.set_color(palette["rule"])


def curves(log: Sequence[LogLine], palette: Palette) -> Any:
    """What the log holds of `CURVES` over the updates, a colour per topic."""
    from matplotlib.figure import Figure

    keys = curve_keys(log)
    topics = list(dict.fromkeys(line.topic for line in log))
    num_rows = -(-len(keys) // 2)
    figure: Any = Figure(figsize=(WIDTH, 1.35 * num_rows + (0.3 if len(topics) > 1 else 0.05)), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.04)
    grid = figure.subplots(num_rows, 2, squeeze=False).flatten()
    for axes, key in zip(grid, keys, strict=False):
        draw_curve(axes, key, log, topics, palette)
    for axes in grid[len(keys) :]:
        axes.set_visible(False)
    if len(topics) > 1:
        figure.legend(
            handles=topic_legend(topics, palette), loc="outside lower left", ncols=2, labelcolor=palette["muted"]
        )
    return figure


def curve_keys(log: Sequence[LogLine]) -> list[str]:
    return [key for key in CURVES if any(getattr(line, key) is not None for line in log)]


def draw_curve(axes: Any, key: str, log: Sequence[LogLine], topics: Sequence[str], palette: Palette) -> None:
    values = []
    for index, topic in enumerate(topics if key != "lr" else [None]):
        lines = [line for line in log if topic is None or line.topic == topic]
        points = [(line.step, y) for line in lines if (y := getattr(line, key)) is not None]
        values += [y for _, y in points]
        color = palette["muted" if topic is None else SERIES[index % len(SERIES)]]
        marker = "o" if len(points) == 1 else ""
        axes.plot(
            *zip(*points, strict=True), color=color, linewidth=1.1, marker=marker, markersize=3
        ) if points else None
    if min(values) > 0 and max(values) > 100 * min(values):
        axes.set_yscale("log")
    elif key == "cosine":
        axes.set_ylim(min(-0.05, *values), 1.05)
    else:
        axes.set_ylim(bottom=min(0.0, *values))
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}".replace("-", "\u2212"))
    axes.yaxis.set_minor_formatter(lambda y, _: "")
    plain(axes, palette)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.grid(axis="y", color=palette["rule"], linewidth=0.5)
    axes.set_title(CURVES[key], color=palette["ink"], fontsize=7.5, fontweight="normal")


def topic_legend(topics: Sequence[str], palette: Palette) -> list[Any]:
    from matplotlib.lines import Line2D

    # "topic" stands first because matplotlib leaves out labels that begin with an underscore
    return [Line2D([], [], color=palette[SERIES[i % len(SERIES)]], linewidth=1.4, label=f"topic {label(topic, 28)}")
            for i, topic in enumerate(topics)]  # fmt: skip


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
        color = palette[change.kind] if change.changed else palette["muted"]
        axes.plot([scale * change.low, scale * change.high], [index] * 2, color=color, linewidth=1.1)
        face = color if change.changed else palette["page"]
        axes.plot([scale * change.difference], [index], "o", color=color, markerfacecolor=face, markersize=3.6)
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
        color = palette[SERIES[index % len(SERIES)]]
        draw_point(axes, point, color, color, palette)
    axes.margins(0.12)
    axes.set_xlabel("forget sets: % right (less is better)", color=palette["muted"], fontsize=8)
    axes.set_ylabel("retain sets: % right (more is better)", color=palette["muted"], fontsize=8)
    return figure


def draw_point(axes: Any, point: Point, color: str, face: str, palette: Palette) -> None:
    (x, *ends), (y, *heights) = ([100 * v for v in values] for values in (point.forget, point.retain))
    axes.plot(ends, [y, y], color=color, linewidth=1.1)
    axes.plot([x, x], heights, color=color, linewidth=1.1)
    axes.plot([x], [y], "o", color=color, markerfacecolor=face, markersize=5.5, zorder=3)
    box = {"facecolor": palette["page"], "edgecolor": "none", "pad": 0.8}
    axes.annotate(label(point.name, 24), (x, y), (5, 5), textcoords="offset points", color=palette["ink"],
                  fontsize=8, bbox=box, zorder=4)  # fmt: skip
