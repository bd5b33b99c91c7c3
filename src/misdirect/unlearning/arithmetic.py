"""`--numerics` as one table: each choice in which the published code differs from the clean form is a function here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from misdirect.config import UnlearnConfig
from misdirect.data.batches import Batch
from misdirect.model.lm import LM
from misdirect.unlearning import optimizer, published, schedule, steering
from misdirect.unlearning.loss import squared_distance
from misdirect.unlearning.schedule import Ids, Samples, Update


class Arithmetic(NamedTuple):
    """`targets`: (coefficients, width, seed, dtype, device) -> (u, c*u) a topic; `distance`: (states, target, loss mask)."""

    as_samples: Callable[[LM, Sequence[str], UnlearnConfig, int], Ids]
    num_updates: Callable[[Samples, UnlearnConfig], int]
    updates: Callable[[Samples, UnlearnConfig], list[Update]]
    pad: Callable[[LM, Sequence[Sequence[int]]], Batch]
    targets: Callable[..., list[tuple[Tensor, Tensor]]]
    mean_norm: Callable[[LM, int, Ids, int], float]
    distance: Callable[..., Tensor]
    adamw_step: Callable[..., None]
    masters: Callable[[Tensor], Tensor]  # a model's matrix -> what is trained
    train_mode: bool  # dropout on, where a model has it


CLEAN = Arithmetic(
    as_samples=schedule.as_samples,
    num_updates=schedule.num_updates,
    updates=schedule.updates,
    pad=schedule.pad,
    targets=steering.targets,
    mean_norm=steering.mean_norm_of,
    distance=squared_distance,
    adamw_step=optimizer.adamw_step,
    masters=lambda value: value.float(),
    train_mode=False,
)
PUBLISHED = Arithmetic(
    as_samples=published.as_samples,
    num_updates=published.num_updates,
    updates=published.updates,
    pad=published.pad,
    targets=published.targets,
    mean_norm=published.mean_norm,
    distance=published.distance,
    adamw_step=published.adamw_step,
    masters=lambda value: value,
    train_mode=True,
)


def arithmetic_of(config: UnlearnConfig) -> Arithmetic:
    return PUBLISHED if config.numerics == "published" else CLEAN


def tokenized(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    config: UnlearnConfig,
) -> Samples:
    """`forget`: topic -> texts; `retain`: (name, texts, weight) each. Raises ValueError for text that a model cannot take."""
    if not forget or not retain:
        raise ValueError(f"{'no forget' if not forget else 'no retain'} text was given; expected at least one of each")
    as_samples = arithmetic_of(config).as_samples
    samples = Samples(
        {name: as_samples(lm, texts, config, index) for index, (name, texts) in enumerate(forget.items())},
        {name: as_samples(lm, texts, config, 0) for name, texts, _ in retain},
        [weight for _, _, weight in retain],
    )
    schedule.check_samples(lm, samples)
    return samples
