"""`plan`: what a run will take on this machine, from the model's config alone.

    made = plan("demo", {"biology": "demo-forget"}, {"wiki": "demo-retain-wikipedia"}, UnlearnConfig(recipe="demo"))
    print(made.seconds, made.memory, made.disk)

No weights are read. Blocks of the model's own shapes with random numbers in them are run for a few seconds, through the
code that a run goes through, and the rest is counted: samples and prompts where their text and the tokenizer are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.planning.form import Plan

if TYPE_CHECKING:
    from misdirect.unlearning.rmu import Job


def plan(
    model: str,
    forget: Mapping[str, str] | Sequence[Topic] = (),
    retain: Mapping[str, str] | Sequence[Corpus] = (),
    config: UnlearnConfig | None = None,
    *,
    questions: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    prompts: Mapping[str, str] | None = None,
    examples: Mapping[str, str] | None = None,
    evaluate: EvaluateConfig | None = None,
    seeds: int = 1,
    trust_remote_code: bool = False,
) -> Plan:
    """The time, memory and disk of unlearning, and of an evaluation where questions, texts or prompts are named.

    Text that is not named, or that would have to be fetched, counts as samples of `max_tokens`. Raises ValueError as
    `unlearn` would: for a model whose matrix is not unique, a source that is not there, settings out of range.
    """
    raise NotImplementedError


def unlearn_line(job: Job) -> str:
    """What `unlearn` says before it starts: time (its first two updates measured), peak memory, disk. One line."""
    raise NotImplementedError
