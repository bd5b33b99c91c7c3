"""A rival's run in a run directory of the usual shape, so that evaluate, audit and report work on it unchanged.

There are no checkpoints and no control vectors: a run that is killed begins again, and `delta.safetensors`, written last,
exists only when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from misdirect.config import Corpus, Topic, UnlearnConfig
from misdirect.model.delta import Delta
from misdirect.model.load import LM
from misdirect.unlearning.rival import RivalConfig


def execute(
    lm: LM,
    run: Path,
    topics: Sequence[Topic],
    forget: Mapping[str, Sequence[str]],
    corpora: Sequence[Corpus],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig,
    command: str = "",
    advance: Callable[[int, str], None] | None = None,
) -> Delta:
    """Trains a rival inside `run`; a finished run with the same settings is not repeated.

    `lm` is the full model, `budget` the resolved settings of the RMU run to compare with (their number of updates,
    batch sizes, sample length, schedule and seed hold). Raises ValueError where the folder holds another run and where
    the loss is not finite.
    """
    raise NotImplementedError
