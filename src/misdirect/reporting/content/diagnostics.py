"""The tables below an audit's headline: probes and lenses, brittleness, every point, settings, working texts."""

from __future__ import annotations

from collections.abc import Sequence

from misdirect.reporting import wording
from misdirect.reporting.content.audit import place, right, share, share_of, status_of
from misdirect.reporting.content.form import Table
from misdirect.reporting.load.audit import DONE, SHARE, Attempt, Audit, Measured, at, by_metric, headline
from misdirect.reporting.wording import NONE, Number
from misdirect.runs.stored import NOWHERE


def points_table(audit: Audit) -> Table:
    """Every attack at every point of its budget, on what was to be forgotten."""
    rows = []
    for each in audit.attempts:
        for name in (name for name in each.sets("mcq") if name in audit.forgotten):
            shares = [row for row in each.rows("unlearned", "recovered", name) if row.metric == SHARE]
            both = {model: each.accuracies(model, name) for model in ("base", "unlearned")}
            for point in dict.fromkeys(row.point for found in both.values() for row in found):
                own = [row for row in shares if row.point == point and point != NOWHERE]
                cells = [right(at(both[model], point)) for model in ("base", "unlearned")]
                found = share_of(own[0]) if own else NONE
                counts = [str(row.n) for row in both["unlearned"] + both["base"] if row.point == point and row.n]
                rows.append((each.title, name, place(point, each) or NONE, *cells, found, (counts or [NONE])[0]))
    return Table(("Attack", "Set", "Point", "Base", "Unlearned", "Comes back", "n"), rows, 3)


def inside_table(audit: Audit) -> Table:
    """Probes and lenses: the block that reads out most from the unlearned model, base beside it, and the shuffled control."""
    rows = []
    for each in (one for one in audit.attempts if one.status == DONE):
        for model, measurement, name in each.results:
            if model == "unlearned" and measurement not in ("recovered", "generation"):
                rows += inside_rows(each, measurement, name)
    head = (
        "Read from inside",
        "Set",
        "Best block",
        "Unlearned",
        "Base",
        "Base at its best",
        "Labels shuffled",
        "Floor",
        "n",
    )
    return Table(head, rows, 2)


def inside_rows(each: Attempt, measurement: str, name: str) -> list[tuple[str | Number, ...]]:
    found = by_metric(each.rows("unlearned", measurement, name))
    base: dict[str, list[Measured]] = {row.metric: [] for rows in found.values() for row in rows} | by_metric(
        each.rows("base", measurement, name)
    )
    rows: list[tuple[str | Number, ...]] = []
    for metric, own in found.items():
        if len({row.point.block for row in own}) < 2 or not readable(metric):
            continue
        best = headline([row for row in own if row.headline]) or max(own, key=lambda row: row.value)
        shuffled = at(found.get(metric.replace("_accuracy", "_shuffled_accuracy"), []), best.point)
        title = each.title if metric == "probe_accuracy" else f"{each.title}: {wording.metric_label(metric)}"
        least = best.floor if best.floor is not None else best.chance
        chance = NONE if least is None else wording.value("accuracy", least)
        n = NONE if best.n is None else str(best.n)
        rows.append((title, name, f"{best.point.block:g}", with_span(best), with_span(at(base[metric], best.point)),
                     at_best(base[metric]), right(shuffled), chance, n))  # fmt: skip
    return rows


def at_best(rows: Sequence[Measured]) -> str:
    """`52.0 % (block 29)`: the block by which the model is reported, else the largest."""
    found = headline([row for row in rows if row.headline]) or max(rows, key=lambda row: row.value, default=None)
    return NONE if found is None else f"{right(found)} (block {found.point.block:g})"


def readable(metric: str) -> bool:
    return metric.endswith("accuracy") and "shuffled" not in metric


def with_span(row: Measured | None) -> Number:
    return wording.number("accuracy", None if row is None else row.value, row)


LABELS = {
    "right_nll_before": "NLL per token of the right answer, without the text",
    "right_nll_end": "NLL per token of the right answer, with it",
    "right_said": "right answers that the text brings out",
    "wrong_nll_before": "NLL per token of a wrong answer, without the text",
    "wrong_nll_end": "NLL per token of a wrong answer, with it",
    "wrong_said": "wrong answers that a text brings out (control)",
    "easier_before": "NLL per token: wrong answer less right answer, without the texts",
    "easier_after": "NLL per token: wrong answer less right answer, with the texts",
}
KNOWN = ("mcq", "probe", "recovered", "generation", "lens")  # measurements with a place of their own
UNTOLD = ("positive_control", "attack_tokens", "attack_seconds")


