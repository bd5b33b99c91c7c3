"""An audit in words and tables: the headline, attacks by what they bring back and what they cost, and what was not run.

An attack that was not run, or whose control failed, says nothing; it is never written as one that was resisted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.audits import (
    DONE,
    FAILED,
    INCONCLUSIVE,
    NOT_RUN,
    SHARE_ALL,
    Attempt,
    Audit,
    Row,
    Spot,
    at,
    headline,
    rows_of,
)
from misdirect.reporting.reading import mapping, number
from misdirect.reporting.tables import Table

# access -> what an attacker must have, in a word or two, and who has it
ACCESS: Mapping[str, tuple[str, str]] = {
    "prompt": ("a prompt", "Types text and reads the answer: every user of a chat page or an API has this."),
    "logits": (
        "log-probabilities",
        "Sees how likely each token is, as some APIs tell: enough for searches over prompts that need no gradient.",
    ),
    "gradients": (
        "gradients",
        "Holds a copy of the weights to compute with, and attacks through what is fed in; the model stays as it is. "
        "Everybody has this with open weights. A text found in this way can then be typed elsewhere.",
    ),
    "weights": (
        "the weights",
        "Changes the weights or what flows between blocks: everybody with open weights, and whoever may finetune "
        "a model through an API that gives the attacker's own copy back.",
    ),
}
ORDER = (DONE, INCONCLUSIVE, FAILED, NOT_RUN)
EXPLAINED = (
    "The strongest attack is chosen on one half of the tested questions and reported on the other, and the other way round, "
    "so that the number is not the luckiest of many."
)


class Line(NamedTuple):
    """One attack on one set, as text. `share` and `interval` are empty where there is nothing to report."""

    name: str
    title: str
    note: str
    access: str
    status: str  # "" for done, else what stands in place of the share
    share: str
    interval: str
    all_questions: str
    after: str
    control: str
    general: str
    degenerate: str
    seconds: str
    tokens: str


# ------------------------------------------------------------------------------------------------ numbers


def share(x: float | None) -> str:
    """`64 %`: whole per cent, since a few dozen questions carry no more."""
    if x is None:
        return wording.NONE
    return f"{100 * x:.0f}{wording.SPACE}%".replace("-0" + wording.SPACE, "0" + wording.SPACE).replace("-", "\u2212")


def span(row: Row | None) -> str:
    if row is None or row.low is None or row.high is None:
        return ""
    return f"{share(row.low).removesuffix(wording.SPACE + '%')} to {share(row.high)}"


def right(row: Row | None) -> str:
    return wording.NONE if row is None else wording.value("accuracy", row.value)


def short_seconds(seconds: float | None) -> str:
    return wording.NONE if seconds is None else wording.duration(seconds)


def tokens_of(count: float | None) -> str:
    """`31,000`, three digits of it; none where an attack reads nothing of its own."""
    return wording.NONE if count is None else "none" if count < 1 else f"{float(f'{count:.3g}'):,.0f}"


def place(spot: Spot) -> str:
    """`after 60 updates`, `block 7`, `budget 0.5`."""
    step, block, budget = spot
    parts = [f"step {step:g}"] if step is not None else []
    parts += [f"block {block:g}"] if block is not None else []
    parts += [f"budget {budget:g}"] if budget is not None else []
    return ", ".join(parts)


# ------------------------------------------------------------------------------------------------ the headline


class Headline(NamedTuple):
    """What stands on top for one forgotten set."""

    set: str
    big: str
    sentence: str
    small: list[str]


def headlines(audit: Audit) -> list[Headline]:
    return [headline_of(audit, name) for name in audit.forgotten]


def headline_of(audit: Audit, name: str) -> Headline:
    removed = removed_in_words(audit, name)
    if audit.part("removed", name).get("removed") is False:
        text = f"{name}: nothing was removed{removed}, so nothing can come back."
        return Headline(name, "nothing was removed", text, [])
    found, finished = audit.share(name), finished_attacks(audit, name)
    if found is None:
        known = "" if not finished else " that was chosen on one half of the questions and measured on the other"
        text = (
            f"{name}: no attack has been run that could bring knowledge back{known}. This says nothing about the model."
        )
        return Headline(name, "not attacked", text, [])
    interval = f" [{span(found)}]" if span(found) else ""
    names, prices = strongest_in_words(audit, name)
    text = f"{name}: {share(found.value)}{interval} of what was removed comes back under {names}"
    text += f"; price: {prices}." if prices else "."
    small = []
    if found.low is not None and found.low <= 0:
        small.append(
            "The interval holds 0: this cannot be told from nothing coming back under the attacks that were run. "
            "Another attack may do better."
        )
    if removed:
        small.append(f"What was removed: {removed.strip(' ():')}.")
    small.append(f"{wording.counted(len(finished), 'attack')} run to the end that could bring knowledge back.")
    return Headline(name, share(found.value), text, small)


def removed_in_words(audit: Audit, name: str) -> str:
    """` (base 64.2 %, unlearned 31.2 %: 33.0 points [25.1 to 40.9])`, as far as it is known."""
    base, after = audit.untouched("base", name), audit.untouched("unlearned", name)
    both = [f"{m} {wording.value('accuracy', x)}" for m, x in (("base", base), ("unlearned", after)) if x is not None]
    row = audit.part("removed", name)
    value, low, high = (number(row, key) for key in ("value", "low", "high"))
    drop = f"{points(value)} points" if value is not None else ""
    drop += f", 95 % interval {points(low)} to {points(high)}" if drop and low is not None and high is not None else ""
    parts = [", ".join(both) + (" right" if both else ""), drop]
    return f" ({': '.join(part for part in parts if part)})" if any(parts) else ""


def points(x: float | None) -> str:
    return "" if x is None else wording.signed(100 * x, 1).removeprefix("+")


def strongest_in_words(audit: Audit, name: str) -> tuple[str, str]:
    """(`the strongest attack: TITLE (step 60)`, its price); two where the halves chose two."""
    chosen = list(dict.fromkeys(audit.chosen(name)))
    if not chosen:
        return "the strongest attack", ""
    titles = [titled(audit, attack, spot) for attack, spot in chosen]
    if len(chosen) == 1 or len({attack for attack, _ in chosen}) == 1:
        attack = chosen[0][0]
        made = audit.attempt(attack)
        spots = wording.listed([text for _, spot in chosen if (text := place(spot))])
        title = (made.title if made else attack) + (f" ({spots})" if spots else "")
        return f"the strongest attack: {title}", price(made, name)
    made_of = [(audit.attempt(attack), attack) for attack, _ in chosen]
    prices = [f"{p} for the {which}" for (made, _), which in zip(made_of, ("first", "second", "third"), strict=False)
              if (p := price(made, name))]  # fmt: skip
    return f"the strongest attacks, each for one half of the questions: {' / '.join(titles)}", "; ".join(prices)


def titled(audit: Audit, attack: str, spot: Spot) -> str:
    made = audit.attempt(attack)
    where = place(spot)
    return (made.title if made else attack) + (f" ({where})" if where else "")


def price(made: Attempt | None, name: str) -> str:
    """`31,000 tokens, 64 seconds, access to the weights`."""
    if made is None:
        return ""
    tokens, seconds = made.cost(name, "attack_tokens"), made.cost(name, "attack_seconds")
    parts = [f"{tokens_of(tokens)} tokens"] if tokens else []
    parts += [wording.duration(seconds)] if seconds is not None else []
    parts += [f"access to {access_word(made)}"] if made.access else []
    return ", ".join(parts)


def access_word(made: Attempt) -> str:
    return ACCESS[made.access][0] if made.access in ACCESS else made.access or wording.NONE


def finished_attacks(audit: Audit, name: str) -> list[Attempt]:
    return [a for a in audit.attempts if a.recovers and a.status == DONE and a.share(name) is not None]


def silent(audit: Audit) -> list[str]:
    """How many attacks say nothing, and why that is no good news."""
    own = [a for a in audit.attempts if a.recovers]
    counts = [(sum(a.status == status for a in own), status) for status in (NOT_RUN, INCONCLUSIVE, FAILED)]
    said = [f"{count} {status}" for count, status in counts if count]
    if not said:
        return []
    return [
        f"Of {wording.counted(len(own), 'attack')}, {wording.listed(said)}: these say nothing about the model, good or bad."
    ]


def unknown(audit: Audit) -> list[str]:
    """Questions that the base does not know, set apart: how many, and their accuracy before and after."""
    return [text for name in audit.forgotten if (text := unknown_of(audit, name))]


def unknown_of(audit: Audit, name: str) -> str:
    split, ids, base = audit.part("split", name), audit.tested(name), audit.right("base", name)
    missed = [key for key in ids if base.get(key) is False]
    tested, known = number(split, "tested"), number(split, "known")
    if tested is None and ids and all(key in base for key in ids):
        tested, known = float(len(ids)), float(len(ids) - len(missed))
    if tested is None or known is None:
        return ""
    count = int(tested - known)
    text = f"{name}: {int(tested)} questions tested, {int(known)} of which the base knows"
    if not count:
        return text + "; none had to be set apart."
    text += f"; the other {count} are set apart and in no recovered share"
    shown = [
        f"{when} {wording.value('accuracy', x)}" for when, x in accuracies_of(audit, name, missed) if x is not None
    ]
    return text + (f" (right there: {', '.join(shown)})." if shown and len(missed) == count else ".")


def accuracies_of(audit: Audit, name: str, ids: Sequence[str]) -> list[tuple[str, float | None]]:
    before = audit.right("unlearned", name)
    unattacked = [before[key] for key in ids if key in before]
    after = attacked_right(audit, name)
    attacked = [after[key] for key in ids if key in after]
    made = (("unlearned", unattacked), ("under the strongest attack", attacked))
    return [(when, sum(found) / len(found) if found else None) for when, found in made]


def attacked_right(audit: Audit, name: str) -> dict[str, bool]:
    """Question's id -> whether it is right under the attack that was chosen on the other half."""
    chosen = audit.chosen(name)
    found: dict[str, bool] = {}
    for fold, (attack, spot) in enumerate(chosen):
        made = audit.attempt(attack)
        for record in made.records("unlearned", "mcq", name) if made else ():
            if len(chosen) > 1 and record.get("fold") == fold:
                continue
            for point in record.get("points") or ():
                if at_spot(mapping(point), spot) and isinstance(point.get("correct"), bool):
                    found[str(record.get("id"))] = point["correct"]
    return found


