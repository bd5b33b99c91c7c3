"""Numbers and names as the page writes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

NONE = "\u2013"
SPACE = "\u00a0"  # before a unit, so that it stays with its number
LABELS: Mapping[str, str] = {
    "cloze_accuracy": "cloze accuracy",
    "cloze_per_char_accuracy": "cloze accuracy per character",
    "cloze_per_token_accuracy": "cloze accuracy per token",
    "letter_accuracy": "letter accuracy",
    "letter_permuted_accuracy": "letter accuracy, choices moved",
    "probe_resplit_accuracy": "mean over other splits in halves, smallest to largest",
    "acc": "accuracy",
    "acc_norm": "accuracy per character",
    "acc_bytes": "accuracy per byte",
    "nll_per_token": "NLL per token",
    "repetition": "repetition",
}
# ending of a metric's name -> how it is said
ENDINGS: Mapping[str, str] = {
    "_centred": "centred on chance",
    "_by_subject": "by subject",
    "_macro": "mean over subjects",
    "_over_seeds": "over seeds",
    "_sampled": "sampled answers",
}
# endings of names whose values are fractions of 1
SHARES = ("accuracy", "_share", "judge_unscored", "acc", "acc_norm", "acc_bytes", "exact_match")
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Number(NamedTuple):
    """A number in words, and both ends of its 95 % interval; `low` is without the unit."""

    text: str = NONE
    low: str = ""
    high: str = ""
    unit: str = ""

    @property
    def interval(self) -> str:
        """`55.1 to 69.4 %`; empty where there is none."""
        return f"{self.low} to {self.high}{self.unit}" if self.high else ""

    @property
    def bare(self) -> str:
        return self.text.removesuffix(self.unit)


@runtime_checkable
class Interval(Protocol):
    """Whatever has both ends of a 95 % interval, or none."""

    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def signed(value: float, digits: int) -> str:
    """With a sign, a true minus where it is one, and 0 without any."""
    text = f"{value:+.{digits}f}"
    return text[1:] if not float(text) else text.replace("-", "\u2212")


def plain_metric(metric: str) -> tuple[str, str]:
    """A metric's name without its ending, and that ending or ''."""
    ending = next((e for e in ENDINGS if metric.endswith(e)), "")
    return metric.removesuffix(ending), ending


def metric_label(metric: str) -> str:
    name, ending = plain_metric(metric)
    return f"{metric_label(name)}, {ENDINGS[ending]}" if ending else LABELS.get(metric, metric.replace("_", " "))


def is_share(metric: str) -> bool:
    """Whether the metric is written in per cent."""
    name, ending = plain_metric(metric)
    return ending != "_centred" and name.endswith(SHARES)


def value(metric: str, x: float | None) -> str:
    """`62.5 %` for an accuracy, three decimals for anything else."""
    if x is None:
        return NONE
    return f"{100 * x:.1f}{SPACE}%" if is_share(metric) else f"{x:.3f}".replace("-", "\u2212")


def number(metric: str, x: float | None, row: Interval | None = None) -> Number:
    """A value with its interval: `62.5 %`, `55.1 to 69.4 %`."""
    unit = SPACE + "%" if is_share(metric) else ""
    return Number(value(metric, x), *ends(row, lambda end: value(metric, end).removesuffix(unit)), unit)


def ends(row: Interval | None, say: Callable[[float], str]) -> tuple[str, str]:
    """Both ends of an interval in words, empty where there is none."""
    return ("", "") if row is None or row.low is None or row.high is None else (say(row.low), say(row.high))


def change(metric: str, x: float | None) -> str:
    """With its sign; an accuracy's in percentage points."""
    if x is None:
        return NONE
    return f"{signed(100 * x, 1)}{SPACE}pp" if is_share(metric) else signed(x, 3)


def changed(metric: str, x: float | None, row: Interval | None = None) -> Number:
    """A change with its interval: `-1.2 pp`, `-3.0 to +0.6 pp`."""
    unit = SPACE + "pp" if is_share(metric) else ""
    return Number(change(metric, x), *ends(row, lambda end: change(metric, end).removesuffix(unit)), unit)


def factor(nats: float) -> str:
    """exp of a change of NLL, by what perplexity is multiplied: `1.013`, `12.3`, `2,650`, `10⁴³`."""
    power = nats / math.log(10)
    if power >= 6:
        return "10" + f"{power:.0f}".translate(SUPERSCRIPTS)
    times = math.exp(nats)
    if power < 1:
        return f"{times:.3f}" if times >= 0.001 else "0.000"
    return f"{float(f'{times:.3g}'):,.{1 if power < 2 else 0}f}"


def p_value(p: float | None) -> str:
    if p is None:
        return NONE
    return f"{p:.3f}" if p >= 0.001 else "<" + SPACE + "0.001"


def setting(data: Any) -> str:
    """A value of a table of settings."""
    if data is None:
        return NONE
    if isinstance(data, float):
        return f"{data:.6g}" if math.isfinite(data) else str(data)
    if isinstance(data, list):
        return ", ".join(setting(item) for item in data)
    return str(data)


def count(data: Any) -> str:
    """`1,108`."""
    return f"{data:,}" if isinstance(data, int) and not isinstance(data, bool) else setting(data)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds" if seconds >= 10 else f"{seconds:.1f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"


def listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def counted(n: int, noun: str, plural: str | None = None) -> str:
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def flat(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, value) rows."""
    if isinstance(data, Mapping):
        return [row for key, item in data.items() for row in flat(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return [row for index, item in enumerate(data) for row in flat(item, f"{prefix}[{index}]")]
    return [(prefix, setting(data))]


def plain_number(x: float) -> str:
    """At most two decimals, none where there is nothing behind the point."""
    return f"{x:.2f}".rstrip("0").rstrip(".").replace("-", "\u2212")


# How a run was unlearned: what stands for its name, and what was done to text on the topic and to other text.
RMU = "RMU (Representation Misdirection for Unlearning, [arXiv 2403.03218](https://arxiv.org/abs/2403.03218))"
RIVALS = {
    "npo": "NPO (Negative Preference Optimization, [arXiv 2404.05868](https://arxiv.org/abs/2404.05868))",
    "gradient-difference": "gradient difference ([arXiv 2203.12817](https://arxiv.org/abs/2203.12817))",
}


def method_name(method: str) -> str:
    """In Markdown, with its source."""
    return RIVALS.get(method, RMU)


def method_did(method: str, topics: str, block: str) -> str:
    if method in RIVALS:
        return f"text about {topics} was made unlikely, the predictions on other text were held in place"
    return (
        f"text about {topics} was steered to a fixed random direction after block {block}, other text was held in place"
    )