def other_table(audit: Audit) -> Table:
    """Measurements of diagnostics that have no other place: every number, base beside unlearned."""
    rows = []
    for each in diagnostics(audit):
        places = dict.fromkeys((measurement, name) for _, measurement, name in each.results if measurement not in KNOWN)
        for measurement, name in places:
            both = [by_metric(each.rows(model, measurement, name)) for model in ("base", "unlearned")]
            for metric in (metric for metric in dict.fromkeys([*both[0], *both[1]]) if metric not in UNTOLD):
                found = [next(iter(side.get(metric, [])), None) for side in both]
                n = next((str(row.n) for row in found if row and row.n is not None), NONE)
                said = LABELS.get(metric, wording.metric_label(metric))
                rows.append((f"{each.title}: {said}", name, *(plain_value(row, metric) for row in found), n))
    return Table(("Measured", "Set", "Base", "Unlearned", "n"), rows, 2)


def plain_value(row: Measured | None, metric: str) -> str:
    if row is None:
        return NONE
    return share(row.value) if metric.endswith("_said") else wording.value(metric, row.value)


def brittle_table(audit: Audit) -> Table:
    """What is asked in another way without a wish to get something out: base and unlearned, before and after."""
    rows = []
    for each in diagnostics(audit):
        for name in each.sets("mcq"):
            both = {model: each.accuracies(model, name) for model in ("base", "unlearned")}
            asked = dict.fromkeys(row.point for rows in both.values() for row in rows)
            for point in (p for p in asked if p.block is None and p.budget != 0):
                cells = [x for m in both for x in (before(audit, m, name), with_span(at(both[m], point)))]
                n = next((str(r.n) for r in both["unlearned"] + both["base"] if r.n), NONE)
                title = each.title + (f" ({at_point})" if (at_point := place(point, each)) else "")
                rows.append((title, name, *cells, n))
    head = ("Test", "Set", "Base, plain", "Base, tested", "Unlearned, plain", "Unlearned, tested", "n")
    return Table(head, rows, 2)


def before(audit: Audit, model: str, name: str) -> str:
    return wording.value("accuracy", audit.untouched(model, name))


def diagnostics(audit: Audit) -> list[Attempt]:
    return [each for each in audit.attempts if not each.recovers and each.status == DONE]


def silent_diagnostics(audit: Audit) -> list[str]:
    """`Linear probe: not run (needs 3 minutes)`."""
    return [f"{each.title}: {status_of(each)}" for each in audit.attempts if not each.recovers and each.status != DONE]


def settings_table(audit: Audit) -> Table:
    rows = [(each.title, setting_words(each)) for each in audit.attempts if each.settings]
    return Table(("Attack", "Settings"), rows)


def setting_words(each: Attempt) -> str:
    own = {name: value for name, value in each.settings.items() if name not in SHARED}
    return ", ".join(f"{name} {value[:16] if name.endswith('sha256') else value}" for name, value in wording.flat(own))


SHARED = (
    "models_sha256",
    "dtype",
    "questions_sha256",
    "texts_sha256",
    "forms",
    "split_seed",
)  # the same for all attacks of an audit


def texts_table(audit: Audit, most: int = 60) -> Table:
    """Texts that an attack found to work, for those who may see them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in audit.attempts:
        for (model, _, name), result in each.results.items():
            for record in result.records if model == "unlearned" and "text" in next(iter(result.records), {}) else ():
                found.setdefault((each.title, name, record["text"]), []).append(str(record["id"]))
    rows = [(title, name, shown_ids(ids), text) for (title, name, text), ids in list(found.items())[:most]]
    return Table(("Attack", "Set", "Question", "Text"), rows)


def shown_ids(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else wording.counted(len(ids), "question")


def cost_rows(audit: Audit) -> list[tuple[str, str]]:
    """What the audit took, and what was asked, for the page's foot."""
    seconds = audit.about.seconds
    took = [("took", wording.duration(seconds))] if seconds is not None else []
    return [*took, *wording.flat({k: v for k, v in audit.about.settings.items() if v is not None})]