def at_spot(point: Mapping[str, Any], spot: Spot) -> bool:
    return tuple(number(point, key) for key in ("step", "block", "budget")) == spot


# ------------------------------------------------------------------------------------------------ attack by attack


def lines(audit: Audit, name: str) -> list[Line]:
    """Attacks that could bring knowledge back: what comes back first, then those that say nothing."""
    return [line(audit, each, name) for each in ranked(audit, name)]


def ranked(audit: Audit, name: str) -> list[Attempt]:
    def key(each: Attempt) -> tuple[int, float]:
        found = each.share(name) if each.status == DONE else None
        place = ORDER.index(each.status) if each.status in ORDER else len(ORDER)
        return place, -found.value if found else 1e9

    return sorted((each for each in audit.attempts if each.recovers), key=key)


def line(audit: Audit, each: Attempt, name: str) -> Line:
    found, everything = each.share(name), each.share(name, SHARE_ALL)
    after = headline(each.accuracies("unlearned", name))
    spot = after.spot if after else (None, None, None)
    told = each.status == DONE and found is not None
    return Line(
        each.name,
        each.title,
        note_of(each, spot),
        access_word(each),
        "" if told else status_of(each),
        share(found.value) if told and found else "",
        span(found) if told else "",
        share(everything.value) if told and everything else wording.NONE,
        right(after),
        right(control_of(each, name, spot)),
        general(audit, each, spot),
        degenerate(each),
        short_seconds(each.cost(name, "attack_seconds")),
        tokens_of(each.cost(name, "attack_tokens")),
    )


