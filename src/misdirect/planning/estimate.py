"""`plan`: what a run will take on this machine, from the model's config alone.

    made = plan("demo", {"biology": "demo-forget"}, {"wiki": "demo-retain-wikipedia"}, UnlearnConfig(recipe="demo"))
    print(made.seconds, made.memory, made.disk)

No weights are read. Blocks of the model's own shapes with random numbers in them are run for a few seconds, through the
code that a run goes through, and the rest is counted: samples and prompts where their text and the tokenizer are at hand.
Measured on CPUs; on a GPU the same code waits for the device's queue, but no prediction was ever compared there.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig, doubtful
from misdirect.data.tokens import token_ids
from misdirect.planning.table import Machine, Plan
from misdirect.progress import note
from misdirect.recipes import resolve

if TYPE_CHECKING:
    from misdirect.planning.shape import Shape

START_SECONDS = 3.0  # importing torch and transformers, where this process had done so already


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

    Text that is not named, or would have to be fetched, counts as samples of `max_tokens`. Raises ValueError as `unlearn`.
    """
    topics = [Topic(n, s) for n, s in forget.items()] if isinstance(forget, Mapping) else list(forget)
    corpora = [Corpus(n, s) for n, s in retain.items()] if isinstance(retain, Mapping) else list(retain)
    sets = (questions or {}, texts or {}, prompts or {})
    began = start()
    from misdirect.planning import benchmark, stages, workload

    source = source_config(model, trust_remote_code)
    given, wanted = config or UnlearnConfig(), evaluate or EvaluateConfig()
    settings = resolve(given, source.get_text_config(decoder=True).num_hidden_layers)
    for doubt in doubtful([*sets[0], *sets[1]], [topic.name for topic in topics]):
        note(doubt)
    shape = shape_here(model, source, settings, trust_remote_code)
    tokenizer = local_tokenizer(model, trust_remote_code)
    counting = time.perf_counter()
    samples, said = workload.training(tokenizer, topics, corpora, settings)
    asked, also = workload.evaluation(tokenizer, *sets, wanted, examples or {})
    rowless = workload.check_tokens(tokenizer, shape.vocabulary, model, samples, asked)
    counted = time.perf_counter()
    machine = machine_of(settings)
    base = stages.process_bytes() if machine.device == "cpu" else 0
    speed, why = benchmark.measure(source, shape, samples, asked, settings, wanted.batch_tokens)
    case = stages.Case(
        model=model,
        is_local=not is_absent_demo(model) if model == "demo" else Path(model).expanduser().exists(),
        topics=topics,
        corpora=corpora,
        given=given,
        settings=settings,
        evaluate=wanted if any(sets) else None,
        seeds=seeds,
        shape=shape,
        tokens=workload.count_tokens(samples, settings),
        asked=asked,
        positions=workload.largest_pass(asked, wanted.batch_tokens, shape.vocabulary),
        speed=speed,
        machine=machine,
        base=base,
        started=counting - began,
        read=counted - counting,
        rowless=rowless,
    )
    return stages.planned(case, [*said, *also, *why])


def start() -> float:
    """The moment when this began; where the libraries were loaded already, as much earlier as that takes."""
    now = time.perf_counter()
    if "torch" in sys.modules:
        return now - START_SECONDS
    import misdirect.unlearning.methods  # noqa: F401 - torch and transformers come with it

    return now


def shape_here(model: str, source: Any, settings: UnlearnConfig, trust_remote_code: bool) -> Shape:
    """An adapter is merged into the whole of its base, and a quantized model is dequantized whole."""
    from misdirect.model import quantized
    from misdirect.model.sources import adapter_base
    from misdirect.planning.shape import shape_of

    shape = shape_of(source, settings, trust_remote_code)
    if adapter_base(model) is None and not quantized.method(source):
        return shape
    return dataclasses.replace(shape, num_prefix=shape.num_parameters, loads_whole=True)


def machine_of(settings: UnlearnConfig) -> Machine:
    import torch

    from misdirect.model.lm import pick_device, pick_dtype
    from misdirect.model.memory import free_bytes

    device = pick_device(settings.device)
    dtype = str(pick_dtype(settings.dtype, device)).removeprefix("torch.")
    return Machine(str(device), dtype, torch.get_num_threads(), free_bytes(device), shutil.disk_usage(Path.cwd()).free)


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
        return found if len(token_ids(found, ["A cell has a wall."])[0]) > 1 else None  # some are empty without files
    except Exception:  # absent files make transformers raise many kinds; the plan then counts characters, and says so
        return None
