"""An audit, typed: `audit.json` and the results under `results/attacks`, attack by attack.

It may be one that was stopped, of one side only, or results without an `audit.json`. Nothing is judged here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import msgspec

from misdirect.config import kind_of
from misdirect.reporting.redact import public_name
from misdirect.runs.stored import NOWHERE, AttackEntry, AuditRecord, Point, Removed, Split, StoredResult, typed
from misdirect.text import clean

STRONGEST = "strongest"  # the pseudo-attack whose headline row is the audit's headline
NONE = "none"  # the pseudo-attack in which both models are asked as they are
DONE, NOT_RUN, INCONCLUSIVE, FAILED = "done", "not run", "inconclusive", "failed"
SHARE, SHARE_ALL = "recovered_share", "recovered_share_all"
CONTROL = "positive_control"
Key = tuple[str, str, str]  # model, measurement, set


class Measured(NamedTuple):
    """A number with its interval, and where on the attack's budget it belongs."""

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    chance: float | None
    floor: float | None
    point: Point
    headline: bool


class Right(msgspec.Struct, frozen=True):
    """Accuracies of the base beside the strongest attack."""

    base: float | None = None
    base_attacked: float | None = None


class Apart(msgspec.Struct, frozen=True):
    """Questions that the base does not know: how many, and how many of them are right."""

    n: int | None = None
    unlearned_right: int | None = None
    attacked_right: int | None = None


class Half(msgspec.Struct, frozen=True, array_like=True):
    """The attack by which a half of the tested questions is reported, and where on its budget."""

    attack: str
    at: dict[str, float | None] = {}

    @property
    def point(self) -> Point:
        return Point(self.at.get("step"), self.at.get("block"), self.at.get("budget"))


class StrongestConfig(msgspec.Struct, frozen=True):
    """The `config` of the strongest attack's result."""

    chosen: list[Half] = []
    right: Right = Right()
    unknown: Apart = Apart()


@dataclass(frozen=True)
class Attempt:
    """One attack with all that was stored of it."""

    name: str
    family: str
    title: str
    access: str
    holds: str
    status: str
    why: str
    recovers: bool
    seconds: Mapping[str, float | None]
    settings: Mapping[str, Any]
    results: Mapping[Key, StoredResult] = field(default_factory=dict)

    def rows(self, model: str, measurement: str, name: str) -> list[Measured]:
        return rows_of(self.results.get((model, measurement, name)))

    def sets(self, measurement: str) -> list[str]:
        return list(dict.fromkeys(name for _, measured, name in self.results if measured == measurement))

    def share(self, name: str, metric: str = SHARE) -> Measured | None:
        """The attack's own cross-fitted recovered share of a set: the headline, or the last one that has no point."""
        found = [row for row in self.rows("unlearned", "recovered", name) if row.metric == metric]
        marked = [row for row in found if row.headline]
        whole = marked or [row for row in found if row.point == NOWHERE]
        return whole[-1] if whole else None

    def accuracies(self, model: str, name: str) -> list[Measured]:
        """Accuracy of a set at every point, in the one form in which the audit asks."""
        return judged(self.rows(model, "mcq", name))

    def cost(self, name: str, what: str) -> float | None:
        """`attack_tokens` or `attack_seconds`, of the unlearned model."""
        found = [row.value for row in self.rows("unlearned", "mcq", name) if row.metric == what]
        if not found and what == "attack_seconds":
            return self.seconds.get("unlearned")
        return found[0] if found else None

    @property
    def control(self) -> float | None:
        """Whether the optimiser works at all, as seen on the base: the worst of its sets."""
        found = [
            row.value
            for (model, _, _), result in self.results.items()
            if model == "base"
            for row in rows_of(result)
            if row.metric == CONTROL
        ]
        return min(found) if found else None


