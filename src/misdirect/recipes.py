"""Published settings as cited constants, and the demo's.

The Zephyr, Yi and Mixtral settings are those of Li et al. 2024 (arXiv 2403.03218) and of the run scripts published with
it; `--numerics published` reproduces their arithmetic. Their steering coefficients are absolute numbers: they mean nothing
on a model with other activation norms. Adaptive RMU (Dang et al. 2024, arXiv 2408.06223) takes a multiple of the measured
norm instead.

    resolve(UnlearnConfig(recipe="zephyr-7b"), num_hidden_layers=32).steering      # "6.5"
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from misdirect.config import Corpus, UnlearnConfig

# Li et al. 2024, HuggingFaceH4/zephyr-7b-beta, forget biology and cybersecurity, retain wikitext.
ZEPHYR_7B: dict[str, Any] = {
    "block": 7, "num_blocks": 3, "steering": "6.5", "alpha": 1200.0, "lr": 5e-5, "batch_size": 4, "updates": 150,
    "max_tokens": 512,
}  # fmt: skip

# Li et al. 2024, 01-ai/Yi-34B-Chat.
YI_34B: dict[str, Any] = {
    "block": 15, "num_blocks": 3, "steering": "300", "alpha": 350.0, "lr": 5e-5, "batch_size": 2, "updates": 400,
    "max_tokens": 512,
}  # fmt: skip

# Li et al. 2024, mistralai/Mixtral-8x7B-Instruct-v0.1. The published code picks parameters by index, and index 7 of a
# Mixtral block is `block_sparse_moe.experts.0.w3.weight`: the up projection of expert 0, no MLP output matrix. transformers 5
# keeps it as rows 14336 to 28672 (after the gate's) of expert 0 in the fused `gate_up_proj`.
MIXTRAL_8X7B: dict[str, Any] = {
    "block": 7, "num_blocks": 3, "steering": "300", "alpha": 1600.0, "lr": 5e-5, "batch_size": 2, "updates": 400,
    "max_tokens": 512, "matrix": "mlp.experts.gate_up_proj[0,14336:28672]",
}  # fmt: skip

# Dang et al. 2024 (arXiv 2408.06223), HuggingFaceH4/zephyr-7b-beta. c is measured once a topic, on its first batch, before
# training (the published code measures the second topic's after one update).
ADAPTIVE_RMU: dict[str, Any] = {
    "block": 7, "num_blocks": 3, "steering": "5xmean", "alpha": 1200.0, "lr": 5e-5, "batch_size": 4, "updates": 500,
    "max_tokens": 512,
}  # fmt: skip

# Our own search on SmolLM2-135M-Instruct over the demo's development split; the points tried are in dev/LOG.md.
DEMO: dict[str, Any] = {
    "block": 7, "num_blocks": 3, "steering": "5x", "alpha": 130.0, "lr": 2e-3, "batch_size": 6, "retain_batch_size": 14,
    "updates": 240, "max_tokens": 64, "schedule": "cosine", "warmup": 10, "clip": 1.0,
}  # fmt: skip

RECIPES = MappingProxyType(
    {
        "zephyr-7b": ZEPHYR_7B,
        "yi-34b": YI_34B,
        "mixtral-8x7b": MIXTRAL_8X7B,
        "adaptive-rmu": ADAPTIVE_RMU,
        "demo": DEMO,
    }
)

# What holds when neither a recipe nor a flag says otherwise. `block` and `num_blocks` follow the model's depth, the learning
# rate is measured (`unlearning/rate.py`).
DEFAULTS: dict[str, Any] = {
    "steering": "5x", "alpha": 100.0, "batch_size": 4, "max_tokens": 256, "schedule": "constant",
    "warmup": 0, "clip": 0.0, "numerics": "clean",
}  # fmt: skip
DEFAULT_BLOCK = 7  # the published choice for 32 blocks; a model with fewer than 15 gets its middle block
DEFAULT_NUM_BLOCKS = 3
DEFAULT_UPDATES = 150


def resolve(config: UnlearnConfig, num_hidden_layers: int | None = None) -> UnlearnConfig:
    """Fill every `None` of `config` from its recipe, then from the defaults.

    With `num_hidden_layers` the steered block is settled too. Raises ValueError for an unknown recipe, naming the
    nearest one.
    """
    chosen = dict(DEFAULTS)
    if config.recipe is not None:
        if config.recipe not in RECIPES:
            near = difflib.get_close_matches(config.recipe, RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(RECIPES)}"
            raise ValueError(f"unknown recipe {config.recipe!r}; {hint}")
        chosen |= RECIPES[config.recipe]
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    if config.epochs is not None:
        chosen.pop("updates", None)
    elif config.numerics != "published":  # there the shortest corpus decides
        chosen.setdefault("updates", DEFAULT_UPDATES)
    if config.numerics == "published":  # the published code has none of the four
        chosen |= {"schedule": "constant", "warmup": 0, "clip": 0.0}
        chosen.setdefault("lr", 5e-5)
        chosen.pop("retain_batch_size", None)
    if num_hidden_layers is not None:
        chosen.setdefault(
            "block", DEFAULT_BLOCK if num_hidden_layers >= 2 * DEFAULT_BLOCK + 1 else num_hidden_layers // 2
        )
        block = given["block"] if given["block"] is not None else chosen["block"]
        chosen.setdefault("num_blocks", min(DEFAULT_NUM_BLOCKS, block + 1))
        check_block(block, given["num_blocks"] or chosen["num_blocks"], num_hidden_layers)
    return dataclasses.replace(config, **{k: v for k, v in chosen.items() if given[k] is None})


def check_block(block: int, num_blocks: int, num_hidden_layers: int) -> None:
    """Raises ValueError where the model has no such block, or where the trained blocks would begin below block 0."""
    if block >= num_hidden_layers:
        raise ValueError(
            f"block {block} is past the model, which has {num_hidden_layers} blocks; "
            f"expected --block 0 to {num_hidden_layers - 1}"
        )
    if num_blocks > block + 1:
        raise ValueError(
            f"{num_blocks} trained blocks ending at block {block} would begin below block 0; "
            f"expected --num-blocks at most {block + 1}"
        )


@dataclass(frozen=True)
class DemoSettings:
    """What `demo` trains on and asks."""

    retain: tuple[Corpus, ...] = (
        Corpus("science", "demo-retain-science", 4.0),
        Corpus("questions", "demo-retain-questions", 4.0),
        Corpus("exams", "demo-retain-exams", 2.0),
        Corpus("wikipedia", "demo-retain-wikipedia", 2.0),
        Corpus("unsure", "demo-retain-unsure", 1.0),
    )
    questions: tuple[tuple[str, str], ...] = (("biology", "demo-biology"), ("other-science", "demo-science"))
    texts: tuple[tuple[str, str], ...] = (
        ("biology-text", "demo-text-biology"),
        ("physics-chemistry", "demo-text-science"),
        ("economics", "demo-text-economics"),
        ("history", "demo-text-history"),
        ("wikipedia", "demo-text-wikipedia"),
    )
    benign: tuple[tuple[str, str], ...] = (("wikipedia", "demo-text-wikipedia"), ("economics", "demo-text-economics"))
