"""`plan`: what a run will take on this machine, from the model's config alone.

    made = plan("demo", {"biology": "demo-forget"}, {"wiki": "demo-retain-wikipedia"}, UnlearnConfig(recipe="demo"))
    print(made.seconds, made.memory, made.disk)

No weights are read. Blocks of the model's own shapes with random numbers in them are run for a few seconds, through the
code that a run goes through, and the rest is counted: samples and prompts where their text and the tokenizer are at hand.
Measured on CPUs; on a GPU the same code waits for the device's queue, but no prediction was ever compared there.
"""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from misdirect import __version__
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig, as_dict, doubtful, flag
from misdirect.data.tokens import token_ids
from misdirect.planning.table import File, Machine, Plan, Stage
from misdirect.progress import note
from misdirect.recipes import resolve
from misdirect.text import duration, shown, size

if TYPE_CHECKING:
    from misdirect.planning.benchmark import Speed
    from misdirect.planning.shape import Shape
    from misdirect.planning.workload import Asked, Tokens
    from misdirect.unlearning.train import Prepared

START_SECONDS = 3.0  # importing torch and transformers, where this process had done so already
REPORT_SECONDS = 2.0
DEMO_SECONDS = 60.0  # fetching and converting the demo's model and data, once; the network decides


class Given(NamedTuple):
    """What `plan` was asked, checked and resolved."""

    model: str
    topics: list[Topic]
    corpora: list[Corpus]
    asked: UnlearnConfig
    settings: UnlearnConfig  # the same, resolved
    evaluate: EvaluateConfig
    measured: bool  # whether an evaluation is planned too
    seeds: int
    trust_remote_code: bool


class Counted(NamedTuple):
    """All that the arithmetic needs: sizes, tokens, speeds, and the seconds that reading and tokenising took here."""

    shape: Shape
    tokens: Tokens
    asked: Asked
    positions: int  # whose logits stand in memory at once
    speed: Speed
    base: int  # bytes of the process before a model is loaded
    itemsize: int
    start: float
    read: float
    rowless: Mapping[int, str] = {}  # tokens of the tokenizer that the model has no embedding for


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
    topics = [Topic(n, s) for n, s in forget.items()] if isinstance(forget, Mapping) else list(forget)
    corpora = [Corpus(n, s) for n, s in retain.items()] if isinstance(retain, Mapping) else list(retain)
    start = import_seconds()
    from misdirect.model import quantized
    from misdirect.model.rows import rowless
    from misdirect.model.sources import adapter_base
    from misdirect.planning import benchmark as speed
    from misdirect.planning import shape, workload

    began = time.perf_counter()
    source = source_config(model, trust_remote_code)
    config = config or UnlearnConfig()
    settings = resolve(config, source.get_text_config(decoder=True).num_hidden_layers)
    sets = (questions or {}, texts or {}, prompts or {})
    for doubt in doubtful([*sets[0], *sets[1]], [topic.name for topic in topics]):
        note(doubt)
    wanted = evaluate or EvaluateConfig()
    given = Given(model, topics, corpora, config, settings, wanted, any(sets), seeds, trust_remote_code)
    found = shape.shape_of(source, settings, trust_remote_code)
    if adapter_base(model) is not None or quantized.method(
        source
    ):  # merged into the whole of its base; dequantized whole
        found = dataclasses.replace(found, num_prefix=found.num_parameters, loads_whole=True)
    tokenizer = local_tokenizer(model, trust_remote_code)
    start += time.perf_counter() - began
    began = time.perf_counter()
    training, said = workload.training(tokenizer, topics, corpora, settings)
    asked, also = workload.evaluation(tokenizer, *sets, wanted, examples or {})
    workload.check_tokens(tokenizer, found.vocabulary, model, training, asked)
    read = time.perf_counter() - began
    base = process_bytes()
    measured, why = speed.measure(source, found, training, asked, settings, wanted.batch_tokens)
    device = speed.pick_device(settings.device)
    dtype = speed.pick_dtype(settings.dtype, device)
    counted = Counted(
        found,
        workload.count_tokens(training, settings),
        asked,
        workload.largest_pass(asked, wanted.batch_tokens, found.vocabulary),
        measured,
        base if device.type == "cpu" else 0,
        dtype.itemsize,
        start,
        read,
        rowless(tokenizer, found.vocabulary) if tokenizer is not None else {},
    )
    machine = machine_of(device, str(dtype).removeprefix("torch."))
    return compose(given, counted, machine, [*said, *also, *why])


def import_seconds() -> float:
    """How long the libraries take to load: measured where this process has not loaded them yet."""
    if "torch" in sys.modules:
        return START_SECONDS
    started = time.perf_counter()
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import misdirect.unlearning.rmu  # noqa: F401

    return time.perf_counter() - started


