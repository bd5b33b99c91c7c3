"""The learning rate that fits a model, measured: the one by which the first few updates move forget text a set share.

A rate means nothing by itself. AdamW moves every weight by about the rate, whatever the gradient; what that does to a state
depends on the widths, on the length of what comes in, and on whether a norm follows. The share of its own length by which forget
text has moved after a few updates means the same everywhere, and grows with the rate, often in proportion.

    prepared = with_rate(prepared)        # a few trial updates; nothing of them is kept
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from misdirect.progress import working
from misdirect.unlearning.train import Prepared, initial_state, train

TRIED = 9  # updates of a trial; a line of the log is measured before its own step
MOVED = (
    0.1  # share of its length by which forget text has moved after them: what the demo's settings, found by search, do
)
ROUNDS, CLOSE = 4, 1.3  # trials at most, and the factor within which the last one counts
FIRST = 0.01  # of the spread of the trained weights: the rate of the first trial
GRID = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)  # so that other bits of a machine give the same rate


def with_rate(prepared: Prepared) -> Prepared:
    """The same with a measured rate. Raises ValueError where no rate moves forget text."""
    weights = initial_state(prepared).weights.values()
    spread = math.sqrt(sum(w.float().square().sum().item() for w in weights) / sum(w.numel() for w in weights))
    rate = on_grid(max(FIRST * spread, 1e-8))
    with working("Measuring the learning rate"):
        for _ in range(ROUNDS):
            moved = trial(prepared, rate)
            if not moved or not math.isfinite(moved):
                raise ValueError(f"no learning rate was found: {rate:.1g} moves forget text by {moved}; expected --lr")
            wanted = on_grid(rate * min(100.0, max(0.01, MOVED / moved)))
            if wanted == rate or 1 / CLOSE < moved / MOVED < CLOSE:
                break
            rate = wanted
    said = f"learning rate {rate:g}: {TRIED - 1} updates at it move forget text by {100 * moved:.2g} % of its length"
    config = dataclasses.replace(prepared.config, lr=rate)
    return dataclasses.replace(
        prepared, config=config, chosen={**prepared.chosen, "lr": rate}, notes=[*prepared.notes, said]
    )


def trial(prepared: Prepared, rate: float) -> float:
    """The share by which forget text has moved, over the last lines of a few updates that are not kept."""
    config = dataclasses.replace(prepared.config, lr=rate, schedule="constant", warmup=0)
    moved: list[float] = []
    updates = (list(prepared.updates) * TRIED)[:TRIED]  # of a short run, several times
    tried = dataclasses.replace(prepared, config=config, updates=updates)
    train(tried, initial_state(tried), lambda state, line: moved.append(line["forget_moved"]))
    return mean(moved[-3:])


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def on_grid(rate: float) -> float:
    """The nearest of 1, 1.5, 2, 3, 5 and 7 times a power of ten.

    >>> on_grid(0.00213)
    0.002
    """
    power = math.floor(math.log10(rate))
    near = min(GRID, key=lambda x: abs(math.log(x * 10.0**power / rate)))
    return float(f"{near * 10.0**power:.2g}")
