"""`comparison.html`: several runs side by side, in a plane of what was forgotten against what was kept, and in numbers.

Runs are compared only where that means something: in groups of one base model (by the hash of its weights), and set by
set only where the questions, their number and the way they were asked are the same (by the results' own configs).

    compare([Path("runs/a"), Path("runs/b")], Path("runs/comparison.html"))
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from misdirect import runs as running
from misdirect import stats, storage
from misdirect.config import SPEED_ONLY
from misdirect.reporting import wording
from misdirect.reporting.content import audit_comparison, metrics
from misdirect.reporting.content.evaluation import limit, over_seeds
from misdirect.reporting.content.form import Cell, Table, in_line
from misdirect.reporting.content.tradeoff import Named, Row, ends, moved, plane
from misdirect.reporting.figures import catalogue
from misdirect.reporting.load.run import QUESTIONS, Run, read_run
from misdirect.reporting.page import fill
from misdirect.reporting.wording import NONE, Number
from misdirect.runs.stored import typed, untyped
from misdirect.text import clean

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNCOMPARED = frozenset({*SPEED_ONLY, "seconds"})


class Answered(msgspec.Struct, frozen=True):
    """A question's record: which formats have it right."""

    id: str
    correct: dict[str, bool] = {}


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Writes one page that sets several runs side by side, and returns `out`.

    Raises ValueError for fewer than two runs, the same folder twice, or a folder that is not a run.
    """
    named = read_named(runs)
    groups = grouped(named)
    made = [group_view(group, f"base{index}") for index, group in enumerate(groups, 1)]
    drawn = catalogue.inline({view["picture"]: view["plane"] for view in made if view["plane"]})
    data = {
        "title": f"Comparison of {wording.counted(len(named), 'run')}",
        "groups": made,
        "notes": notes(groups),
        "audited": any(each.run.audit for each in named),
        "differing": differing_settings(named),
        "version": running.environment()["versions"].get("misdirect", ""),
    }
    storage.write_text(out, fill("comparison.html", data, drawn))
    return out


def read_named(paths: Sequence[Path]) -> list[Named]:
    """Raises ValueError for a number of runs that has no letters, or a folder named twice."""
    if not 2 <= len(paths) <= len(LETTERS):
        raise ValueError(f"{len(paths)} runs cannot be compared; expected 2 to {len(LETTERS)}")
    resolved = [path.resolve() for path in paths]
    for path in resolved:
        if resolved.count(path) > 1:
            raise ValueError(f"{path} is named twice; expected each run once")
    names = [path.name for path in resolved]
    if len(set(names)) < len(names):  # runs/a/demo and runs/b/demo
        names = ["/".join(path.parts[-2:]) for path in resolved]
    return [
        Named(letter, clean(name), read_run(path)) for letter, name, path in zip(LETTERS, names, paths, strict=False)
    ]


def bases_of(run: Run) -> set[str]:
    """What tells base models apart: hashes of the weights with their dtype, or the name where there is no hash."""
    data, audit_hash = run.config.data, audit_comparison.base_hash(run.audit)
    own = data.model_sha256 or ("" if audit_hash else run.model)
    found = {f"{own} {data.dtype or ''}".strip()} if own or not audit_hash else set()
    return found | ({f"audited {audit_hash}"} if audit_hash else set())


def grouped(named: Sequence[Named]) -> list[list[Named]]:
    """Runs of the same base together, in the order in which they were given."""
    found: list[tuple[set[str], list[Named]]] = []
    for each in named:
        keys = bases_of(each.run)
        same = next((group for group in found if group[0] & keys), None)
        if same is None:
            found.append((keys, [each]))
        else:
            same[0].update(keys)
            same[1].append(each)
    return [group for _, group in found]


# ------------------------------------------------------------------------------------------------ which rows belong together


def rows_of(group: Sequence[Named], measurements: Sequence[str]) -> list[Row]:
    """The judged rows of a group of runs: one for each set, metric and way of asking."""
    found: dict[tuple[str, ...], Row] = {}
    for each in group:
        configs = {(r.measurement, r.set): r.config for r in each.run.results}
        for pair in each.run.headlines(*measurements):
            config = configs.get((pair.measurement, pair.set), {})
            kept = {name: value for name, value in config.items() if name not in UNCOMPARED}
            key = (pair.measurement, pair.set, pair.metric, json.dumps(kept, sort_keys=True))
            row = found.setdefault(key, Row(pair.measurement, pair.set, pair.metric, kept, {}))
            found[key] = row._replace(pairs={**row.pairs, each.letter: pair})
    return sorted(found.values(), key=lambda row: ([p.kind for p in row.pairs.values()] != ["forget"], row.set))


def asked_differently(rows: Sequence[Row]) -> list[str]:
    """A sentence for every set that some runs asked in another way."""
    sentences = []
    for key in dict.fromkeys((row.measurement, row.set) for row in rows):
        same = [row for row in rows if (row.measurement, row.set) == key]
        if len(same) > 1:
            what = wording.listed([f"{''.join(row.pairs)}: {difference(row, same)}" for row in same])
            sentences.append(f"{key[1]} was not asked in the same way, so its rows are not compared ({what}).")
    return sentences


def difference(row: Row, others: Sequence[Row]) -> str:
    """`limit 300`: what this way of asking has that the others do not have."""
    names = sorted({name for other in others for name in running.differing(row.config, other.config)})
    said = ["other questions" if name.endswith("sha256") else f"{name} {wording.setting(row.config.get(name))}"
            for name in names if not (name.endswith("sha256") and len(names) > 1)]  # fmt: skip
    return ", ".join(said) if said else wording.metric_label(row.metric)


def shared(rows: Sequence[Row], group: Sequence[Named], kind: str) -> list[Row]:
    """Accuracies that every run of the group has, of sets that are of this kind for all and that the base knows."""
    letters = {each.letter for each in group}
    own = [row for row in rows if row.pairs.keys() == letters and wording.is_share(row.metric)]
    return [row for row in own if all(pair.kind == kind and pair.base_knows for pair in row.pairs.values())]


# ------------------------------------------------------------------------------------------------ what is shown


def group_view(group: Sequence[Named], name: str) -> dict[str, Any]:
    """All that the template shows of the runs of one base."""
    questions, texts = rows_of(group, QUESTIONS), rows_of(group, ("nll",))
    forget, retain = (shared(questions, group, kind) for kind in ("forget", "retain"))
    letters = wording.listed([each.letter for each in group])
    return {
        "heading": f"{'Runs' if len(group) > 1 else 'Run'} {letters}, from {group[0].run.model_name or 'one base model'}",
        "letters": letters,
        "picture": name,
        "alone": len(group) == 1,
        "plane": plane(group, forget, retain) if forget and retain and len(group) > 1 else None,
        "sets": wording.listed([row.set for row in forget]) + " against " + wording.listed([row.set for row in retain]),
        "runs": runs_table(group, forget, retain, texts),
        "accuracy": side_by_side(group, questions, accuracy_cell),
        "attacks": audit_comparison.tables([(each.label, each.run.audit) for each in group]),
        "texts": side_by_side(group, texts, lambda row, each, first: Cell(metrics.change_of(row.pairs[each.letter]))),
        "sentences": [*best(group, forget, retain), *asked_differently([*questions, *texts])],
    }


def best(group: Sequence[Named], forget: Sequence[Row], retain: Sequence[Row]) -> list[str]:
    """Which run forgets most and which changes least; that the intervals may overlap is for the reader to see."""
    if len(group) < 2:
        return []
    sentences = []
    after = [(mean, each.label) for each in group if (mean := ends(forget, each.letter, "unlearned"))]
    if after:
        mean, label = min(after, key=lambda found: found[0].value)
        value = wording.number("accuracy", mean.value, mean)
        sentences.append(f"Lowest on what was to be forgotten: {label}, {value.text} right ({value.interval}).")
    changes = [(mean, each.label) for each in group if (mean := moved(retain, each.letter))]
    if changes:
        mean, label = max(changes, key=lambda found: found[0].value)
        value = wording.changed("accuracy", mean.value, mean)
        sentences.append(f"Least lost on what was to be kept: {label}, {in_line(value)}.")
    return sentences


def runs_table(group: Sequence[Named], forget: Sequence[Row], retain: Sequence[Row], texts: Sequence[Row]) -> Table:
    """A line a run: where it ends on the sets that all have, what that changed elsewhere, what it cost."""
    rows = []
    for each in group:
        after, change = ends(forget, each.letter, "unlearned"), moved(retain, each.letter)
        known = [level for row in forget if (level := limit(row.pairs[each.letter])[1]) is not None]
        rows.append(
            (
                each.label,
                wording.number("accuracy", after.value, after) if after else NONE,
                wording.value("accuracy", sum(known) / len(known)) if known else NONE,
                wording.changed("accuracy", change.value, change) if change else NONE,
                worst_text(texts, each.letter, "forget"),
                worst_text(texts, each.letter, "retain"),
                wording.setting(each.run.updates),
                wording.duration(each.run.seconds) if each.run.seconds else NONE,
            )
        )
    head = ("Run", "Forget, right", "Floor", "Retain, change", "Forget text, NLL", "Retain text, worst NLL", "Updates",
            "Time")  # fmt: skip
    return Table(head, rows, 1)


def worst_text(texts: Sequence[Row], letter: str, kind: str) -> Cell:
    """The largest rise of NLL over the run's own text sets of a kind, and of which set it is."""
    found = [row.pairs[letter] for row in texts if letter in row.pairs and row.pairs[letter].kind == kind]
    rises = [(x, pair) for pair in found if (x := pair.paired.difference) is not None]
    if not rises:
        return Cell()
    _, pair = max(rises, key=lambda each: each[0])
    return Cell(metrics.change_of(pair), [pair.set])


