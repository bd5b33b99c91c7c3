"""One unlearning run in a run directory: written so that killing it at any moment loses at most a few updates.

`config.json` says what was asked and chosen; `checkpoint.safetensors` holds matrices, moments and position while the run
is under way; `delta.safetensors` exists when it is done. Calling again with the same settings resumes, bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from misdirect import __version__, interrupts, runs, storage
from misdirect.config import UnlearnConfig
from misdirect.data import batches
from misdirect.model.delta import Delta, load_tensors, save_delta, save_tensors
from misdirect.model.lm import LM, pick_device, pick_dtype
from misdirect.model.load import check_trainable, load_config, resolve_source
from misdirect.progress import RESUMED, bar, note
from misdirect.recipes import resolve
from misdirect.unlearning import signals
from misdirect.unlearning.arithmetic import tokenized
from misdirect.unlearning.methods import METHODS, Method
from misdirect.unlearning.order import (
    Order,
    describe,
    finished,
    is_repeated,
    model_files,
    outline,
    refuse_other_folder,
    refuse_other_run,
)
from misdirect.unlearning.train import Divergence, Prepared, State, initial_state, to_delta

LOG_BYTES = 400  # about a line
PARTS = {"weight": "weights", "first": "exp_avg", "second": "exp_avg_sq"}  # in a checkpoint -> of a `State`


def unlearn(
    order: Order,
    given: UnlearnConfig,
    run: Path,
    load: Callable[[int | None], LM],
    estimate: Callable[[Prepared], str],
) -> None:
    """One run, one seed, from the settings as given to the delta in its folder; a finished run is not repeated.

    `load`: the last block that is wanted (None: all of the model) -> the model; `estimate`: a line on time and memory.
    """
    method, source = METHODS[order.method], load_config(resolve_source(order.model), order.trust_remote_code)
    config = method.settled(given, resolve(given, source.get_text_config(decoder=True).num_hidden_layers))
    settings, files = method.stored(config), model_files(order.model, source)
    dtype = str(pick_dtype(config.dtype, pick_device(config.device)))
    if is_repeated(run, outline(order, settings, dtype) | {"method": order.method, "model_files": files}):
        note(f"{run} is finished already; nothing to do")
        return
    refuse_other_folder(run)
    lm = load(method.last_block(config))
    check_trainable(lm)
    rate = measured_rate(run) if config.lr is None else None
    config = dataclasses.replace(config, lr=config.lr or rate)
    prepared = method.prepare(lm, tokenized(lm, order.forget, order.retain, config), config, order.topics)
    if rate is not None:
        prepared = dataclasses.replace(prepared, chosen={**prepared.chosen, "lr": rate})
    command = order.command(dataclasses.replace(config, lr=None if rate else config.lr), run)
    asked = describe(order, prepared, settings) | {"command": command, "model_files": files}
    refuse_other_run(run, asked)
    if finished(run) is not None:
        note(f"{run} is finished already; nothing to do")
        return
    preview(order, prepared, estimate)
    by = f" by {order.method}" * (order.method != "rmu")
    with bar(f"Unlearning {', '.join(order.forget)}{by}", len(prepared.updates)) as advance:
        execute(prepared, run, asked, method, advance)
    for line in signals.verdicts(runs.read_log(run), prepared.config.lr or 0.0):
        note(line)


def measured_rate(run: Path) -> float | None:
    """The learning rate that an earlier call measured for this folder's run."""
    return runs.read_config(run).chosen.lr if runs.is_run(run) else None


def preview(order: Order, prepared: Prepared, estimate: Callable[[Prepared], str]) -> None:
    """Says what was chosen from measurement, how long it will take, and shows some text as the model will see it."""
    config = prepared.config
    for line in prepared.notes:
        note(line)
    if config.updates and len(prepared.updates) < config.updates:
        note(f"{len(prepared.updates)} updates instead of {config.updates}: the shortest corpus has no more batches")
    note(estimate(prepared))
    kept = {f"{name} (retain)": texts for name, texts, _ in order.retain}
    for line in batches.preview({**order.forget, **kept}, prepared.lm.tokenizer, config.max_tokens or 0, config.seed):
        note(line)


def execute(
    prepared: Prepared,
    run: Path,
    config: Mapping[str, Any],
    method: Method = METHODS["rmu"],
    advance: Callable[[int, str], None] | None = None,
) -> Delta:
    """Trains inside `run`, from its checkpoint where there is one, and writes the delta and the control vectors.

    `config`: what `config.json` is to hold. SIGINT, SIGTERM and SIGHUP wait for the end of an update and leave a
    checkpoint. Raises ValueError where the folder holds another run or another process is at work in it, and where the
    loss is not finite (the last good checkpoint stays).
    """
    with runs.writing(run), interrupts.deferred() as waiting:
        refuse_other_run(run, config)
        done = finished(run)
        if done is None:
            storage.write_json(run / runs.CONFIG, config)
            storage.write_json(run / runs.ENV, runs.environment() | {"device": str(prepared.lm.device)})
            if prepared.private:
                directions = {name: direction for name, (direction, _) in prepared.private.items()}
                lengths = {name: repr(length) for name, (_, length) in prepared.private.items()}
                save_tensors(directions, run / runs.CONTROL, lengths)
            state = resume(prepared, run, method, advance, waiting)
            done = to_delta(state, metadata(config))
            save_delta(done, run / runs.DELTA)
        (run / runs.CHECKPOINT).unlink(missing_ok=True)  # also one left where the process was killed right here
        return done


def metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """Of the delta: what it was made from, and how."""
    return {
        "format": "pt",
        "method": str(config["method"]),
        "model": str(config["model"]),
        "model_sha256": str(config["data"]["model_sha256"]),
        "misdirect": __version__,
    }


def resume(
    prepared: Prepared,
    run: Path,
    method: Method,
    advance: Callable[[int, str], None] | None,
    waiting: Sequence[int] = (),
) -> State:
    """Makes the updates that are still to make; `waiting` holds the signals that ask to stop."""
    state, updates = load_checkpoint(run, prepared), len(prepared.updates)
    check_space(prepared, run, state)
    cut_log(run, state.step)
    if advance and state.step:
        advance(state.step, RESUMED)
    with (run / runs.LOG).open("a", encoding="utf-8") as log:

        def after_update(state: State, line: dict[str, Any]) -> None:
            log.write(json.dumps(storage.finite(line)) + "\n")
            log.flush()  # a checkpoint is never ahead of the log
            leaving = bool(waiting)  # asked once: what comes later waits for the next update
            if state.step < updates and (leaving or state.step % prepared.config.checkpoint_every == 0):
                save_checkpoint(run, state, prepared)
            if advance:
                advance(1, signals.progress(line))
            if state.step < updates and leaving:
                raise interrupts.Stop

        try:
            state = method.train(prepared, state, after_update)
        except Divergence as error:
            kept = int(load_tensors(run / runs.CHECKPOINT)[1]["step"]) if (run / runs.CHECKPOINT).exists() else 0
            where = f"the checkpoint of update {kept} is kept in {run}" if kept else "no checkpoint had been due"
            raise ValueError(f"{error}; {where}") from None
    if not all(torch.isfinite(value).all() for value in state.weights.values()):
        raise ValueError("the last update made weights that are not finite numbers; expected a smaller --lr")
    return state


def short(name: str, prepared: Prepared) -> str:
    """A trained tensor's name in a checkpoint: block and path."""
    return name.removeprefix(prepared.lm.block_prefix + ".")


def save_checkpoint(run: Path, state: State, prepared: Prepared) -> None:
    tensors = {
        f"{part}:{short(name, prepared)}": value.detach()
        for part, field in PARTS.items()
        for name, value in getattr(state, field).items()
    }
    save_tensors(tensors, run / runs.CHECKPOINT, {"step": str(state.step)})


def load_checkpoint(run: Path, prepared: Prepared) -> State:
    """The state to resume from, on the model's device; the initial one where there is no checkpoint.

    Raises ValueError where the file is damaged or holds other matrices than those that the run trains.
    """
    path, start, updates = run / runs.CHECKPOINT, initial_state(prepared), len(prepared.updates)
    if not path.exists():
        return start
    tensors, said = load_tensors(path)
    again = "expected that file removed: the run begins again"
    step = said.get("step", "")
    if not (step.isascii() and step.isdigit() and int(step[:18]) < updates):
        raise ValueError(f"{path} is at update {step[:20]!r} of {updates}; {again}")
    for part, field in PARTS.items():
        known = getattr(start, field)
        for name, own in known.items():
            place = short(name, prepared)
            found = tensors.get(f"{part}:{place}")
            if found is None or found.shape != own.shape or found.dtype != own.dtype:
                what = "nothing" if found is None else f"{found.dtype} of shape {tuple(found.shape)}"
                raise ValueError(
                    f"{path} holds {what} for {place}, which is {own.dtype} of {tuple(own.shape)}; {again}"
                )
            known[name] = found.to(prepared.lm.device)
    return start._replace(step=int(step))


def check_space(prepared: Prepared, run: Path, state: State) -> None:
    """Raises ValueError where checkpoints and delta will not fit: an old checkpoint stays until the new one is complete."""
    weights, updates = sum(value.nbytes for value in state.weights.values()), len(prepared.updates)
    every, there = prepared.config.checkpoint_every, (run / runs.CHECKPOINT).exists()
    due = (updates - 1) // every - state.step // every
    checkpoints = min(due, 1 if there else 2)
    at_the_end = weights * (1 if there or not due else 4)
    storage.require_room(run, max(3 * weights * checkpoints, at_the_end) + LOG_BYTES * updates, "the run")


def cut_log(run: Path, step: int) -> None:
    """Drops log lines past a checkpoint: those updates are made again."""
    lines = [line for line in runs.read_log(run) if line["step"] <= step]
    storage.write_text(run / runs.LOG, "".join(json.dumps(line) + "\n" for line in lines))
