"""A rival's run in a run directory of the usual shape, so that evaluate, audit and report work on it unchanged.

There are no checkpoints and no control vectors: a run that is killed begins again, and `delta.safetensors`, written last,
exists only when it is done.

    execute(lm, Path("runs/demo-npo"), topics, forget_texts, corpora, retain_texts, budget, RivalConfig())
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from misdirect import __version__, runs, storage
from misdirect.config import Corpus, Topic, UnlearnConfig, as_dict
from misdirect.model import identity, parameters
from misdirect.model.delta import Delta, save_delta
from misdirect.model.load import LM
from misdirect.storage import require_room
from misdirect.unlearning import rival
from misdirect.unlearning import run as running
from misdirect.unlearning.rival import RivalConfig

# Settings of RMU that mean nothing here; `recipe` has been resolved, and `checkpoint_every` has nothing to count
UNUSED = ("recipe", "block", "num_blocks", "steering", "alpha", "epochs", "checkpoint_every")


def execute(
    lm: LM,
    run: Path,
    topics: Sequence[Topic],
    forget: Mapping[str, Sequence[str]],
    corpora: Sequence[Corpus],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig,
    more: Mapping[str, Any] | None = None,
    advance: Callable[[int, str], None] | None = None,
) -> Delta:
    """Trains a rival inside `run`; a finished run with the same settings is not repeated.

    `lm` is the full model, `budget` the resolved settings of the RMU run to compare with (their number of updates,
    batch sizes, sample length, schedule and seed hold). Raises ValueError where the folder holds another run and where
    the loss is not finite.
    """
    with runs.writing(run):
        job = rival.prepare(lm, forget, retain, budget, config)
        asked = describe(job, topics, forget, corpora, retain) | dict(more or {})
        running.refuse_other_run(run, asked)
        done = running.finished(run)
        if done is None:
            require_room(run, needed_bytes(job), "the run")
            storage.write_json(run / runs.CONFIG, asked)
            storage.write_json(run / runs.ENV, runs.environment() | {"device": str(lm.device)})
            done = Delta(trained(job, run, advance), metadata(job, asked))
            save_delta(done, run / runs.DELTA)
        return done


def trained(job: rival.Job, run: Path, advance: Callable[[int, str], None] | None) -> dict[str, Any]:
    """The trained matrices; writes the log as it goes."""
    with (run / runs.LOG).open("w", encoding="utf-8") as log:

        def after_update(line: dict[str, Any]) -> None:
            log.write(json.dumps(storage.finite(line)) + "\n")
            log.flush()
            if advance:
                advance(1, f"forget NLL {line['forget_nll']:.3g}  retain {line['retain_loss']:.3g}")

        return rival.train(job, after_update)


def describe(
    job: rival.Job,
    topics: Sequence[Topic],
    forget: Mapping[str, Sequence[str]],
    corpora: Sequence[Corpus],
    retain: Sequence[tuple[str, Sequence[str], float]],
) -> dict[str, Any]:
    """`config.json`: everything that the result depends on, as plain data. The hash is over every block of the model."""
    lm, plan, last = job.lm, job.plan, job.lm.num_hidden_layers - 1
    settings = settings_of(plan.config, job.config)
    asked = running.outline(
        settings | {"updates": plan.updates}, str(next(lm.model.parameters()).dtype), topics, forget, corpora, retain
    )
    sizes = lambda samples: {"num_samples": len(samples), "tokens": sum(map(len, samples))}  # noqa: E731
    return asked | {
        "misdirect": __version__,
        "method": job.config.method,
        "model": lm.source,
        "data": {"model_sha256": identity.model_hash(lm, last)}
        | asked["data"]
        | ({"dequantized": lm.dequantized} if lm.dequantized else {}),
        "chosen": {
            "block": last,
            "trained": job.names,
            "topics": {t.name: sizes(t.samples) | {"retain_weight": job.config.retain_weight} for t in plan.topics},
            "retain": {name: sizes(found) for (name, _, _), found in zip(retain, plan.retain, strict=True)},
        },
    }


def settings_of(budget: UnlearnConfig, config: RivalConfig) -> dict[str, Any]:
    """The settings of RMU's budget and of the rival, less those that mean nothing to it."""
    used = ("beta",) if config.method != "npo" else ()
    settings = as_dict(budget) | as_dict(config)
    return {name: value for name, value in settings.items() if name not in (*UNUSED, *used)}


def needed_bytes(job: rival.Job) -> int:
    """Delta and log; the delta is written beside its place and renamed, so it takes its space once."""
    own = dict(job.lm.model.named_parameters())
    weights = sum(4 * parameters.read(own[parameters.base_name(name)], name).numel() for name in job.names)
    return weights + running.LOG_BYTES * job.plan.updates


def metadata(job: rival.Job, config: Mapping[str, Any]) -> dict[str, str]:
    """As of an RMU run, the method's name aside."""
    return running.delta_metadata(job.plan, config) | {"method": job.config.method}