def status_of(each: Attempt) -> str:
    """What stands where the share would: `not run (needs 12 minutes)`."""
    if each.status == DONE:
        return "not measured on this set"
    if each.status == NOT_RUN:
        why = each.why if each.why.startswith("need") or not each.why else f"needs {each.why}"
        return f"not run ({why})" if why else "not run"
    if each.status == INCONCLUSIVE:
        return f"inconclusive ({each.why or 'its control failed on the base'}): says nothing"
    return f"{each.status} ({each.why})" if each.why else each.status


def note_of(each: Attempt, spot: Spot) -> str:
    """Where on its budget the attack is best, and what its text gives away."""
    told = number(each.settings, "texts_that_state_a_tested_fact")
    parts = [place(spot)] if each.status == DONE and place(spot) else []
    parts += [f"{int(told)} of its texts state a tested fact"] if told else []
    return "; ".join(parts)


def control_of(each: Attempt, name: str, spot: Spot) -> Row | None:
    """The base under the same attack, at the same point."""
    rows = each.accuracies("base", name)
    return at(rows, spot) or headline(rows)


def general(audit: Audit, each: Attempt, spot: Spot) -> str:
    """Mean accuracy on the sets to be kept after the attack: `41.2 % (before 43.0 %)`."""
    after = [general_row(each.accuracies("unlearned", name), spot) for name in audit.retained]
    pairs = [
        (row.value, audit.untouched("unlearned", name)) for row, name in zip(after, audit.retained, strict=True) if row
    ]
    if not pairs:
        return wording.NONE
    text = wording.value("accuracy", sum(value for value, _ in pairs) / len(pairs))
    before = [x for _, x in pairs if x is not None]
    if len(before) < len(pairs):
        return text
    return f"{text} (before {wording.value('accuracy', sum(before) / len(before))})"