def side_by_side(group: Sequence[Named], rows: Sequence[Row], cell: Callable[[Row, Named, Named], Cell]) -> Table:
    """A line a set: the base, then every run; `cell` is given the row, the run, and the first run that has the row."""
    lines: list[tuple[str | Number | Cell, ...]] = []
    for row in rows:
        having = [each for each in group if each.letter in row.pairs]
        pair = row.pairs[having[0].letter]
        cells = [cell(row, each, having[0]) if each in having else Cell() for each in group]
        kinds = dict.fromkeys(pair.kind for pair in row.pairs.values())
        about = " / ".join(kind for kind in kinds if kind != "other")
        name = Cell(row.set, [", ".join(part for part in (about, wording.metric_label(row.metric)) if part)])
        lines.append((name, metrics.count_of(pair), metrics.base_of(pair), *cells))
    return Table(("Set", "n", "Base", *(each.label for each in group)), lines, 1)


def accuracy_cell(row: Row, each: Named, first: Named) -> Cell:
    pair = row.pairs[each.letter]
    seeds = over_seeds(pair).removeprefix("unlearned ")
    change = f"change {metrics.change_of(pair).text}"
    return Cell(metrics.unlearned_of(pair), [text for text in (change, seeds, against(row, each, first)) if text])


def against(row: Row, each: Named, first: Named) -> str:
    """`to A +1.2 pp (-0.5 to +2.9 pp)`: paired over the questions, which are the same; empty for the first itself."""
    if each is first:
        return ""
    one, other = (right_answers(run.run, row) for run in (first, each))
    if not one or one.keys() != other.keys():
        return ""
    found = stats.paired(list(one.values()), [other[key] for key in one])
    return f"to {first.letter} {in_line(wording.changed(row.metric, found.difference, found))}"


