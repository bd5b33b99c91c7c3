"""A run directory as plain data for the page: settings, log, and each metric of base and unlearned model side by side.

Every key may be missing: a run without results and a folder with nothing but the base's results are both read. Names,
prompts and answers are other people's text: what cannot stand in XML or turns the writing direction is left out here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from misdirect import runs, storage
from misdirect.config import Kind, Method, kind_of
from misdirect.reporting.load.values import mapping, mappings, number
from misdirect.reporting.redact import public_config, public_name
from misdirect.runs.collateral import Change, collateral
from misdirect.runs.seeds import over_seeds
from misdirect.text import clean

if TYPE_CHECKING:
    from misdirect.reporting.load.audit import Audit

KINDS: tuple[Kind, ...] = ("forget", "retain", "other")
QUESTIONS = ("mcq", "harness")
JUDGED = (*QUESTIONS, "nll")  # prompts are neither to be forgotten nor to be kept
POSITION = ("step", "block", "budget")  # with the metric's name and subject, what tells two rows of one result apart
BY_SUBJECT, OVER_SEEDS = "_by_subject", "_over_seeds"
Place = tuple[str, str, str]  # measurement, set, metric


@dataclass(frozen=True)
class Pair:
    """One metric of one set, base and unlearned side by side; either may be missing."""

    measurement: str
    set: str
    kind: Kind
    metric: str
    base: Mapping[str, Any] | None
    unlearned: Mapping[str, Any] | None
    subject: str | None = None
    seeds: Mapping[str, Any] | None = None  # the spread over several seeds of the run

    def both(self, key: str) -> Any:
        """The unlearned row's entry, else the base's: for what belongs to the set and not to the model."""
        for row in (self.unlearned, self.base):
            if row is not None and row.get(key) is not None:
                return row[key]
        return None

    @property
    def headline(self) -> bool:
        return self.both("headline") is True

    @property
    def base_knows(self) -> bool:
        return self.both("base_knows") is not False

    @property
    def paired(self) -> Mapping[str, Any]:
        return mapping(mapping(self.unlearned).get("paired"))


@dataclass(frozen=True)
class Run:
    """All that the page is made of."""

    config: Mapping[str, Any]
    env: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    results: Sequence[Mapping[str, Any]]
    pairs: Sequence[Pair]
    changes: Sequence[Change]  # the collateral map
    audit: Audit | None = None

    @property
    def topics(self) -> list[str]:
        return topic_names(self.config)

    @property
    def method(self) -> str:
        """rmu, or the rival that the run was unlearned by."""
        method = self.config.get("method")
        return str(method) if method in get_args(Method) else "rmu"

    @property
    def is_demo(self) -> bool:
        """The demo's model and built-in topics: there, prompts and answers may be shown."""
        return runs.of_the_demo(self.config)

    @property
    def updates(self) -> int | None:
        """Updates made, by the log; what was asked where there is no log."""
        made = [step for line in self.log if (step := number(line, "step")) is not None]
        asked = number(mapping(self.config.get("settings")), "updates")
        value = max(made) if made else asked
        return None if value is None else int(value)

    @property
    def model(self) -> str:
        audited = mapping(self.audit.about.get("base")).get("source") if self.audit else None
        return str(self.config.get("model") or self.env.get("model") or audited or "")

    @property
    def model_name(self) -> str:
        """What the page calls the model: never a folder of somebody's machine."""
        return "SmolLM2-135M-Instruct" if self.model == "demo" else public_name(self.model)

    def headlines(self, *measurements: str, kind: Kind | None = None) -> list[Pair]:
        """The rows by which sets are judged, one a set."""
        found = [p for p in self.pairs if p.measurement in measurements and p.headline and p.subject is None]
        return [p for p in found if kind is None or p.kind == kind]


