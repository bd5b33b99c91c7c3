"""`report.html`: what was done, the headline numbers, pictures, every metric, settings and how to do it again.

One file without script or request, the same bytes for the same run. Everything that came from outside goes through
Jinja2's escaping; only our own drawings are put in as markup, and those escape their labels themselves.

    report(Path("runs/demo"))  # -> runs/demo/report.html
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from misdirect import runs
from misdirect.config import UnlearnConfig
from misdirect.reporting import figures as drawing
from misdirect.reporting import svg, wording
from misdirect.reporting.reading import KINDS, POSITION, Kind, Pair, Run, mapping, mappings, number, read_run

MAX_ANSWERS = 40  # answers shown of one set


class Card(NamedTuple):
    """One headline number."""

    kind: Kind
    what: str
    set: str
    big: str
    small: list[str]
    note: str


class Table(NamedTuple):
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


def report(run: Path, show_text: bool | None = None) -> Path:
    """Writes `report.html` into the run directory and returns its path.

    `show_text`: whether prompts and answers are shown; None shows them for the demo alone, since what a model says
    about a hazardous topic should not travel with the numbers. Raises ValueError where `run` is no run.
    """
    path = run / runs.REPORT
    runs.write_text(path, render(read_run(run), show_text))
    return path


def figures(run: Path, folder: Path | None = None) -> list[Path]:
    """Writes the page's pictures as SVG and PNG files, into `run/figures` unless told otherwise; returns the paths."""
    folder = folder or run / "figures"
    paths = []
    for name, (draw, data) in drawing.available(read_run(run)).items():
        with svg.styled():
            figure = draw(data, svg.PAPER)
            for ending, options in (("svg", {"metadata": {"Date": None}}), ("png", {"metadata": {"Software": None}})):
                path = folder / f"{name}.{ending}"
                with runs.replacing(path) as temporary:
                    figure.savefig(temporary, format=ending, dpi=200, facecolor="white", transparent=False, **options)
                paths.append(path)
    return paths