# SmolLM2-135M-Instruct's own config, for a plan before the demo has been fetched.
DEMO_CONFIG = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "head_dim": 64,
    "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip


def demo_folder() -> Path:
    from misdirect.data.demo import cache_folder

    return cache_folder() / "SmolLM2-135M-Instruct"


def is_absent_demo(model: str) -> bool:
    return model == "demo" and not demo_folder().is_dir()


def source_config(model: str, trust_remote_code: bool) -> Any:
    """The model's Hugging Face config; nothing but `config.json` is read or fetched."""
    from misdirect.model.load import load_config

    if is_absent_demo(model):
        from transformers import AutoConfig

        return AutoConfig.for_model("llama", **DEMO_CONFIG)
    return load_config(str(demo_folder()) if model == "demo" else model, trust_remote_code)


def local_tokenizer(model: str, trust_remote_code: bool) -> Any:
    """The model's tokenizer where its files are on this machine, else None."""
    from transformers import AutoTokenizer

    from misdirect.model.sources import adapter_base, has_weights, lacks_tokenizer, no_tokenizer
    from misdirect.progress import quiet

    if is_absent_demo(model):
        return None
    model = (adapter_base(model) or model) if lacks_tokenizer(model) else model
    if lacks_tokenizer(model) and has_weights(model):
        note(no_tokenizer(model))
    where = str(demo_folder()) if model == "demo" else str(Path(model).expanduser()) if Path(model).exists() else model
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code, local_files_only=True)
        return (
            found if len(token_ids(found, ["A cell has a wall."])[0]) > 1 else None
        )  # some come up empty without files
    except Exception:  # absent files make transformers raise many kinds; the plan then counts characters, and says so
        return None