def right_answers(run: Run, row: Row) -> dict[str, bool]:
    """Question's id -> whether the unlearned model has it right; empty where the records do not say."""
    wanted, key = ("unlearned", row.measurement, row.set), row.metric.removesuffix("_accuracy")
    result = next((r for r in run.results if (r.model, r.measurement, r.set) == wanted), None)
    records = [typed(record, Answered) for record in result.records] if result else []
    return {r.id: r.correct[key] for r in records} if all(key in r.correct for r in records) else {}


def notes(groups: Sequence[Sequence[Named]]) -> list[str]:
    if len(groups) == 1:
        return []
    each = [f"{wording.listed([n.letter for n in group])} from {weights_in_words(group[0].run)}" for group in groups]
    return [f"The runs have {len(groups)} different base models and are shown apart: {'; '.join(each)}."]


def weights_in_words(run: Run) -> str:
    """`demo (weights 24609a70)`: two bases may have the same name."""
    found = run.config.data.model_sha256
    return f"{run.model_name or 'a model without a name'} ({'weights ' + found[:8] if found else 'weights not known'})"


def differing_settings(named: Sequence[Named]) -> Table:
    """The settings that are not the same in every run; what was chosen from a measurement is among them."""
    flat = [dict(wording.flat(asked(each.run))) for each in named]
    names = [name for name in dict.fromkeys(n for row in flat for n in row) if len({row.get(name) for row in flat}) > 1]
    rows = [(name, *(row.get(name, NONE) for row in flat)) for name in names]
    return Table(("Setting", *(each.label for each in named)), rows)


def asked(run: Run) -> dict[str, Any]:
    config = run.config
    settings = {k: v for k, v in config.settings.items() if v is not None and k not in UNCOMPARED}
    topics = {name: untyped(found) if (found := config.chosen.topics.get(name)) else None for name in run.topics}
    retain = {corpus.name: f"{corpus.source}@{corpus.weight}" for corpus in config.retain}
    data = {k: v for k, v in untyped(config.data).items() if k != "model_sha256"}
    hashes = {name: short_hashes(value) for name, value in data.items()}
    return {"model": run.model, **settings, "topics": topics, "retain": retain, "data": hashes}


def short_hashes(data: Any) -> Any:
    """The first eight digits tell two data sets apart."""
    if isinstance(data, Mapping):
        return {name: short_hashes(value) for name, value in data.items()}
    return data[:8] if isinstance(data, str) and len(data) == 64 else data
