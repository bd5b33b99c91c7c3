"""Rounding every matrix to 8, 4 or 3 bits, and to NF4 through bitsandbytes: what anyone does who runs a model at home.

Unlearning that moves weights less than a rounding step is undone by rounding (Zhang et al. 2024, arXiv 2410.16454). Round
to nearest, in groups of `group` weights along a matrix' input, or one group an output row:

    symmetric   scale = max|w| / (2^(bits-1) - 1)            w' = scale * round(w / scale)
    asymmetric  scale = (max w - min w) / (2^bits - 1)       w' = min w + scale * round((w - min w) / scale)

so that no weight moves by more than half a scale. The least weight of a group is kept in floating point, as GGUF's Q4_1
does. A model that was already stored so is left as it is by the same setting: the demo's weights come from Q4_1, which is
asymmetric 4 bits in groups of 32, so groups of 64 are used here. Embeddings and the LM head stay as they are.

    with weights_changed(lm, lambda matrix, weight: round_to_nearest(weight, 4, 64, symmetric=False)): ...
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import weights
from misdirect.attacks.interface import Advance, Attack, Case
from misdirect.attacks.scoring import Point
from misdirect.config import AuditConfig
from misdirect.model import interventions
from misdirect.model.interventions import Matrix
from misdirect.model.load import LM
from misdirect.runs import Result

# (bits, group, symmetric); None: one group an output row. The strongest first: fewer bits move weights further.
SETTINGS = {
    "quantise-int4": (4, 64, False),
    "quantise-int8": (8, None, True),
    "quantise-int3": (3, 64, False),
}
NF4_BLOCK = 64  # bitsandbytes' default


def round_to_nearest(
    weight: Float[Tensor, "E O I"], bits: int, group: int | None, symmetric: bool
) -> Float[Tensor, "E O I"]:
    """Every weight on the nearest of its group's levels. A last group that is shorter has its own scale."""
    width = weight.shape[-1]
    size = group or width
    missing = -width % size
    padded = torch.cat([weight, weight[..., -1:].expand(*weight.shape[:-1], missing)], -1) if missing else weight
    grouped = padded.unflatten(-1, (-1, size))
    if symmetric:
        offset = torch.zeros(())
        scale = grouped.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    else:
        offset = grouped.amin(-1, keepdim=True)
        scale = (grouped.amax(-1, keepdim=True) - offset) / (2**bits - 1)
    scale = torch.where(scale == 0, 1.0, scale)
    rounded = offset + scale * ((grouped - offset) / scale).round()
    return rounded.flatten(-2)[..., :width]


def to_nf4(weight: Float[Tensor, "E O I"]) -> Float[Tensor, "E O I"]:
    """Every weight on bitsandbytes' NF4 levels (Dettmers et al. 2023, arXiv 2305.14314), in blocks of 64."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports kernels that a CPU does not have
    library = importlib.import_module("bitsandbytes.functional")
    flat = weight.flatten(1)  # (E, O * I): blocks run over the rows' ends, as in the library's own layers
    missing = -flat.shape[1] % NF4_BLOCK
    # A block a row: 0.50.2 on a CPU returns other weights where a block runs over a row's end. Zeros change no scale.
    blocks = torch.nn.functional.pad(flat, (0, missing)).view(-1, NF4_BLOCK)
    codes, state = library.quantize_4bit(blocks, blocksize=NF4_BLOCK, quant_type="nf4")
    made = library.dequantize_4bit(codes, state).view(len(weight), -1)
    return made[:, : flat.shape[1]].reshape(weight.shape)


def has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    cost = weights.cost(case, 1)
    made = []
    for name, (bits, group, symmetric) in SETTINGS.items():
        how = f"{'symmetric' if symmetric else 'asymmetric'}, {f'groups of {group}' if group else 'a scale a row'}"
        settings: dict[str, Any] = {"bits": bits, "group": group, "symmetric": symmetric}
        title = f"Weights rounded to {bits} bits ({how})"
        made.append(Attack(name, "quantise", title, "weights", settings, cost, 2, run))
    missing = "" if has_bitsandbytes() else "needs bitsandbytes: pip install 'misdirect[quant]'"
    settings = {"bits": 4, "levels": "nf4", "block": NF4_BLOCK}
    title = "Weights rounded to NF4 (bitsandbytes)"
    made.append(Attack("quantise-nf4", "quantise", title, "weights", settings, cost, 2, run, missing=missing))
    return made


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    return weights.run_levels(
        lm, case, attack, advance, [(Point(budget=float(attack.settings["bits"])), rewrite_of(attack))]
    )


def rewrite_of(attack: Attack) -> interventions.Rewrite:
    settings = attack.settings
    if settings.get("levels") == "nf4":
        return lambda matrix, weight: to_nf4(weight)
    how = partial(round_to_nearest, bits=settings["bits"], group=settings["group"], symmetric=settings["symmetric"])

    def rewrite(matrix: Matrix, weight: Tensor) -> Tensor:
        return how(weight)

    return rewrite