@dataclass(frozen=True)
class Audit:
    """All attacks of an audit in the order in which they were planned, and what surrounds them."""

    about: AuditRecord
    attempts: Sequence[Attempt]
    none: Attempt | None  # the same questions without an attack
    strongest: Mapping[str, StoredResult]  # set -> result of the pseudo-attack
    strongest_configs: Mapping[str, StrongestConfig]
    plain: Mapping[tuple[str, str], StoredResult]  # (model, set) -> of the evaluation, which may be of other questions
    forgotten: Sequence[str]
    retained: Sequence[str]

    def split(self, name: str) -> Split:
        return self.about.split.get(name, Split())

    def change(self, name: str) -> Removed:
        """What audit.json says that unlearning took from a set."""
        return self.about.removed.get(name, Removed())

    def strongest_config(self, name: str) -> StrongestConfig:
        return self.strongest_configs.get(name, StrongestConfig())

    def removed(self, name: str) -> bool:
        """False only where the audit says that nothing was, and that so nothing was attacked."""
        found = self.change(name)
        return (found.removed if found.attacked is None else found.attacked) is not False

    def share(self, name: str) -> Measured | None:
        """The headline: what comes back of a set under the strongest attack."""
        return headline([row for row in rows_of(self.strongest.get(name)) if row.metric == SHARE])

    def strongest_row(self, name: str, metric: str) -> Measured | None:
        """Another number of the strongest attack."""
        return next((row for row in rows_of(self.strongest.get(name)) if row.metric == metric), None)

    def chosen(self, name: str) -> list[tuple[str, Point]]:
        """For each half of the tested questions the attack by which it is reported, with the point of its budget."""
        return [(half.attack, half.point) for half in self.strongest_config(name).chosen]

    def attempt(self, name: str) -> Attempt | None:
        return next((each for each in self.attempts if each.name == name), None)

    def untouched(self, model: str, name: str) -> float | None:
        """Accuracy without any attack: on the very questions of the attacks, or else of the evaluation."""
        found = headline(self.none.accuracies(model, name)) if self.none else None
        stored = self.change(name).base if model == "base" else self.change(name).unlearned
        if found is None and stored is not None:
            return stored
        found = found or headline(judged(rows_of(self.plain.get((model, name)))))
        return found.value if found else None

    def floor(self, name: str) -> float | None:
        """What a reader of the choices alone scores, else chance."""
        for model in ("unlearned", "base"):
            for row in self.plain[model, name].metrics if (model, name) in self.plain else ():
                if row.headline is True:
                    return row.floor if row.floor is not None else row.chance
        return None


# ------------------------------------------------------------------------------------------------ reading


def audit_of(about: AuditRecord | None, results: Sequence[StoredResult], topics: Sequence[str] = ()) -> Audit | None:
    """None where there is neither an `audit.json` nor a result of an attack."""
    by_attack: dict[str, dict[Key, StoredResult]] = {}
    for r in results:
        if r.attack is not None:
            by_attack.setdefault(r.attack, {})[r.model, r.measurement, r.set] = r
    if about is None and not by_attack:
        return None
    about = about or AuditRecord()
    strongest = {key[2]: r for key, r in by_attack.pop(STRONGEST, {}).items() if key[1] == "recovered"}
    entries = {entry.name: entry for entry in about.attacks}
    names = [name for name in dict.fromkeys([*entries, *by_attack]) if name != STRONGEST]
    made = [attempt_of(entries.get(name) or AttackEntry(name), by_attack.get(name, {})) for name in names]
    plain = {(r.model, r.set): r for r in results if r.attack is None and r.measurement == "mcq"}
    named = dict.fromkeys([*about.split, *about.removed])
    recovered = [name for each in made for name in each.sets("recovered")]
    asked = dict.fromkeys(name for each in made for name in each.sets("mcq"))
    by_topic = [name for name in asked if kind_of(name, topics) == "forget"] if not named else []
    forgotten = list(dict.fromkeys([*named, *strongest, *recovered, *by_topic]))
    none = next((each for each in made if each.name == NONE), None)
    attempts = [each for each in made if each is not none]
    retained = [name for name in asked if name not in forgotten]
    configs = {name: strongest_config_of(result) for name, result in strongest.items()}
    return Audit(about, attempts, none, strongest, configs, plain, forgotten, retained)


