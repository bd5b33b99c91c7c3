"""From what was counted and measured to the plan: stages, files, what is assumed, and what does not fit here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

from misdirect import __version__
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig, flag
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.planning import cost
from misdirect.planning.benchmark import Speed
from misdirect.planning.shape import Shape
from misdirect.planning.table import File, Machine, Plan, Stage
from misdirect.planning.workload import Asked, Tokens, padded_tokens
from misdirect.text import duration, shown, size
from misdirect.unlearning.train import Prepared, first_updates, initial_state

REPORT_SECONDS = 2.0
DEMO_SECONDS = 60.0  # fetching and converting the demo's model and data, once; the network decides
DEMO_BYTES, DEMO_WHEEL_BYTES = 645_000_000, 180_000_000


class Case(NamedTuple):
    """All that a plan rests on: what was asked for, what that is in numbers, and this machine."""

    model: str
    is_local: bool  # a folder, or the demo once it was fetched
    topics: list[Topic]
    corpora: list[Corpus]
    given: UnlearnConfig
    settings: UnlearnConfig  # the same, resolved
    evaluate: EvaluateConfig | None
    seeds: int
    shape: Shape
    tokens: Tokens
    asked: Asked
    positions: int  # whose logits stand in memory at once
    speed: Speed
    machine: Machine
    base: int  # bytes of the process before a model is loaded
    started: float  # seconds that loading the libraries and building the shape took here
    read: float  # and reading and tokenizing the text
    rowless: Mapping[int, str] | None  # tokens that the model has no embedding for; None where no tokenizer is at hand

    @property
    def itemsize(self) -> int:
        return cost.STORED[self.machine.dtype][1]


def planned(case: Case, said: list[str]) -> Plan:
    """`said`: what was assumed so far."""
    stages = [*unlearning_stages(case), *(evaluation_stages(case, case.evaluate) if case.evaluate else [])]
    files = files_of(case)
    return Plan(
        case.model,
        case.shape.architecture,
        case.shape.num_blocks,
        case.shape.num_parameters,
        case.machine,
        dataclasses.asdict(case.settings) | {"updates": case.tokens.updates},
        tuple(case.shape.sizes),
        tuple(stages),
        tuple(files),
        tuple(dict.fromkeys([*said, *assumptions(case)])),
        tuple(problems(case, stages, files)),
        next_command(case),
    )


def unlearning_stages(case: Case) -> list[Stage]:
    shape, speed, tokens, settings, item = case.shape, case.speed, case.tokens, case.settings, case.itemsize
    weights = shape.num_prefix * item
    seconds = cost.unlearn_seconds(shape, settings, tokens, speed)
    prepare = cost.prepare_seconds(shape, settings, tokens, speed, item)
    memory = cost.unlearn_memory(case.base, shape, settings, tokens.largest, item, speed.saved)
    part = "all blocks" if shape.loads_whole else f"blocks 0 to {settings.block} of {shape.num_blocks}"
    padded = (tokens.forget + tokens.retain) // tokens.updates
    each = f"{tokens.updates} updates of {duration(seconds / tokens.updates)}, {padded:,} tokens each"
    rehearsed = "activation norms, replay check, two updates rehearsed, hash of the weights"
    fetch = Stage("fetch", DEMO_SECONDS, case.base, "demo model and text, once; model converted to safetensors")
    return [
        *[fetch] * (case.model == "demo" and not case.is_local),
        Stage("start", case.started, case.base, "libraries loaded and the model's shape built: measured"),
        Stage("read and tokenize", case.read, case.base, "the text: measured" if case.topics else "no text was named"),
        Stage("load", case.seeds * cost.disk_seconds(weights), case.base + weights, f"{part}, {size(weights)}"),
        Stage("prepare", case.seeds * prepare, memory, rehearsed),
        Stage("unlearn", case.seeds * seconds, memory, each + f", {case.seeds} seeds" * (case.seeds > 1)),
    ]


def evaluation_stages(case: Case, config: EvaluateConfig) -> list[Stage]:
    shape, asked, item = case.shape, case.asked, case.itemsize
    weights = shape.num_parameters * item
    loading = cost.disk_seconds(weights) + cost.hash_seconds(shape, case.settings, item)
    once = cost.evaluate_seconds(asked, config, case.speed)
    memory = cost.evaluate_memory(case.base, shape, item, case.positions)
    in_questions, in_texts = cost.asked_tokens(asked)
    texts = f"{sum(map(len, asked.texts))} texts ({in_texts:,} tokens)"
    basis = f"{asked.num_questions:,} questions ({in_questions:,} tokens), {texts}, {len(asked.prompts)} prompts"
    again = "the same" + f", {case.seeds} seeds" * (case.seeds > 1)
    return [
        Stage("load all", loading, case.base + weights, f"all {shape.num_blocks} blocks, {size(weights)}"),
        Stage("evaluate base", once, memory, basis),
        Stage("evaluate unlearned", case.seeds * once, memory, again),
        Stage("report", REPORT_SECONDS, case.base, "assumed"),
    ]


def files_of(case: Case) -> list[File]:
    """What a run fetches and writes. Of a hub model transformers takes every shard, also where few blocks are read."""
    shape, settings, updates, seeds = case.shape, case.settings, case.tokens.updates, case.seeds
    metadata = {"format": "pt", "method": "rmu", "model": case.model, "model_sha256": "0" * 64}
    delta = cost.delta_bytes(shape, settings, case.machine.dtype, metadata | {"misdirect": __version__})
    files = []
    if not case.is_local and case.model == "demo":
        files = [File("demo model and text", DEMO_BYTES), File("their packages", DEMO_WHEEL_BYTES, kept=False)]
    elif not case.is_local:
        files = [File("the model from the hub (less what is there)", shape.num_parameters * 2)]
    files.append(File("delta.safetensors", seeds * delta))
    files.append(File("log and control vectors", seeds * (updates * cost.LOG_LINE + 4 * shape.width)))
    if cost.checkpoints(settings, updates):
        files.append(File("checkpoint", cost.checkpoint_bytes(shape, settings, case.itemsize), kept=False))
    if case.evaluate:
        files.append(File("results", (1 + seeds) * case.asked.num_records * cost.RECORD_BYTES))
        files.append(File("report.html", cost.REPORT_BYTES))
    return files


def assumptions(case: Case) -> list[str]:
    shape, speed = case.shape, case.speed
    said = [f"files are read, written and hashed at {cost.DISK_SPEED / 1e6:.0f} MB a second"]
    if case.rowless is None:
        said.append(f"{CHARS_PER_TOKEN} characters a token, since the tokenizer is not at hand")
    if not speed.num_blocks:
        said.append(
            "no block fits into the free memory, so speeds are guessed from one matrix product: times are rough"
        )
    elif speed.num_blocks < shape.num_blocks:
        said.append(
            f"speeds measured on {speed.num_blocks} of {shape.num_blocks} blocks (random numbers, a vocabulary of "
            f"{speed.vocabulary:,} of {shape.vocabulary:,}) and multiplied: blocks are taken to be alike"
        )
    if shape.loads_whole:
        said.append("unlearning loads the whole model, which cannot be cut after the steered block")
    if not case.is_local and case.model != "demo":
        said.append(
            "the hub holds two bytes a parameter; fetching takes as long as the network takes, and is not in the time"
        )
    if not case.evaluate:
        said.append("no evaluation is planned; add --questions and --text")
    said.append("nothing else runs on this machine; memory is what this process holds now plus what a run adds")
    return said


def problems(case: Case, stages: list[Stage], files: list[File]) -> list[str]:
    """A sentence for whatever does not fit, with the setting that would."""
    out, free = [], case.machine
    needed = {stage.name: stage.memory - case.base for stage in stages}
    for name, advice in (("unlearn", unlearn_advice), ("evaluate unlearned", evaluate_advice)):
        if needed.get(name, 0) > free.memory:
            out.append(f"{name} needs {size(needed[name])} and {size(free.memory)} are free; {advice(case)}")
    total = sum(file.bytes for file in files)
    if total > free.disk:
        out.append(f"{size(total)} of disk are needed and {size(free.disk)} are free; expected another --out")
    if case.rowless:
        names = ", ".join(f"{shown(token, 40)} (id {i})" for i, token in list(case.rowless.items())[:5])
        more = f" and {len(case.rowless) - 5} more" * (len(case.rowless) > 5)
        out.append(
            f"the tokenizer knows {names}{more}, and the model has embeddings for {case.shape.vocabulary:,} tokens: as "
            "padding that does no harm, a text that holds one is refused"
        )
    return out


def unlearn_advice(case: Case) -> str:
    """The first of a smaller batch, bfloat16, or both that fits."""
    batch, retain, dtype = case.settings.batch_size or 1, case.settings.retain_batch_size, case.machine.dtype

    def needed(dtype: str, few: int) -> int:
        item, largest = cost.STORED[dtype][1], case.tokens.largest * few // batch
        return cost.unlearn_memory(0, case.shape, case.settings, largest, item, case.speed.saved * item / case.itemsize)

    for other, few in product((dtype, "bfloat16"), (batch, batch // 2, batch // 4, 1)):
        if few and needed(other, few) <= case.machine.memory:
            flags = [f"--dtype {other}"] * (other != dtype) + [f"--batch-size {few}"] * (few != batch)
            if few != batch and retain:
                flags.append(f"--retain-batch-size {max(1, retain * few // batch)}")
            return f"{' '.join(flags)} would fit"
    still = f"with --dtype bfloat16 --batch-size 1 it still needs {size(needed('bfloat16', 1))}"
    return f"{still}: a smaller --block or --num-blocks, or a larger machine"


def evaluate_advice(case: Case) -> str:
    """The first of fewer tokens at once, bfloat16, or both that fits."""
    assert case.evaluate is not None
    tokens, dtype = case.evaluate.batch_tokens, case.machine.dtype

    def needed(dtype: str, positions: int) -> int:
        return cost.evaluate_memory(0, case.shape, cost.STORED[dtype][1], positions)

    for other, part in product((dtype, "bfloat16"), (1, 4, 16)):
        if needed(other, case.positions // part) <= case.machine.memory:
            flags = [f"--dtype {other}"] * (other != dtype) + [f"--batch-tokens {tokens // part}"] * (part > 1)
            return f"evaluate with {' '.join(flags)} would fit"
    return f"with --dtype bfloat16 the weights alone need {size(needed('bfloat16', 0))}: evaluate on a larger machine"


def next_command(case: Case) -> str:
    """The run that was planned, with the flags that were given; with words to fill in where no text was named."""
    words = ["misdirect", "unlearn", case.model]
    words += [part for t in case.topics or [Topic("TOPIC", "FILE")] for part in ("--forget", f"{t.name}={t.source}")]
    for c in case.corpora or [Corpus("KEPT", "FILE")]:
        words += ["--retain", f"{c.name}={c.source}" + f"@{c.weight:g}" * (c.weight != 1)]
    for name, own in (("--steering", "steering"), ("--alpha", "retain_weight")):
        values = [(t.name, getattr(t, own)) for t in case.topics]
        words += [part for topic, value in values if value is not None for part in (name, f"{topic}={value}")]
    for field in dataclasses.fields(UnlearnConfig):
        value = getattr(case.given, field.name)
        if value != field.default:
            words += [flag(field.name), str(value)]
    words += ["--seeds", str(case.seeds)] * (case.seeds > 1)
    return " ".join(shlex.quote(word) for word in [*words, "--out", "runs/mine"])


def unlearn_line(prepared: Prepared) -> str:
    """What `unlearn` says before it starts: time (its first two updates measured), peak memory, disk. One line."""
    counts = [forget + retain for forget, retain in padded_tokens(prepared.updates)]
    second, saved = first_updates(prepared)
    measured = counts[:2][-1]
    trained = sum(w.numel() * w.element_size() for w in initial_state(prepared).weights.values())
    held = process_bytes() if prepared.lm.device.type == "cpu" else 0
    memory = held + 3 * trained + max(int(saved * max(counts) / measured) + trained, 3 * trained)
    disk = trained + 3 * trained * (cost.checkpoints(prepared.config, len(counts)) > 0)
    return (
        f"About {duration(second * sum(counts) / measured)} for {len(counts)} updates ({duration(second)} each); "
        f"{size(memory)} of memory and {size(disk)} of disk at most, {size(trained)} of it kept"
    )


def process_bytes() -> int:
    """Memory of this process now: libraries and text, what a run has too before it loads a model."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)
