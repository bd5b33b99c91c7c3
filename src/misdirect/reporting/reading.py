"""A run directory as plain data for the page: settings, log, and each metric of base and unlearned model side by side.

Every key may be missing: a run without results and a folder with nothing but the base's results are both read. Names,
prompts and answers are other people's text: what cannot stand in XML or turns the writing direction is left out here.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from misdirect import runs

Kind = Literal["forget", "retain", "other"]  # other: the folder names no topic, so nothing is to be forgotten
KINDS: tuple[Kind, ...] = ("forget", "retain", "other")
BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
JUDGED = ("mcq", "nll")  # prompts are neither to be forgotten nor to be kept
POSITION = ("step", "block", "budget")  # with the metric's name, what tells two rows of one result apart


@dataclass(frozen=True)
class Pair:
    """One metric of one set, base and unlearned side by side; either may be missing."""

    measurement: str
    set: str
    kind: Kind
    metric: str
    base: Mapping[str, Any] | None
    unlearned: Mapping[str, Any] | None

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

    @property
    def topics(self) -> list[str]:
        return topic_names(self.config)

    @property
    def is_demo(self) -> bool:
        return self.config.get("model") == "demo"

    @property
    def updates(self) -> int | None:
        """Updates made, by the log; what was asked where there is no log."""
        made = [step for line in self.log if (step := number(line, "step")) is not None]
        asked = number(mapping(self.config.get("settings")), "updates")
        value = max(made) if made else asked
        return None if value is None else int(value)

    def headlines(self, measurement: str, kind: Kind | None = None) -> list[Pair]:
        """The rows by which sets are judged, one a set."""
        found = [p for p in self.pairs if p.measurement == measurement and p.headline]
        return [p for p in found if kind is None or p.kind == kind]


def read_run(run: Path) -> Run:
    """Raises ValueError where `run` is not a folder of misdirect or a file in it is not JSON."""
    if not runs.is_run(run) and not (run / "results").is_dir():
        raise ValueError(
            f"{run} is no run (neither {runs.CONFIG} nor results/); "
            "expected a folder that `misdirect unlearn` or `misdirect evaluate` wrote"
        )
    config = mapping(clean(runs.read_json(run / runs.CONFIG))) if runs.is_run(run) else {}
    env = mapping(clean(runs.read_json(run / runs.ENV))) if (run / runs.ENV).is_file() else {}
    results = [mapping(clean(result)) for result in runs.load_results(run)]
    results = [r for r in results if r.get("attack") is None and r.get("model") in ("base", "unlearned")]
    return Run(config, env, read_log(run), results, pairs_of(results, topic_names(config)))


def read_log(run: Path) -> list[dict[str, Any]]:
    """A line per update in order; where a resumed run made an update again, the later line."""
    lines = [line for line in runs.read_log(run) if isinstance(line, dict)]
    by_step = {step: clean(line) for line in lines if (step := number(line, "step")) is not None}
    return [by_step[step] for step in sorted(by_step)]


def topic_names(config: Mapping[str, Any]) -> list[str]:
    names = [str(t["name"]) for t in mappings(config.get("topics")) if t.get("name")]
    return names or list(mapping(mapping(config.get("chosen")).get("topics")))


def kind_of(name: str, topics: Sequence[str]) -> Kind:
    """A set is a forget set when it is named like a topic: `biology`, `biology-hard`, `biology.test`."""
    if not topics:
        return "other"
    return "forget" if any(name == t or name.startswith((t + "-", t + ".")) for t in topics) else "retain"


def pairs_of(results: Sequence[Mapping[str, Any]], topics: Sequence[str]) -> list[Pair]:
    """Forget sets first, then by name; metrics in the order in which they were measured."""
    found: dict[tuple[Any, ...], dict[str, Mapping[str, Any]]] = {}
    for result in results:
        for row in mappings(result.get("metrics")):
            key = (str(result.get("measurement")), str(result.get("set")), str(row.get("metric")))
            found.setdefault((*key, *(row.get(p) for p in POSITION)), {})[result["model"]] = row
    pairs = [
        Pair(
            key[0],
            key[1],
            kind_of(key[1], topics if key[0] in JUDGED else ()),
            key[2],
            rows.get("base"),
            rows.get("unlearned"),
        )
        for key, rows in found.items()
    ]
    return sorted(pairs, key=lambda p: (KINDS.index(p.kind), p.set))


def clean(data: Any) -> Any:
    """JSON data with every string, keys too, freed of control characters, lone surrogates and direction overrides."""
    if isinstance(data, str):
        return "".join(c for c in data.replace("\r\n", "\n") if c in "\n\t" or printable(c))
    if isinstance(data, Mapping):
        return {clean(key): clean(value) for key, value in data.items()}
    if isinstance(data, list):
        return [clean(value) for value in data]
    return data


def printable(char: str) -> bool:
    noncharacter = ord(char) & 0xFFFE == 0xFFFE
    return unicodedata.category(char) not in ("Cc", "Cs") and char not in BIDI and not noncharacter


def mapping(data: Any) -> Mapping[str, Any]:
    return data if isinstance(data, Mapping) else {}


def mappings(data: Any) -> list[Mapping[str, Any]]:
    return [row for row in data if isinstance(row, Mapping)] if isinstance(data, list) else []


def number(row: Mapping[str, Any] | None, key: str) -> float | None:
    """A finite number, or None."""
    value = mapping(row).get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None