def strongest_config_of(result: StoredResult) -> StrongestConfig:
    try:
        return typed(result.config, StrongestConfig)
    except ValueError as error:
        raise ValueError(
            f"the stored result of the strongest attack on {result.set} is damaged ({error}); expected the file as it was"
        ) from None


def attempt_of(entry: AttackEntry, results: Mapping[Key, StoredResult]) -> Attempt:
    made = Attempt(
        entry.name,
        entry.family or entry.name.split("-")[0],
        entry.title or entry.name,
        entry.access,
        entry.holds,
        entry.status or (DONE if results else NOT_RUN),
        " ".join(public_name(word) for word in entry.why.split()),
        entry.recovers,
        entry.seconds,
        entry.settings,
        results,
    )
    return made if made.status != DONE else checked(made)


def checked(made: Attempt) -> Attempt:
    """An attack said to be done that cannot be judged by what is stored of it is not done."""
    measured = {model for model, _, _ in made.results}
    if "unlearned" not in measured:
        return replace(made, status=NOT_RUN, why="needs the unlearned model's results, which are missing")
    if made.control is not None and made.control <= 0:
        return replace(made, status=INCONCLUSIVE, why=made.why or "it fails on the base too")
    return made


def rows_of(result: StoredResult | None) -> list[Measured]:
    """The metrics of a result whose value is a number."""
    return [
        Measured(r.metric, r.value, r.low, r.high, r.n, r.chance, r.floor, r.point, r.headline is True)
        for r in (result.metrics if result else ())
        if r.value is not None and r.subject is None
    ]


def headline(rows: Sequence[Measured]) -> Measured | None:
    """The row that says so, else the only one there is."""
    found = [row for row in rows if row.headline] or (list(rows) if len(rows) == 1 else [])
    return found[0] if found else None


def judged(rows: Sequence[Measured]) -> list[Measured]:
    """Of several accuracies the one with the headline."""
    found = [row for row in rows if row.metric.endswith("accuracy") and "shuffled" not in row.metric]
    metric = next((row.metric for row in found if row.headline), found[0].metric if found else "")
    return [row for row in found if row.metric == metric]


def at(rows: Sequence[Measured], point: Point) -> Measured | None:
    return next((row for row in rows if row.point == point), None)


def by_metric(rows: Sequence[Measured]) -> dict[str, list[Measured]]:
    found: dict[str, list[Measured]] = {}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return found


def without_answers(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """A result of an attack with nothing left of its records but the texts in them; the page needs no more.

    Of answers in words those are left that the base has still to read.
    """
    if result["attack"] is None:
        return result
    records = result.get("records", [])
    if result["measurement"] == "generation":
        return {**result, "records": [r for r in records if any("base_nll" not in turn for turn in turns_of(r))]}
    return {**result, "records": [{"id": r.get("id"), "text": text} for r in records for text in texts_in(r)]}


def turns_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [turn for answer in record.get("answers", []) for turn in answer["turns"]]


def texts_in(record: Mapping[str, Any]) -> list[str]:
    found = [row.get("text") for row in (record, *record.get("points", []))]
    return list(dict.fromkeys(text for text in found if isinstance(text, str)))


def results_of(rows: Iterable[Mapping[str, Any]]) -> list[StoredResult]:
    """Rows of `summary.json` as results without records."""
    keys = ("model", "attack", "measurement", "set")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        place = tuple(row[key] for key in keys)
        result = found.setdefault(place, dict(zip(keys, place, strict=True)) | {"config": {}, "metrics": []})
        result["metrics"].append(dict(row))
    return [typed(clean(result), StoredResult) for result in found.values()]
