"""An audit as plain data: `audit.json` and the results under `results/attacks`, attack by attack.

Every key may be missing: an audit that was stopped, one side only, results without an `audit.json`. Nothing is judged here;
`audited` puts it into words and tables, `audit_figures` draws it.

    audit = audit_of(read_json(run / runs.AUDIT), load_results(run))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from misdirect.config import kind_of
from misdirect.reporting.load.values import mapping, mappings, number
from misdirect.reporting.redact import public_name

STRONGEST = "strongest"  # the pseudo-attack whose headline row is the audit's headline
NONE = "none"  # the pseudo-attack in which both models are asked as they are
DONE, NOT_RUN, INCONCLUSIVE, FAILED = "done", "not run", "inconclusive", "failed"
POSITION = ("step", "block", "budget")
SHARE, SHARE_ALL = "recovered_share", "recovered_share_all"
CONTROL = "positive_control"
Record = Mapping[str, Any]
Spot = tuple[float | None, float | None, float | None]  # step, block, budget
NOWHERE: Spot = (None, None, None)


class Row(NamedTuple):
    """A number with its interval, and where on the attack's budget it belongs."""

    metric: str
    value: float
    low: float | None
    high: float | None
    n: int | None
    chance: float | None
    spot: Spot
    headline: bool
    floor: float | None = None


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
    seconds: Mapping[str, float]
    settings: Mapping[str, Any]
    results: Mapping[tuple[str, str, str], Record] = field(default_factory=dict)  # (model, measurement, set)

    def rows(self, model: str, measurement: str, name: str) -> list[Row]:
        return rows_of(self.results.get((model, measurement, name), {}))

    def sets(self, measurement: str) -> list[str]:
        return list(dict.fromkeys(name for _, measured, name in self.results if measured == measurement))

    def share(self, name: str, metric: str = SHARE) -> Row | None:
        """The attack's own cross-fitted recovered share of a set: the headline, or the last one that has no point."""
        found = [row for row in self.rows("unlearned", "recovered", name) if row.metric == metric]
        marked = [row for row in found if row.headline]
        whole = marked or [row for row in found if row.spot == NOWHERE]
        return whole[-1] if whole else None

    def accuracies(self, model: str, name: str) -> list[Row]:
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

    about: Record  # audit.json as it is
    attempts: Sequence[Attempt]
    none: Attempt | None  # the same questions without an attack
    strongest: Mapping[str, Record]  # set -> result of the pseudo-attack
    plain: Mapping[tuple[str, str], Record]  # (model, set) -> result of the evaluation, which may be of other questions
    forgotten: Sequence[str]
    retained: Sequence[str]

    def part(self, key: str, name: str) -> Record:
        """What audit.json says of one set under `split`, `removed`, ..."""
        return mapping(mapping(self.about.get(key)).get(name))

    def removed(self, name: str) -> bool:
        """False only where the audit says that nothing was, and that so nothing was attacked."""
        found = self.part("removed", name)
        return found.get("attacked", found.get("removed")) is not False

    def share(self, name: str) -> Row | None:
        """The headline: what comes back of a set under the strongest attack."""
        return headline([row for row in rows_of(self.strongest.get(name, {})) if row.metric == SHARE])

    def strongest_row(self, name: str, metric: str) -> Row | None:
        """Another number of the strongest attack."""
        return next((row for row in rows_of(self.strongest.get(name, {})) if row.metric == metric), None)

    def chosen(self, name: str) -> list[tuple[str, Spot]]:
        """For each half of the tested questions the attack by which it is reported, with the point of its budget."""
        found = mapping(self.strongest.get(name, {}).get("config"))
        stored = found.get("chosen") or self.part(STRONGEST, name).get("chosen")
        pairs = [pair for pair in stored if isinstance(pair, list) and pair] if isinstance(stored, list) else []
        return [(str(pair[0]), spot_of(mapping(pair[1]) if len(pair) > 1 else {})) for pair in pairs]

    def attempt(self, name: str) -> Attempt | None:
        return next((each for each in self.attempts if each.name == name), None)

    def untouched(self, model: str, name: str) -> float | None:
        """Accuracy without any attack: on the very questions of the attacks, or else of the evaluation."""
        found = headline(self.none.accuracies(model, name)) if self.none else None
        if found is None and (stored := number(self.part("removed", name), model)) is not None:
            return stored
        found = found or headline(judged(rows_of(self.plain.get((model, name), {}))))
        return found.value if found else None

    def floor(self, name: str) -> float | None:
        """What a reader of the choices alone scores, else chance."""
        for model in ("unlearned", "base"):
            for row in mappings(self.plain.get((model, name), {}).get("metrics")):
                if row.get("headline") is True:
                    floor = number(row, "floor")
                    return floor if floor is not None else number(row, "chance")
        return None


# ------------------------------------------------------------------------------------------------ reading


