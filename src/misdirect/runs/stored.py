"""The JSON of a run directory, typed: decoded once where it is read, so that nobody further in has to distrust it."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")
Number = float | None  # null: a number that was not finite


class Point(NamedTuple):
    """Where on an attack's budget a number was measured."""

    step: Number
    block: Number
    budget: Number


NOWHERE = Point(None, None, None)


class Paired(msgspec.Struct, frozen=True, omit_defaults=True):
    """The change of a metric from the base to the unlearned model, on the same items."""

    difference: Number = None
    stderr: Number = None
    low: Number = None
    high: Number = None
    p_value: Number = None
    n: Number = None
    lost: int | None = None
    gained: int | None = None


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """A metric of a result, as `runs.Metric` is stored."""

    metric: str
    value: Number
    stderr: Number = None
    n: int | None = None
    low: Number = None
    high: Number = None
    chance: Number = None
    floor: Number = None
    step: Number = None
    block: Number = None
    budget: Number = None
    subject: str | None = None
    base_knows: bool | None = None
    headline: bool | None = None
    paired: Paired | None = None

    @property
    def point(self) -> Point:
        return Point(self.step, self.block, self.budget)


class StoredResult(msgspec.Struct, frozen=True):
    """A result file. Records stay as they are: each measurement has its own."""

    model: str
    attack: str | None
    measurement: str
    set: str
    config: dict[str, Any]
    metrics: list[Row]
    records: list[dict[str, Any]] = []


class Topic(msgspec.Struct, frozen=True):
    """What was asked of a topic."""

    name: str
    source: str | None = None


class Corpus(msgspec.Struct, frozen=True):
    """What was asked of a retain corpus."""

    name: str
    source: str | None = None
    weight: Number = None


class Chosen(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was measured and chosen for a topic or a corpus."""

    steering_coefficient: Number = None
    median_norm: Number = None
    retain_weight: Number = None
    num_samples: int | None = None
    tokens: int | None = None


class AllChosen(msgspec.Struct, frozen=True):
    """`chosen` of `config.json`."""

    block: int | None = None
    lr: Number = None  # where it was measured
    trained: list[str] = []
    topics: dict[str, Chosen] = {}
    retain: dict[str, Chosen] = {}


class Hashes(msgspec.Struct, frozen=True, omit_defaults=True):
    """`data` of `config.json`: the dtype and what tells weights and text apart."""

    model_sha256: str | None = None
    dtype: str | None = None
    forget_sha256: dict[str, str] = {}
    retain_sha256: dict[str, str] = {}


class RunConfig(msgspec.Struct, frozen=True):
    """`config.json` of a run. All of it may be missing from the folder of an evaluation."""

    misdirect: str = ""
    method: str | None = None
    model: str | None = None
    settings: dict[str, Any] = {}
    topics: list[Topic] = []
    retain: list[Corpus] = []
    data: Hashes = Hashes()
    chosen: AllChosen = AllChosen()
    command: str | None = None

    @property
    def of_the_demo(self) -> bool:
        """Whether it names the demo's model and built-in topics alone; there, text may be shown."""
        return self.model == "demo" and all(str(topic.source).startswith("demo-") for topic in self.topics)


class Environment(msgspec.Struct, frozen=True):
    """`env.json`, as far as anything depends on it."""

    model: str | None = None
    base: str | None = None
    command: str | None = None
    versions: dict[str, str] = {}


class LogLine(msgspec.Struct, frozen=True):
    """A line of `log.jsonl`: one update."""

    step: int
    topic: str = ""
    forget_loss: Number = None
    retain_loss: Number = None
    cosine: Number = None
    forget_norm: Number = None
    forget_moved: Number = None
    retain_moved: Number = None
    gradient_norm: Number = None
    lr: Number = None
    seconds: Number = None


class AuditedModel(msgspec.Struct, frozen=True):
    """One of the two models of an audit."""

    source: str | None = None
    delta: str | None = None


class Split(msgspec.Struct, frozen=True):
    """How the questions of a set were dealt."""

    tested: int | None = None
    known: int | None = None


class Removed(msgspec.Struct, frozen=True):
    """What unlearning took from a set, as a share of all tested questions."""

    value: Number = None
    low: Number = None
    high: Number = None
    base: Number = None
    unlearned: Number = None
    removed: bool | None = None
    attacked: bool | None = None


class AttackEntry(msgspec.Struct, frozen=True):
    """An attack's line of `audit.json`."""

    name: str
    family: str | None = None
    title: str | None = None
    access: str = ""
    holds: str = ""
    status: str | None = None
    why: str = ""
    recovers: bool = True
    seconds: dict[str, Number] = {}
    settings: dict[str, Any] = {}


class AuditRecord(msgspec.Struct, frozen=True):
    """`audit.json`."""

    base: AuditedModel = AuditedModel()
    unlearned: AuditedModel = AuditedModel()
    attacks: list[AttackEntry] = []
    forms: dict[str, str] = {}
    split: dict[str, Split] = {}
    removed: dict[str, Removed] = {}
    settings: dict[str, Any] = {}
    seconds: Number = None


def typed(data: Any, kind: type[T]) -> T:
    """`data` as `text.clean` leaves it. Raises ValueError with what is wrong and where: "Expected `float`, got `str` - at
    `$.metrics[3].value`"."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def untyped(data: Any) -> Any:
    """What `data` was made of, less what was missing there."""
    return msgspec.to_builtins(data)
