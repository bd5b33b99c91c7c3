"""One unlearning run in a run directory: written so that killing it at any moment loses at most a few updates.

`config.json` says what was asked and chosen; `checkpoint.safetensors` holds matrices, moments and position while the run
is under way; `delta.safetensors` exists when it is done. Calling again with the same settings goes on, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from misdirect import __version__, runs, signals
from misdirect.config import Corpus, Topic, as_dict
from misdirect.disk import require_room
from misdirect.model.delta import Delta, load_delta, load_tensors, save_delta, save_tensors
from misdirect.model.load import LM
from misdirect.progress import RESUMED
from misdirect.unlearning import rmu

LOG_BYTES = 400  # about a line


def describe(
    job: rmu.Job,
    model_hash: str,
    topics: Sequence[Topic],
    forget: Mapping[str, Sequence[str]],
    corpora: Sequence[Corpus],
    retain: Sequence[tuple[str, Sequence[str], float]],
) -> dict[str, Any]:
    """`config.json`: everything that the result depends on, as plain data."""
    settings = as_dict(job.config) | {"updates": job.updates}
    asked = outline(settings, str(next(job.lm.model.parameters()).dtype), topics, forget, corpora, retain)
    return asked | {
        "misdirect": __version__,
        "model": job.lm.source,
        "data": {"model_sha256": model_hash}
        | asked["data"]
        | ({"dequantized": job.lm.dequantized} if job.lm.dequantized else {}),
        "chosen": {
            "block": job.config.block,
            "trained": [f"{job.lm.block_prefix}.{index}.{path}" for index, path in job.matrices.items()],
            "topics": {
                t.name: {
                    "steering_coefficient": t.steering_coefficient,
                    "median_norm": t.median_norm,
                    "retain_weight": t.retain_weight,
                    "num_samples": len(t.samples),
                    "tokens": sum(map(len, t.samples)),
                }
                for t in job.topics
            },
            "retain": {
                name: {"num_samples": len(samples), "tokens": sum(map(len, samples))}
                for (name, _, _), samples in zip(retain, job.retain, strict=True)
            },
        },
    }


def outline(
    settings: Mapping[str, Any],
    dtype: str,
    topics: Sequence[Topic],
    forget: Mapping[str, Sequence[str]],
    corpora: Sequence[Corpus],
    retain: Sequence[tuple[str, Sequence[str], float]],
) -> dict[str, Any]:
    """The part of `config.json` that is known before a model is loaded."""
    return {
        "settings": dict(settings),
        "topics": [asdict(topic) for topic in topics],
        "retain": [asdict(corpus) for corpus in corpora],
        "data": {
            "dtype": dtype,
            "forget_sha256": {name: runs.fingerprint(texts) for name, texts in forget.items()},
            "retain_sha256": {name: runs.fingerprint(texts) for name, texts, _ in retain},
        },
    }


def is_repeated(run: Path, asked: Mapping[str, Any]) -> bool:
    """Whether `run` is finished and is what is `asked`: an `outline`, `method` and `model_files`.

    False also where that takes more than these to tell: the model is then loaded, and its hash compared.
    """
    if not asked["model_files"] or not runs.is_run(run) or finished(run) is None:
        return False
    stored, settings = runs.read_json(run / runs.CONFIG), asked["settings"]
    counted = settings.get("epochs") is not None or settings.get("numerics") == "published"  # from the samples
    unknown = {"data.model_sha256", *(["settings.updates"] if counted or settings.get("updates") is None else [])}
    same = stored.get("model_files") == asked["model_files"] and stored.get("method", "rmu") == asked["method"]
    return same and set(other_fields(stored, asked)) <= unknown


def refuse_other_run(run: Path, asked: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the fields, where the folder holds a run with other settings."""
    if not runs.is_run(run):
        if (run / runs.CONFIG).exists() or (run / "results").exists():
            raise ValueError(f"{run} holds something that is no run; expected an empty or new folder for --out")
        return
    names = other_fields(runs.read_json(run / runs.CONFIG), asked)
    if names:
        raise ValueError(
            f"{run} holds a run with other settings ({', '.join(names)} differ); expected the same settings, "
            "or another --out"
        )