def audit_of(about: Any, results: Iterable[Record], topics: Sequence[str] = ()) -> Audit | None:
    """`about`: audit.json, or None. None where there is neither that nor a result of an attack."""
    about = mapping(about)
    results = list(results)
    by_attack: dict[str, dict[tuple[str, str, str], Record]] = {}
    for r in results:
        if isinstance(r.get("attack"), str):
            place = (str(r.get("model")), str(r.get("measurement")), str(r.get("set")))
            by_attack.setdefault(r["attack"], {})[place] = r
    if not about and not by_attack:
        return None
    strongest = {place[2]: r for place, r in by_attack.pop(STRONGEST, {}).items() if place[1] == "recovered"}
    rows = {str(row["name"]): row for row in mappings(about.get("attacks")) if row.get("name") is not None}
    names = [name for name in dict.fromkeys([*rows, *by_attack]) if name != STRONGEST]
    made = [attempt_of(name, rows.get(name, {}), by_attack.get(name, {})) for name in names]
    plain = {(str(r.get("model")), str(r.get("set"))): r for r in results
             if r.get("attack") is None and r.get("measurement") == "mcq"}  # fmt: skip
    named = dict.fromkeys(str(name) for key in ("split", "removed") for name in mapping(about.get(key)))
    recovered = [name for each in made for name in each.sets("recovered")]
    asked = dict.fromkeys(name for each in made for name in each.sets("mcq"))
    by_topic = [name for name in asked if kind_of(name, topics) == "forget"] if not named else []
    forgotten = list(dict.fromkeys([*named, *strongest, *recovered, *by_topic]))
    none = next((each for each in made if each.name == NONE), None)
    attempts = [each for each in made if each is not none]
    return Audit(about, attempts, none, strongest, plain, forgotten, [name for name in asked if name not in forgotten])


def attempt_of(name: str, row: Record, results: Mapping[tuple[str, str, str], Record]) -> Attempt:
    seconds = {m: x for m in ("base", "unlearned") if (x := number(mapping(row.get("seconds")), m)) is not None}
    made = Attempt(
        name,
        str(row.get("family") or name.split("-")[0]),
        str(row.get("title") or name),
        str(row.get("access") or ""),
        str(row.get("holds") or ""),
        str(row.get("status") or (DONE if results else NOT_RUN)),
        " ".join(public_name(word) for word in str(row.get("why") or "").split()),
        row.get("recovers") is not False,
        seconds,
        mapping(row.get("settings")),
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


def rows_of(result: Record) -> list[Row]:
    """The metrics of a result whose value is a number."""
    rows = []
    for metric in mappings(result.get("metrics")):
        value, n = number(metric, "value"), number(metric, "n")
        if value is not None and metric.get("subject") is None:
            ends = [number(metric, key) for key in ("low", "high", "chance")]
            count = None if n is None else int(n)
            rows.append(Row(str(metric.get("metric")), value, ends[0], ends[1], count, ends[2], spot_of(metric),
                            metric.get("headline") is True, number(metric, "floor")))  # fmt: skip
    return rows


def spot_of(row: Record) -> Spot:
    step, block, budget = (number(row, key) for key in POSITION)
    return step, block, budget


def headline(rows: Sequence[Row]) -> Row | None:
    """The row that says so, else the only one there is."""
    found = [row for row in rows if row.headline] or (list(rows) if len(rows) == 1 else [])
    return found[0] if found else None


def judged(rows: Sequence[Row]) -> list[Row]:
    """Of several accuracies the one with the headline."""
    found = [row for row in rows if row.metric.endswith("accuracy") and "shuffled" not in row.metric]
    metric = next((row.metric for row in found if row.headline), found[0].metric if found else "")
    return [row for row in found if row.metric == metric]


def at(rows: Sequence[Row], spot: Spot) -> Row | None:
    return next((row for row in rows if row.spot == spot), None)


def by_metric(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.metric, []).append(row)
    return found


def without_answers(result: Record) -> Record:
    """A result of an attack with nothing left of its records but the texts in them; the page needs no more.

    Of answers in words it also needs whether the base has still to read some (`unread`).
    """
    if result.get("attack") is None:
        return result
    records = mappings(result.get("records"))
    if result.get("measurement") == "generation":
        said = [turn for r in records for a in mappings(r.get("answers")) for turn in mappings(a.get("turns"))]
        return {**result, "records": [], "unread": any("base_nll" not in turn for turn in said)}
    return {**result, "records": [{"id": r.get("id"), "text": text} for r in records for text in texts_in(r)]}


def texts_in(record: Record) -> list[str]:
    found = [row.get("text") for row in (record, *mappings(record.get("points")))]
    return list(dict.fromkeys(text for text in found if isinstance(text, str)))


def results_of(rows: Iterable[Record]) -> list[dict[str, Any]]:
    """Rows of `summary.json` as results without records."""
    keys = ("model", "attack", "measurement", "set")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        place = tuple(row.get(key) for key in keys)
        found.setdefault(place, dict(zip(keys, place, strict=True)) | {"metrics": []})["metrics"].append(dict(row))
    return list(found.values())