def general_row(rows: Sequence[Row], spot: Spot) -> Row | None:
    """At the attack's own point, else at the last one measured."""
    return at(rows, spot) or (rows[-1] if rows else None)


def degenerate(each: Attempt) -> str:
    for name in each.sets("generation"):
        for row in each.rows("unlearned", "generation", name):
            if row.metric == "degenerate_share":
                return share(row.value)
    return wording.NONE


# ------------------------------------------------------------------------------------------------ tables


def points_table(audit: Audit) -> Table:
    """Every attack at every point of its budget."""
    rows = []
    for each in audit.attempts:
        for name in each.sets("mcq"):
            shares = [row for row in each.rows("unlearned", "recovered", name) if row.metric == "recovered_share"]
            both = {model: each.accuracies(model, name) for model in ("base", "unlearned")}
            for spot in dict.fromkeys(row.spot for found in both.values() for row in found):
                own = [row for row in shares if row.spot == spot and spot != (None, None, None)]
                cells = [right(at(both[model], spot)) for model in ("base", "unlearned")]
                found = share(own[0].value) + (f" ({span(own[0])})" if span(own[0]) else "") if own else wording.NONE
                counts = [str(row.n) for row in both["unlearned"] + both["base"] if row.spot == spot and row.n]
                rows.append(
                    (each.title, name, place(spot) or wording.NONE, *cells, found, (counts or [wording.NONE])[0])
                )
    return Table(("Attack", "Set", "Point", "Base", "Unlearned", "Comes back", "n"), rows)


def inside_table(audit: Audit) -> Table:
    """Probes and lenses: the block that reads out most from the unlearned model, base beside it, and the shuffled control."""
    rows = []
    for each in diagnostics(audit):
        for model, measurement, name in each.results:
            if model == "unlearned" and measurement not in ("recovered", "generation"):
                rows += inside_rows(each, measurement, name)
    head = ("Read from inside", "Set", "Best block", "Base", "Unlearned", "Labels shuffled", "Chance", "n")
    return Table(head, rows)