def other_fields(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Where two `config.json` differ in what makes a run another run."""
    one, new = compared(stored), compared(json.loads(json.dumps(runs.finite(dict(asked)))))
    return [
        f"{part}.{field}" if isinstance(one.get(part), dict) else part
        for part in new
        for field in (
            runs.differing(one[part], new[part])
            if isinstance(one.get(part), dict)
            else [""] * (one.get(part) != new[part])
        )
    ]


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another run. Model and texts are told apart by their hashes, under whatever name they were typed."""
    parts: dict[str, Any] = {name: config.get(name) for name in ("settings", "topics", "retain", "data")}
    if isinstance(parts["settings"], dict):  # what the recipe gave is there, setting by setting
        parts["settings"] = {key: value for key, value in parts["settings"].items() if key != "recipe"}
    for name in ("topics", "retain"):
        if isinstance(parts[name], list):
            rows = [row for row in parts[name] if isinstance(row, dict)]
            parts[name] = [{key: value for key, value in row.items() if key != "source"} for row in rows]
    return parts


def save_checkpoint(run: Path, state: rmu.State) -> None:
    parts = {"weight": state.weights, "first": state.first, "second": state.second}
    tensors = {f"{part}:{name}": value.detach() for part, found in parts.items() for name, value in found.items()}
    save_tensors(tensors, run / runs.CHECKPOINT, {"step": str(state.step)})


def load_checkpoint(run: Path, job: rmu.Job) -> rmu.State:
    """The state to go on from, on the model's device; the initial one where there is no checkpoint.

    Raises ValueError where the file is damaged or holds other matrices than those that the run trains.
    """
    path, start = run / runs.CHECKPOINT, rmu.initial_state(job)
    if not path.exists():
        return start
    tensors, metadata = load_tensors(path)
    again = "expected that file removed: the run begins again"
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdigit() and int(step[:18]) < job.updates):
        raise ValueError(f"{path} is at update {step[:20]!r} of {job.updates}; {again}")
    parts: dict[str, dict[str, Any]] = {"weight": start.weights, "first": start.first, "second": start.second}
    for part, known in parts.items():
        for name, own in known.items():
            found = tensors.get(f"{part}:{name}")
            if found is None or found.shape != own.shape or found.dtype != own.dtype:
                what = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
                raise ValueError(f"{path} holds {what} for {name}, which is {own.dtype} of {tuple(own.shape)}; {again}")
            known[name] = found.to(job.lm.device)
    return start._replace(step=int(step))


def require_space(job: rmu.Job, run: Path, state: rmu.State) -> None:
    """Raises ValueError where checkpoints and delta will not fit: an old checkpoint stays until the new one is complete."""
    weights = sum(value.nbytes for value in state.weights.values())
    there = (run / runs.CHECKPOINT).exists()
    due = (job.updates - 1) // job.config.checkpoint_every - state.step // job.config.checkpoint_every
    checkpoints = min(due, 1 if there else 2)
    at_the_end = weights * (1 if there or not due else 4)
    require_room(run, max(3 * weights * checkpoints, at_the_end) + LOG_BYTES * job.updates, "the run")


def cut_log(run: Path, step: int) -> None:
    """Drops log lines past a checkpoint: those updates are made again."""
    lines = [line for line in runs.read_log(run) if line["step"] <= step]
    runs.write_text(run / runs.LOG, "".join(json.dumps(line) + "\n" for line in lines))


def finished(run: Path) -> Delta | None:
    return load_delta(run / runs.DELTA) if (run / runs.DELTA).is_file() else None


