"""What a run's own log says of its success, in shares that mean the same on every model.

Losses are in squared units of the states, whose lengths differ a thousandfold between models. By what share of its length forget
text has moved, and retain text, needs no unit. Methods that do not steer states have no such share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

LEAST = 0.4  # share of its length: where forget text ends nearer to where it was, little is forgotten
LAST = 0.1  # of a topic's updates, over which its end is taken


def progress(line: Mapping[str, Any]) -> str:
    """`forget moved 130 %  retain moved 7 %`; the losses where no states are steered."""
    if "forget_moved" not in line:
        return f"forget {line['forget_loss']:.4g}  retain {line['retain_loss']:.3g}"
    return f"forget moved {100 * line['forget_moved']:.0f} %  retain moved {100 * line['retain_moved']:.2g} %"


def ends(log: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Topic -> a share over its last updates; nothing for other methods."""
    found: dict[str, list[float]] = {}
    for line in log:
        if line.get(key) is not None:
            found.setdefault(line["topic"], []).append(line[key])
    last = {topic: values[-max(1, round(LAST * len(values))) :] for topic, values in found.items()}
    return {topic: sum(values) / len(values) for topic, values in last.items()}


def verdicts(log: Sequence[Mapping[str, Any]], rate: float) -> list[str]:
    """A line a topic on how far its text has moved in the end; with what to type where that is too little."""
    kept = ends(log, "retain_moved")
    lines = []
    for topic, moved in ends(log, "forget_moved").items():
        text = f"{topic}: forget text ends {100 * moved:.0f} % of its length from where it was, retain text"
        line = f"{text} {100 * kept[topic]:.2g} %"
        if moved < LEAST:
            more = rate * min(100.0, 1 / max(moved, 0.01))
            line += f". Little will be forgotten: type the same with another --out and --lr {more:.1g}"
        lines.append(line)
    return lines