def inside_rows(each: Attempt, measurement: str, name: str) -> list[tuple[str, ...]]:
    found = by_metric(each.rows("unlearned", measurement, name))
    base = {row.metric: [] for rows in found.values() for row in rows} | by_metric(each.rows("base", measurement, name))
    rows = []
    for metric, own in found.items():
        if len({row.spot[1] for row in own}) < 2 or not readable(metric):
            continue
        best = headline([row for row in own if row.headline]) or max(own, key=lambda row: row.value)
        shuffled = at(found.get(metric.replace("_accuracy", "_shuffled_accuracy"), []), best.spot)
        title = each.title if metric == "probe_accuracy" else f"{each.title}: {wording.metric_label(metric)}"
        chance = wording.NONE if best.chance is None else wording.value("accuracy", best.chance)
        n = wording.NONE if best.n is None else str(best.n)
        rows.append((title, name, f"{best.spot[1]:g}", with_span(at(base[metric], best.spot)), with_span(best),
                     right(shuffled), chance, n))  # fmt: skip
    return rows


def readable(metric: str) -> bool:
    return metric.endswith("accuracy") and "shuffled" not in metric


def by_metric(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return found


def with_span(row: Row | None) -> str:
    if row is None:
        return wording.NONE
    interval = wording.interval("accuracy", {"low": row.low, "high": row.high})
    return right(row) + (f" ({interval})" if interval else "")


def brittle_table(audit: Audit) -> Table:
    """What is asked in another way without a wish to get something out: base and unlearned, before and after."""
    rows = []
    for each in diagnostics(audit):
        for name in each.sets("mcq"):
            both = {model: each.accuracies(model, name) for model in ("base", "unlearned")}
            for row in dict.fromkeys(r.spot for found in both.values() for r in found if r.spot[1] is None):
                cells = [x for m in both for x in (before(audit, m, name), with_span(at(both[m], row)))]
                n = next((str(r.n) for r in both["unlearned"] + both["base"] if r.n), wording.NONE)
                title = each.title + (f" ({place(row)})" if place(row) else "")
                rows.append((title, name, *cells, n))
    head = ("Test", "Set", "Base, plain", "Base, tested", "Unlearned, plain", "Unlearned, tested", "n")
    return Table(head, rows)


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
    return ", ".join(
        f"{name} {value[:16] if name.endswith('sha256') else value}" for name, value in wording.flat(each.settings)
    )


def texts_table(audit: Audit, most: int = 60) -> Table:
    """Texts that an attack found to work, for those who may see them."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for each in audit.attempts:
        for (model, measurement, name), result in each.results.items():
            if model == "unlearned" and measurement != "generation":
                for record in result.get("records") or ():
                    for text in texts_in(record):
                        found.setdefault((each.title, name, text), []).append(str(record.get("id")))
    rows = [(title, name, shown_ids(ids), text) for (title, name, text), ids in list(found.items())[:most]]
    return Table(("Attack", "Set", "Question", "Text"), rows)


def shown_ids(ids: Sequence[str]) -> str:
    return ids[0] if len(ids) == 1 else wording.counted(len(ids), "question")


def texts_in(record: Mapping[str, Any]) -> list[str]:
    points = record.get("points")
    places = [record, *(points if isinstance(points, list) else ())]
    return [place["text"] for place in places if isinstance(place, Mapping) and isinstance(place.get("text"), str)]


def cost_rows(audit: Audit) -> list[tuple[str, str]]:
    """What the audit is about and what it took, for the page's foot."""
    about, rows = audit.about, []
    for model in ("base", "unlearned"):
        source = mapping(about.get(model)).get("source")
        rows += [(model, public(source))] if isinstance(source, str) else []
    seconds = number(about, "seconds")
    rows += [("took", wording.duration(seconds))] if seconds is not None else []
    return [*rows, *wording.flat({k: v for k, v in mapping(about.get("settings")).items() if v is not None})]


def public(source: str) -> str:
    from misdirect.reporting.public import public_name

    return public_name(source)


__all__ = ["headlines", "lines", "rows_of", "silent", "unknown"]