def execute(
    job: rmu.Job, run: Path, config: Mapping[str, Any], advance: Callable[[int, str], None] | None = None
) -> Delta:
    """Trains `job` inside `run`, from its checkpoint where there is one, and writes the delta and the control vectors.

    SIGINT, SIGTERM and SIGHUP wait for the end of an update and leave a checkpoint. Raises ValueError where the folder
    holds another run or another process is at work in it, and where the loss is not finite (the last good checkpoint
    stays).
    """
    with runs.writing(run), signals.deferred() as waiting:
        refuse_other_run(run, config)
        done = finished(run)
        if done is None:
            runs.write_json(run / runs.CONFIG, config)
            runs.write_json(run / runs.ENV, runs.environment() | {"device": str(job.lm.device)})
            save_tensors(
                {t.name: t.direction for t in job.topics},
                run / runs.CONTROL,
                {t.name: repr(t.steering_coefficient) for t in job.topics},
            )
            done = rmu.to_delta(job, go_on(job, run, advance, waiting), delta_metadata(job, config))
            save_delta(done, run / runs.DELTA)
        (run / runs.CHECKPOINT).unlink(missing_ok=True)  # also one left where the process was killed right here
        return done


def go_on(
    job: rmu.Job, run: Path, advance: Callable[[int, str], None] | None, waiting: Sequence[int] = ()
) -> rmu.State:
    """Makes the updates that are still to make; `waiting` holds the signals that ask to stop."""
    state = load_checkpoint(run, job)
    require_space(job, run, state)
    cut_log(run, state.step)
    if advance and state.step:
        advance(state.step, RESUMED)
    with (run / runs.LOG).open("a", encoding="utf-8") as log:

        def after_update(state: rmu.State, line: dict[str, Any]) -> None:
            log.write(json.dumps(runs.finite(line)) + "\n")
            log.flush()  # a checkpoint is never ahead of the log
            leaving = bool(waiting)  # asked once: what comes later waits for the next update
            if state.step < job.updates and (leaving or state.step % job.config.checkpoint_every == 0):
                save_checkpoint(run, state)
            if advance:
                advance(1, f"forget {line['forget_loss']:.4g}  retain {line['retain_loss']:.3g}")
            if state.step < job.updates and leaving:
                raise signals.Stop

        try:
            state = rmu.train(job, state, after_update)
        except rmu.Divergence as error:
            kept = int(load_tensors(run / runs.CHECKPOINT)[1]["step"]) if (run / runs.CHECKPOINT).exists() else 0
            where = f"the checkpoint of update {kept} is kept in {run}" if kept else "no checkpoint had been due"
            raise ValueError(f"{error}; {where}") from None
    if not all(torch.isfinite(value).all() for value in state.weights.values()):
        raise ValueError("the last update made weights that are not finite numbers; expected a smaller --lr")
    return state


def delta_metadata(job: rmu.Job, config: Mapping[str, Any]) -> dict[str, str]:
    return {
        "format": "pt",
        "method": "rmu",
        "model": job.lm.source,
        "model_sha256": str(config["data"]["model_sha256"]),
        "misdirect": __version__,
    }


def refuse_other_base(lm: LM, run: Path) -> None:
    """Raises ValueError where the weights behind the run's MODEL are no longer those that it was made from."""
    config = runs.read_json(run / runs.CONFIG)
    if str(next(lm.model.parameters()).dtype) != config["data"].get("dtype"):
        return  # other bits, the same model: the hash says nothing
    if model_hash(lm, config["chosen"]["block"]) != config["data"]["model_sha256"]:
        raise ValueError(f"{lm.source} has other weights than {run} was made from; expected the same model")


def model_hash(lm: LM, last: int) -> str:
    """SHA-256 over the names, shapes and bits of blocks 0..last, all that RMU reads: the model that was really used."""
    digest = hashlib.sha256()
    for index, block in enumerate(lm.blocks[: last + 1]):
        for name, value in block.named_parameters():
            digest.update(f"{index}.{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
