"""The table of unlearning methods. A method is `prepare`, and may bring its own `train`; everything else is shared.

    prepared = METHODS["npo"].prepare(lm, samples, config, topics)
    state = METHODS["npo"].train(prepared, initial_state(prepared), after_update)

A new one is a module with a `prepare` and a line here; a method of one pass brings a `train` of its own and has no loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from misdirect.config import Topic, UnlearnConfig
from misdirect.model.delta import Delta
from misdirect.model.lm import LM
from misdirect.unlearning import likelihood, rmu
from misdirect.unlearning.arithmetic import tokenized
from misdirect.unlearning.likelihood import LikelihoodConfig
from misdirect.unlearning.train import Prepared, State, initial_state, to_delta, train


class Method(NamedTuple):
    """`prepare`: (model, samples, settings, topics) -> what is trained, and on what losses.

    `settled`: (settings as given, settings with the recipe's) -> the run's settings; `stored`: those for `config.json`;
    `last_block`: how much of the model is loaded, None for all of it; `train`: (prepared, state, after_update) -> state.
    """

    prepare: Callable[..., Prepared]
    settled: Callable[[UnlearnConfig, UnlearnConfig], UnlearnConfig] = lambda given, resolved: resolved
    stored: Callable[[UnlearnConfig], dict[str, Any]] = dataclasses.asdict
    last_block: Callable[[UnlearnConfig], int | None] = lambda config: None
    train: Callable[..., State] = train


def by_likelihood(own: LikelihoodConfig) -> Method:
    return Method(partial(likelihood.prepare, own=own), likelihood.settled, stored=partial(likelihood.stored, own=own))


METHODS = {
    "rmu": Method(rmu.prepare, last_block=lambda config: config.block),
    "npo": by_likelihood(LikelihoodConfig("npo")),
    "gradient-difference": by_likelihood(LikelihoodConfig("gradient-difference")),
}


def unlearn(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    config: UnlearnConfig,
    topics: Sequence[Topic] = (),
    method: Method = METHODS["rmu"],
) -> tuple[Delta, list[dict[str, Any]]]:
    """One run in memory: (the changed matrices, a log line per update). The model is left as it was, bit for bit.

    `forget`: topic -> texts; `retain`: (name, texts, weight) each; `config` must be resolved.
    """
    prepared = method.prepare(lm, tokenized(lm, forget, retain, config), config, topics)
    log: list[dict[str, Any]] = []
    state = method.train(prepared, initial_state(prepared), lambda _, line: log.append(line))
    return to_delta(state, {}), log