def render(run: Run, show_text: bool | None = None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawn = {name: Markup(markup) for name, markup in drawings(run).items()}
    colours = Markup("\n".join(f"    --{name}: {colour};" for name, colour in svg.PAPER.items()))
    return environment.get_template("template.html").render(view(run, show_text), figures=drawn, colours=colours)


def view(run: Run, show_text: bool | None) -> dict[str, Any]:
    """All that the template shows, as text and lists of text."""
    shown = run.is_demo if show_text is None else show_text
    command = run.config.get("command") or run.env.get("command") or ""
    return {
        "title": title(run),
        "unlearning": bool(run.config),  # else the folder of an evaluation of one model
        "summary": summary(run),
        "missing": missing(run),
        "groups": grouped([*mcq_cards(run), *nll_cards(run)]),
        "answers": answers(run) if shown else [],
        "answers_hidden": not shown and any(r.get("measurement") == "generation" for r in run.results),
        "metrics": metric_groups(run),
        "topics": topics_table(run),
        "retain": retain_table(run),
        "settings": settings_table(run),
        "trained": [str(name) for name in as_list(mapping(run.config.get("chosen")).get("trained"))],
        "data": wording.flat(run.config.get("data") or {}),
        "environment": [row for row in wording.flat(run.env) if row[0] != "command"],
        "version": str(run.config.get("misdirect") or mapping(run.env.get("versions")).get("misdirect") or ""),
        "command": str(command),
    }


def as_list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []


def title(run: Run) -> str:
    model = str(run.config.get("model") or run.env.get("model") or "")
    if run.topics:
        return f"Unlearning {wording.listed(run.topics)}" + (f" in {model}" if model else "")
    return f"Evaluation of {model}" if model else "Evaluation of one model"


def summary(run: Run) -> str:
    """One sentence on what was done, as far as the run says."""
    if not run.config:
        return "Measurements of one model as it is; nothing was unlearned in this folder."
    chosen, settings = mapping(run.config.get("chosen")), mapping(run.config.get("settings"))
    names = [str(name) for name in as_list(chosen.get("trained"))]
    blocks = sorted({int(found[1]) for name in names if (found := re.search(r"\.(\d+)\.", name))})
    matrices = wording.counted(len(names), "matrix", "matrices") if names else "the MLP output matrices"
    where = (
        f" in {'block' if len(blocks) == 1 else 'blocks'} {wording.listed([str(b) for b in blocks])}" if blocks else ""
    )
    block = chosen.get("block", settings.get("block"))
    text = f"misdirect trained {matrices}{where} of {run.config.get('model') or 'the model'} so that text about "
    text += f"{wording.listed(run.topics) or 'the forget topic'} ends in a fixed random direction"
    text += f" after block {block}" if block is not None else ""
    text += " while other text stays where it was"
    if run.updates is None:
        return text + "."
    seconds = sum(number(line, "seconds") or 0.0 for line in run.log)
    took = f" in {wording.duration(seconds)}" if seconds else ""
    return f"{text}: {wording.counted(run.updates, 'update')}{took}."


def missing(run: Run) -> list[str]:
    """What the run does not have yet."""
    models = {r["model"] for r in run.results}
    asked = number(mapping(run.config.get("settings")), "updates")
    notes = []
    if run.log and asked is not None and run.updates is not None and run.updates < asked:
        notes.append(f"The run is unfinished: {run.updates} of {int(asked)} updates were made.")
    if not run.results:
        notes.append("Nothing has been measured yet.")
    elif run.config and models != {"base", "unlearned"}:
        notes.append(f"Only the {models.pop()} model has been measured.")
    elif run.topics and not run.headlines("mcq", "forget"):
        notes.append(
            "No forget question set has been measured. A set counts as forget when its name is a topic's, or begins "
            "with a topic's name and a hyphen or a full stop."
        )
    return notes


def drawings(run: Run) -> dict[str, str]:
    """Name -> SVG markup of each picture that the run has data for."""
    about = {
        "accuracy": ("Accuracy of base and unlearned model", accuracy_description),
        "nll": ("Change of NLL per token", nll_description),
        "training": ("Training curves", lambda log: f"Values in the log over {len(log)} updates."),
    }
    markup = {}
    for name, (draw, data) in drawing.available(run).items():
        with svg.styled():
            heading, describe = about[name]
            markup[name] = svg.inline(draw(data, svg.INLINE), f"fig-{name}", heading, describe(data))
    return markup


def accuracy_description(pairs: list[Pair]) -> str:
    parts = []
    for pair in pairs:
        values = [wording.value(pair.metric, x) for x in (number(pair.base, "value"), number(pair.unlearned, "value"))]
        parts.append(f"{pair.kind} set {pair.set}: base {values[0]}, unlearned {values[1]}")
    return "; ".join(parts) + "."


def nll_description(pairs: list[Pair]) -> str:
    changes = (wording.change(pair.metric, number(pair.paired, "difference")) for pair in pairs)
    return "; ".join(f"{pair.kind} set {pair.set}: {text}" for pair, text in zip(pairs, changes, strict=True)) + "."


def mcq_cards(run: Run) -> list[Card]:
    """A forget set shows both accuracies first, a retain set the change: that is what each is judged by."""
    cards = []
    for pair in run.headlines("mcq"):
        difference = number(pair.paired, "difference")
        what = wording.metric_label(pair.metric)
        if difference is not None and pair.kind == "retain":
            what += " change"
            big = wording.change(pair.metric, difference)
            small = [f"95 % interval {wording.change_interval(pair.metric, pair.paired)}", base_to_unlearned(pair)]
        else:
            big = base_to_unlearned(pair)
            rows = (("base", pair.base), ("unlearned", pair.unlearned))
            small = [
                f"{name} 95 % interval {wording.interval(pair.metric, row)}" for name, row in rows if row is not None
            ]
            if difference is not None:
                span = wording.change_interval(pair.metric, pair.paired)
                small.append(f"change {wording.change(pair.metric, difference)} ({span})")
        limits = [(key, number({key: pair.both(key)}, key)) for key in ("chance", "floor")]
        small.append(" · ".join(f"{key} {wording.value(pair.metric, x)}" for key, x in limits if x is not None))
        cards.append(Card(pair.kind, what, pair.set, big, [line for line in small if line], verdict(pair)))
    return cards


def base_to_unlearned(pair: Pair) -> str:
    """`64.2 → 31.2 %`, or the one that there is."""
    values = [
        wording.value(pair.metric, number(row, "value")) for row in (pair.base, pair.unlearned) if row is not None
    ]
    unit = wording.SPACE + "%" if wording.is_share(pair.metric) else ""
    return " → ".join(text.removesuffix(unit) for text in values) + unit


def grouped(cards: list[Card]) -> list[tuple[Kind, list[Card]]]:
    return [(kind, found) for kind in KINDS if (found := [card for card in cards if card.kind == kind])]


def verdict(pair: Pair) -> str:
    """Where the unlearned model's interval lies, as a fact and no more."""
    if not pair.base_knows:
        return "Base does not know: its interval reaches chance or floor, so no loss could be seen here."
    low = number(pair.unlearned, "low")
    limits = [x for key in ("chance", "floor") if (x := number({key: pair.both(key)}, key)) is not None]
    if pair.kind != "forget" or low is None or not limits:
        return ""
    limit = "chance or floor" if len(limits) == 2 else "chance"
    if low > max(limits):
        return f"Above {limit} still: the unlearned model answers part of this set."
    return f"The unlearned model's interval reaches {limit}."


def nll_cards(run: Run) -> list[Card]:
    cards = []
    for pair in run.headlines("nll"):
        difference = number(pair.paired, "difference")
        if difference is None:
            span = wording.interval(pair.metric, pair.unlearned or pair.base)
            cards.append(
                Card(pair.kind, "NLL, nats per token", pair.set, base_to_unlearned(pair), [f"95 % interval {span}"], "")
            )
            continue
        span = wording.change_interval(pair.metric, pair.paired)
        small = [f"95 % interval {span}"] if span else []
        small += [base_to_unlearned(pair), f"perplexity \u00d7 {wording.factor(difference)}"]
        big = wording.change(pair.metric, difference)
        cards.append(Card(pair.kind, "NLL change, nats per token", pair.set, big, small, ""))
    return cards


def answers(run: Run) -> list[dict[str, Any]]:
    """Greedy answers of each set: prompt, base and unlearned, matched by the record's id."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for result in run.results:
        if result.get("measurement") == "generation":
            for record in mappings(result.get("records")):
                beside = found.setdefault(str(result.get("set")), {}).setdefault(str(record.get("id")), {})
                beside["prompt"] = str(record.get("prompt", ""))
                repetition = wording.value("repetition", number(record, "repetition"))
                beside[result["model"]] = {"text": str(record.get("text", "")), "repetition": repetition}
    return [
        {"set": name, "rows": list(rows.values())[:MAX_ANSWERS], "left_out": max(0, len(rows) - MAX_ANSWERS)}
        for name, rows in sorted(found.items())
    ]


def metric_groups(run: Run) -> list[dict[str, Any]]:
    """The rows of the table of all metrics, set by set."""
    keys = dict.fromkeys((pair.kind, pair.set) for pair in run.pairs)
    return [
        {"set": name, "kind": kind, "rows": [metric_row(p) for p in run.pairs if (p.kind, p.set) == (kind, name)]}
        for kind, name in keys
    ]


def metric_row(pair: Pair) -> dict[str, Any]:
    counts = list(dict.fromkeys(wording.setting(row.get("n")) for row in (pair.base, pair.unlearned) if row))
    places = [(key, number({key: pair.both(key)}, key)) for key in POSITION]
    position = ", ".join(f"{key} {x:g}" for key, x in places if x is not None)
    chance, floor = (number({key: pair.both(key)}, key) for key in ("chance", "floor"))
    return {
        "metric": wording.metric_label(pair.metric) + (f" ({position})" if position else ""),
        "headline": pair.headline,
        "base_knows": pair.base_knows,
        "n": " / ".join(counts),
        "base": wording.value(pair.metric, number(pair.base, "value")),
        "base_interval": wording.interval(pair.metric, pair.base),
        "unlearned": wording.value(pair.metric, number(pair.unlearned, "value")),
        "unlearned_interval": wording.interval(pair.metric, pair.unlearned),
        "chance": wording.value(pair.metric, chance),
        "floor": wording.value(pair.metric, floor),
        "change": wording.change(pair.metric, number(pair.paired, "difference")),
        "change_interval": wording.change_interval(pair.metric, pair.paired),
        "p": wording.p_value(number(pair.paired, "p_value")),
        "lost": wording.setting(pair.paired.get("lost")),
        "gained": wording.setting(pair.paired.get("gained")),
    }


def topics_table(run: Run) -> Table:
    """Each topic with what was asked and what was chosen from measurement."""
    chosen = mapping(mapping(run.config.get("chosen")).get("topics"))
    asked = {str(t.get("name")): t for t in mappings(run.config.get("topics"))}
    rows = []
    for name in run.topics:
        made = mapping(chosen.get(name))
        keys = ("steering_coefficient", "median_norm", "retain_weight", "num_samples", "tokens")
        rows.append(
            (name, wording.setting(asked.get(name, {}).get("source")), *(wording.setting(made.get(k)) for k in keys))
        )
    head = ("Topic", "Source", "Steering coefficient", "Median token norm", "Retain weight", "Samples", "Tokens")
    return Table(head, rows)


def retain_table(run: Run) -> Table:
    chosen = mapping(mapping(run.config.get("chosen")).get("retain"))
    rows = [
        (
            str(corpus.get("name", wording.NONE)),
            wording.setting(corpus.get("source")),
            wording.setting(corpus.get("weight")),
            wording.setting(mapping(chosen.get(str(corpus.get("name")))).get("num_samples")),
        )
        for corpus in mappings(run.config.get("retain"))
    ]
    return Table(("Retain corpus", "Source", "Weight in the mixture", "Samples"), rows)


def settings_table(run: Run) -> Table:
    """Every setting with its help text; those that are not set are left out."""
    helps: Mapping[str, str] = {f.name: str(f.metadata["help"]) for f in dataclasses.fields(UnlearnConfig)}
    settings = mapping(run.config.get("settings"))
    rows = [
        (name, wording.setting(data), re.sub(r" \[default:.*\]$", "", helps.get(name, "")))
        for name, data in settings.items()
        if data is not None
    ]
    return Table(("Setting", "Value", "Meaning"), rows)
