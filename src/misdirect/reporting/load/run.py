"""A run directory, typed, for the page: settings, log, and each metric of base and unlearned model side by side.

A run without results and a folder with nothing but the base's results are both read. Names, prompts and answers are other
people's text: what cannot stand in XML or turns the writing direction is left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from misdirect import runs, storage
from misdirect.config import Kind, Method, kind_of
from misdirect.reporting.redact import public_config, public_name
from misdirect.runs.collateral import Change, collateral
from misdirect.runs.seeds import over_seeds
from misdirect.runs.stored import (
    AuditRecord,
    Environment,
    LogLine,
    Paired,
    Point,
    Row,
    RunConfig,
    StoredResult,
    typed,
    untyped,
)
from misdirect.text import clean

if TYPE_CHECKING:
    from misdirect.reporting.load.audit import Audit

KINDS: tuple[Kind, ...] = ("forget", "retain", "other")
QUESTIONS = ("mcq", "harness")
JUDGED = (*QUESTIONS, "nll")  # prompts are neither to be forgotten nor to be kept
BY_SUBJECT, OVER_SEEDS = "_by_subject", "_over_seeds"
Key = tuple[str, str, str]  # measurement, set, metric
T = TypeVar("T")


class Spread(NamedTuple):
    """A headline number over several seeds."""

    n: int
    low: float  # the smallest
    high: float  # the largest
    mean: float


@dataclass(frozen=True)
class Pair:
    """One metric of one set, base and unlearned side by side; either may be missing."""

    measurement: str
    set: str
    kind: Kind
    metric: str
    base: Row | None
    unlearned: Row | None
    subject: str | None = None
    seeds: Spread | None = None

    def both(self, key: str) -> Any:
        """The unlearned row's entry, else the base's: for what belongs to the set and not to the model."""
        values = [getattr(row, key) for row in (self.unlearned, self.base) if row is not None]
        return next((value for value in values if value is not None), None)

    @property
    def before(self) -> float | None:
        return None if self.base is None else self.base.value

    @property
    def after(self) -> float | None:
        return None if self.unlearned is None else self.unlearned.value

    @property
    def headline(self) -> bool:
        return self.both("headline") is True

    @property
    def base_knows(self) -> bool:
        return self.both("base_knows") is not False

    @property
    def paired(self) -> Paired:
        """Without any number where nothing was paired."""
        return (self.unlearned.paired if self.unlearned else None) or NOT_PAIRED


NOT_PAIRED = Paired()


@dataclass(frozen=True)
class Run:
    """All that the page is made of."""

    config: RunConfig  # empty in the folder of an evaluation
    env: Environment
    environment: Mapping[str, Any]  # the same with all that it holds
    log: Sequence[LogLine]
    results: Sequence[StoredResult]
    pairs: Sequence[Pair]
    changes: Sequence[Change]  # the collateral map
    audit: Audit | None = None

    @property
    def unlearning(self) -> bool:
        """Whether this is a run; else it is the folder of one model's evaluation, or of an audit."""
        return bool(self.config.misdirect)

    @property
    def topics(self) -> list[str]:
        return topic_names(self.config)

    @property
    def method(self) -> str:
        """rmu, or the rival that the run was unlearned by."""
        method = self.config.method
        return method if method and method in get_args(Method) else "rmu"

    @property
    def is_demo(self) -> bool:
        """The demo's model and built-in topics: there, prompts and answers may be shown."""
        return self.unlearning and self.config.of_the_demo

    @property
    def asked_updates(self) -> int | None:
        updates = self.config.settings.get("updates")
        return updates if isinstance(updates, int) else None

    @property
    def updates(self) -> int | None:
        """Updates made, by the log; what was asked where there is no log."""
        return max(line.step for line in self.log) if self.log else self.asked_updates

    @property
    def seconds(self) -> float:
        """That the updates took."""
        return sum((line.seconds or 0.0 for line in self.log), 0.0)

    @property
    def model(self) -> str:
        audited = self.audit.about.base.source if self.audit else None
        return self.config.model or self.env.model or audited or ""

    @property
    def model_name(self) -> str:
        """What the page calls the model: never a folder of somebody's machine."""
        return "SmolLM2-135M-Instruct" if self.model == "demo" else public_name(self.model)

    def headlines(self, *measurements: str, kind: Kind | None = None) -> list[Pair]:
        """The rows by which sets are judged, one a set."""
        found = [p for p in self.pairs if p.measurement in measurements and p.headline and p.subject is None]
        return [p for p in found if kind is None or p.kind == kind]