def process_bytes() -> int:
    """Memory of this process now: libraries and text, what a run has too before it loads a model."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


def machine_of(device: Any, dtype: str) -> Machine:
    import torch

    from misdirect.model.memory import free_bytes

    disk = shutil.disk_usage(Path.cwd()).free
    return Machine(str(device), dtype, torch.get_num_threads(), free_bytes(device), disk)


def compose(given: Given, counted: Counted, machine: Machine, said: list[str]) -> Plan:
    shape, settings = counted.shape, given.settings
    stages = stages_of(given, counted)
    files = files_of(given, counted, machine.dtype)
    return Plan(
        given.model,
        shape.architecture,
        shape.num_blocks,
        shape.num_parameters,
        machine,
        as_dict(settings) | {"updates": counted.tokens.updates},
        tuple(shape.sizes),
        tuple(stages),
        tuple(files),
        tuple(dict.fromkeys([*said, *assumptions(given, counted)])),
        tuple(problems(given, counted, machine, stages, files)),
        next_command(given),
    )


def stages_of(given: Given, counted: Counted) -> list[Stage]:
    from misdirect.planning import cost

    shape, speed, tokens, settings = counted.shape, counted.speed, counted.tokens, given.settings
    item, base, seeds = counted.itemsize, counted.base, given.seeds
    prefix = cost.load_seconds(shape.num_prefix, item)
    unlearning = cost.unlearn_seconds(shape, settings, tokens, speed)
    memory = cost.unlearn_memory(base, shape, settings, tokens, item, speed.saved)
    loaded = base + shape.num_prefix * item
    each = f"{tokens.updates} updates of {duration(unlearning / tokens.updates)}"
    padded = (tokens.forget + tokens.retain) // tokens.updates
    part = "all blocks" if shape.loads_whole else f"blocks 0 to {settings.block} of {shape.num_blocks}"
    stages = [
        Stage("start", counted.start, base, "libraries loaded and the model's shape built: measured"),
        Stage("read and tokenise", counted.read, base, "the text: measured" if given.topics else "no text was named"),
        Stage("load", seeds * prefix, loaded, f"{part}, {size(shape.num_prefix * item)}"),
        Stage(
            "prepare",
            seeds * cost.prepare_seconds(shape, settings, tokens, speed, item),
            memory,
            "activation norms, replay check, two updates rehearsed, hash of the weights",
        ),
        Stage(
            "unlearn", seeds * unlearning, memory, f"{each}, {padded:,} tokens each{f', {seeds} seeds' * (seeds > 1)}"
        ),
    ]
    if is_absent_demo(given.model):
        stages.insert(
            0, Stage("fetch", DEMO_SECONDS, base, "demo model and text, once; model converted to safetensors")
        )
    return [*stages, *(evaluation_stages(given, counted) if given.measured else [])]


def evaluation_stages(given: Given, counted: Counted) -> list[Stage]:
    from misdirect.model import packed
    from misdirect.planning import cost

    shape, speed, asked, item = counted.shape, counted.speed, counted.asked, counted.itemsize
    loaded = counted.base + shape.num_parameters * item
    in_questions = sum(packed.length(item) for items in asked.items for item in items)
    in_texts = sum(len(ids) for samples in asked.texts for ids in samples)
    begun = [len(ids) for ids in asked.prompts]
    once = cost.evaluate_seconds(in_questions, in_texts, begun, shape.num_blocks, given.evaluate, speed)
    memory = cost.evaluate_memory(counted.base, shape, item, counted.positions, with_delta=True)
    loading = cost.load_seconds(shape.num_parameters, item) + cost.hash_seconds(shape, given.settings, speed, item)
    texts = f"{sum(map(len, asked.texts))} texts ({in_texts:,} tokens)"
    basis = f"{asked.num_questions:,} questions ({in_questions:,} tokens), {texts}, {len(asked.prompts)} prompts"
    return [
        Stage("load all", loading, loaded, f"all {shape.num_blocks} blocks, {size(shape.num_parameters * item)}"),
        Stage("evaluate base", once, memory, basis),
        Stage(
            "evaluate unlearned", given.seeds * once, memory, f"the same{f', {given.seeds} seeds' * (given.seeds > 1)}"
        ),
        Stage("report", REPORT_SECONDS, counted.base, "assumed"),
    ]


def files_of(given: Given, counted: Counted, dtype: str) -> list[File]:
    from misdirect.planning import cost

    shape, settings, seeds = counted.shape, given.settings, given.seeds
    metadata = {"format": "pt", "method": "rmu", "model": given.model, "model_sha256": "0" * 64}
    delta = cost.delta_bytes(shape, settings, dtype, metadata | {"misdirect": __version__})
    files = [
        File("delta.safetensors", seeds * delta),
        File("log and control vectors", seeds * (counted.tokens.updates * cost.LOG_LINE + 4 * shape.width)),
    ]
    if cost.checkpoints(settings, counted.tokens.updates):
        files.append(File("checkpoint", cost.checkpoint_bytes(shape, settings, counted.itemsize), kept=False))
    if given.measured:
        records = counted.asked.num_records * cost.RECORD_BYTES
        files += [File("results", (1 + seeds) * records), File("report.html", cost.REPORT_BYTES)]
    return [*fetched_files(given, counted), *files]


def fetched_files(given: Given, counted: Counted) -> list[File]:
    """What a first run fetches: transformers takes every shard of a hub model, also where few blocks are read."""
    if is_absent_demo(given.model):
        return [File("demo model and text", 645_000_000), File("their packages", 180_000_000, kept=False)]
    if given.model == "demo" or Path(given.model).expanduser().exists():
        return []
    return [File("the model from the hub (less what is there)", counted.shape.num_parameters * 2)]


def assumptions(given: Given, counted: Counted) -> list[str]:
    from misdirect.planning import cost

    shape, speed = counted.shape, counted.speed
    said = [f"files are read and written at {cost.DISK_SPEED / 1e6:.0f} MB a second"]
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
    if not (given.model == "demo" or Path(given.model).expanduser().exists()):
        said.append(
            "the hub holds two bytes a parameter; fetching takes as long as the network takes, and is not in the time"
        )
    if not given.measured:
        said.append("no evaluation is planned; add --questions and --text")
    said.append("nothing else runs on this machine; memory is what this process holds now plus what a run adds")
    return said


def problems(
    given: Given, counted: Counted, machine: Machine, stages: Sequence[Stage], files: Sequence[File]
) -> list[str]:
    """A sentence for whatever does not fit, with the setting that would."""
    out = []
    for name, advice in (("unlearn", unlearn_advice), ("evaluate unlearned", evaluate_advice)):
        stage = next((s for s in stages if s.name == name), None)
        if stage and stage.memory - counted.base > machine.memory:
            needs = f"{name} needs {size(stage.memory - counted.base)} and {size(machine.memory)} are free"
            out.append(f"{needs}; {advice(given, counted, machine)}")
    total = sum(file.bytes for file in files)
    if total > machine.disk:
        out.append(f"{size(total)} of disk are needed and {size(machine.disk)} are free; expected another --out")
    if counted.rowless:
        names = ", ".join(f"{shown(token, 40)} (id {i})" for i, token in list(counted.rowless.items())[:5])
        more = f" and {len(counted.rowless) - 5} more" * (len(counted.rowless) > 5)
        out.append(
            f"the tokenizer knows {names}{more}, and the model has embeddings for {counted.shape.vocabulary:,} tokens: as "
            "padding that does no harm, a text that holds one is refused"
        )
    return out


def unlearn_advice(given: Given, counted: Counted, machine: Machine) -> str:
    """The first of a smaller batch, bfloat16, or both that fits."""
    from misdirect.planning import cost

    size_ = given.settings.batch_size or 1
    for dtype in (machine.dtype, "bfloat16"):
        itemsize = cost.STORED[dtype][1]
        for batch in [b for b in (size_, size_ // 2, size_ // 4, 1) if b]:
            tokens = counted.tokens._replace(largest=counted.tokens.largest * batch // size_)
            saved = counted.speed.saved * itemsize / counted.itemsize
            if cost.unlearn_memory(0, counted.shape, given.settings, tokens, itemsize, saved) <= machine.memory:
                flags = [f"--dtype {dtype}"] * (dtype != machine.dtype) + [f"--batch-size {batch}"] * (batch != size_)
                if batch != size_ and given.settings.retain_batch_size:
                    flags.append(f"--retain-batch-size {max(1, given.settings.retain_batch_size * batch // size_)}")
                return f"{' '.join(flags)} would fit"
    tokens = counted.tokens._replace(largest=counted.tokens.largest // size_)
    least = cost.unlearn_memory(0, counted.shape, given.settings, tokens, 2, counted.speed.saved * 2 / counted.itemsize)
    still = f"with --dtype bfloat16 --batch-size 1 it still needs {size(least)}"
    return f"{still}: a smaller --block or --num-blocks, or a larger machine"


def evaluate_advice(given: Given, counted: Counted, machine: Machine) -> str:
    from misdirect.planning import cost

    tokens = given.evaluate.batch_tokens
    for dtype in (machine.dtype, "bfloat16"):
        itemsize = cost.STORED[dtype][1]
        for part in (1, 4, 16):
            positions = counted.positions // part
            if cost.evaluate_memory(0, counted.shape, itemsize, positions, with_delta=True) <= machine.memory:
                flags = [f"--dtype {dtype}"] * (dtype != machine.dtype)
                flags += [f"--batch-tokens {tokens // part}"] * (part > 1)
                return f"evaluate with {' '.join(flags)} would fit"
    least = cost.evaluate_memory(0, counted.shape, 2, 0, with_delta=True)
    return f"with --dtype bfloat16 the weights alone need {size(least)}: evaluate on a larger machine"


def next_command(given: Given) -> str:
    """The run that was planned, with the flags that were given; with words to fill in where no text was named."""
    words = ["misdirect", "unlearn", given.model]
    words += [part for t in given.topics or [Topic("TOPIC", "FILE")] for part in ("--forget", f"{t.name}={t.source}")]
    words += [part for c in given.corpora or [Corpus("KEPT", "FILE")] for part in ("--retain", retained(c))]
    for name, own in (("--steering", "steering"), ("--alpha", "retain_weight")):
        values = [(t.name, getattr(t, own)) for t in given.topics]
        words += [part for topic, value in values if value is not None for part in (name, f"{topic}={value}")]
    default = UnlearnConfig()
    for field in dataclasses.fields(UnlearnConfig):
        value = getattr(given.asked, field.name)
        if value != getattr(default, field.name):
            words += [flag(field.name), str(value)]
    words += ["--seeds", str(given.seeds)] * (given.seeds > 1)
    return " ".join(shlex.quote(word) for word in [*words, "--out", "runs/mine"])


def retained(corpus: Corpus) -> str:
    return f"{corpus.name}={corpus.source}" + f"@{corpus.weight:g}" * (corpus.weight != 1)


def unlearn_line(prepared: Prepared) -> str:
    """What `unlearn` says before it starts: time (its first two updates measured), peak memory, disk. One line."""
    from misdirect.planning import cost
    from misdirect.planning.workload import padded_tokens
    from misdirect.unlearning.train import first_updates, initial_state

    counts = [forget + retain for forget, retain in padded_tokens(prepared.updates)]
    second, saved = first_updates(prepared)
    measured = counts[min(1, len(counts) - 1)]
    seconds = second * sum(counts) / measured
    weights = initial_state(prepared).weights.values()
    numbers, each = sum(w.numel() for w in weights), next(iter(weights)).element_size()
    backward = int(saved * max(counts) / measured) + numbers * each
    memory = (
        (process_bytes() if prepared.lm.device.type == "cpu" else 0)
        + 3 * numbers * each
        + max(backward, 3 * numbers * each)
    )
    updates = len(prepared.updates)
    disk = numbers * each + (3 * numbers * each if cost.checkpoints(prepared.config, updates) else 0)
    return (
        f"About {duration(seconds)} for {updates} updates ({duration(second)} each); {size(memory)} of memory and "
        f"{size(disk)} of disk at most, {size(numbers * each)} of it kept"
    )