def read_run(run: Path) -> Run:
    """Raises ValueError where `run` is not a folder of misdirect or a file in it is not JSON."""
    from misdirect.reporting.load.audit import NONE, audit_of, without_answers  # it reads with the functions below

    if not runs.is_run(run) and not (run / "results").is_dir() and not (run / runs.AUDIT).is_file():
        raise ValueError(
            f"{run} is no run (neither {runs.CONFIG} nor results/); "
            "expected a folder that `misdirect unlearn`, `misdirect evaluate` or `misdirect audit` wrote"
        )
    config = public_config(mapping(clean(storage.read_json(run / runs.CONFIG)))) if runs.is_run(run) else {}
    env = public_config(mapping(clean(storage.read_json(run / runs.ENV)))) if (run / runs.ENV).is_file() else {}
    usable = runs.load_results(run)
    stored = [mapping(clean(without_answers(result))) for result in usable]
    results = [r for r in stored if r.get("attack") is None and r.get("model") in ("base", "unlearned")]
    about = clean(storage.read_json(run / runs.AUDIT)) if (run / runs.AUDIT).is_file() else None
    if about and any((runs.attack_folder(run, NONE)).rglob("*.json")) and not any(r["attack"] == NONE for r in usable):
        about = {key: value for key, value in about.items() if key != "removed"}  # it came from numbers that are none
    audit = audit_of(about, stored, topic_names(config))
    topics = topic_names(config) or (list(audit.forgotten) if audit else [])
    spread = {(r["measurement"], r["set"], r["metric"].removesuffix(OVER_SEEDS)): r for r in clean(over_seeds(run))}
    pairs = pairs_of(results, topics, spread)
    return Run(config, env, read_log(run), results, pairs, collateral(whole_rows(results), topics), audit)


def whole_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of `summary.json`, a paired change that is not all numbers taken off."""
    rows = []
    for result in results:
        about = {key: str(result.get(key)) for key in ("model", "measurement", "set")} | {"attack": None}
        for metric in mappings(result.get("metrics")):
            row = about | dict(metric) | {"metric": str(metric.get("metric")), "n": int(number(metric, "n") or 0)}
            row["subject"] = None if metric.get("subject") is None else str(metric["subject"])
            change = {
                key: x for key in mapping(metric.get("paired")) if (x := number(metric["paired"], key)) is not None
            }
            rows.append(row | {"value": number(metric, "value"), "paired": change})
    return rows


def read_log(run: Path) -> list[dict[str, Any]]:
    """A line per update in order; where a resumed run made an update again, the later line."""
    lines = [line for line in runs.read_log(run) if isinstance(line, dict)]
    by_step = {step: clean(line) for line in lines if (step := number(line, "step")) is not None}
    return [by_step[step] for step in sorted(by_step)]


def topic_names(config: Mapping[str, Any]) -> list[str]:
    names = [str(t["name"]) for t in mappings(config.get("topics")) if t.get("name")]
    return names or list(mapping(mapping(config.get("chosen")).get("topics")))


def pairs_of(
    results: Sequence[Mapping[str, Any]], topics: Sequence[str], spread: Mapping[Place, Mapping[str, Any]]
) -> list[Pair]:
    """Forget sets first, then by name; metrics in the order in which they were measured."""
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        for row in mappings(result.get("metrics")):
            place = (str(result.get("measurement")), str(result.get("set")), str(row.get("metric")))
            subject = None if row.get("subject") is None else str(row["subject"])
            found.setdefault((place, subject, *(str(row.get(p)) for p in POSITION)), {})[result["model"]] = row
    pairs = [
        Pair(
            place[0],
            place[1],
            kind_of(place[1], topics if place[0] in JUDGED else ()),
            place[2],
            rows.get("base"),
            rows.get("unlearned"),
            subject,
            spread.get(place) if subject is None else None,
        )
        for (place, subject, *_), rows in found.items()
    ]
    return sorted(pairs, key=lambda p: (KINDS.index(p.kind), p.set))