def read_run(run: Path) -> Run:
    """Raises ValueError where `run` is not a folder of misdirect, or a file in it is not what misdirect writes."""
    from misdirect.reporting.load.audit import NONE, audit_of, without_answers  # it reads with the functions below

    if not runs.is_run(run) and not (run / "results").is_dir() and not (run / runs.AUDIT).is_file():
        raise ValueError(
            f"{run} is not a run (neither {runs.CONFIG} nor results/); "
            "expected a folder that `misdirect unlearn`, `misdirect evaluate` or `misdirect audit` wrote"
        )
    config = read(run / runs.CONFIG, RunConfig, public_config) if runs.is_run(run) else RunConfig()
    has_env = (run / runs.ENV).is_file()
    env = read(run / runs.ENV, Environment, public_config) if has_env else Environment()
    environment = public_config(clean(storage.read_json(run / runs.ENV))) if has_env else {}
    usable = runs.load_results(run)
    stored = [typed(clean(without_answers(result)), StoredResult) for result in usable]
    results = [r for r in stored if r.attack is None and r.model in ("base", "unlearned")]
    about = read(run / runs.AUDIT, AuditRecord) if (run / runs.AUDIT).is_file() else None
    if about and any((runs.attack_folder(run, NONE)).rglob("*.json")) and not any(r["attack"] == NONE for r in usable):
        about = typed(untyped(about) | {"removed": {}}, AuditRecord)  # it came from numbers that are none
    audit = audit_of(about, stored, topic_names(config))
    topics = topic_names(config) or (list(audit.forgotten) if audit else [])
    pairs = pairs_of(results, topics, spreads(run))
    changes = collateral(whole_rows(results), topics)
    return Run(config, env, environment, read_log(run), results, pairs, changes, audit)


def read(path: Path, kind: type[T], public: Callable[[Any], Any] = lambda data: data) -> T:
    data = clean(storage.read_json(path))
    try:
        return typed(public(data) if isinstance(data, dict) else data, kind)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); expected the file as it was") from None


def spreads(run: Path) -> dict[Key, Spread]:
    return {
        (r["measurement"], r["set"], r["metric"].removesuffix(OVER_SEEDS)): Spread(
            r["n"], r["smallest"], r["largest"], r["value"]
        )
        for r in clean(over_seeds(run))
    }


def whole_rows(results: Sequence[StoredResult]) -> list[dict[str, Any]]:
    """Rows of `summary.json`."""
    about = [{"model": r.model, "measurement": r.measurement, "set": r.set, "attack": None} for r in results]
    return [said | untyped(row) for said, result in zip(about, results, strict=True) for row in result.metrics]


def read_log(run: Path) -> list[LogLine]:
    """A line per update in order; where a resumed run made an update again, the later line."""
    lines = [typed(clean(line), LogLine) for line in runs.read_log(run)]
    by_step = {line.step: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def topic_names(config: RunConfig) -> list[str]:
    return [topic.name for topic in config.topics] or list(config.chosen.topics)


def pairs_of(results: Sequence[StoredResult], topics: Sequence[str], spread: Mapping[Key, Spread]) -> list[Pair]:
    """Forget sets first, then by name; metrics in the order in which they were measured."""
    found: dict[tuple[Key, str | None, Point], dict[str, Row]] = {}
    for result in results:
        for row in result.metrics:
            key = (result.measurement, result.set, row.metric)
            found.setdefault((key, row.subject, row.point), {})[result.model] = row
    pairs = [
        Pair(
            key[0],
            key[1],
            kind_of(key[1], topics if key[0] in JUDGED else ()),
            key[2],
            rows.get("base"),
            rows.get("unlearned"),
            subject,
            spread.get(key) if subject is None else None,
        )
        for (key, subject, _), rows in found.items()
    ]
    return sorted(pairs, key=lambda p: (KINDS.index(p.kind), p.set))
