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
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import weights
from misdirect.attacks.interface import Advance, Attack, AttackInputs
from misdirect.attacks.scoring import Point
from misdirect.config import AuditConfig
from misdirect.model import interventions
from misdirect.model.interventions import Matrix
from misdirect.model.lm import LM
from misdirect.runs import Result

NF4_BLOCK = 64  # bitsandbytes' default


@dataclass(frozen=True)
class RoundToNearest:
    bits: int
    group: int | None  # None: one group an output row
    symmetric: bool


@dataclass(frozen=True)
class NF4:
    bits: int = 4
    levels: str = "nf4"
    block: int = NF4_BLOCK


# The strongest first: fewer bits move weights further.
ROUNDED = {
    "quantise-int4": RoundToNearest(4, 64, symmetric=False),
    "quantise-int8": RoundToNearest(8, None, symmetric=True),
    "quantise-int3": RoundToNearest(3, 64, symmetric=False),
}


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


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    made = []
    for name, settings in ROUNDED.items():
        how = "symmetric" if settings.symmetric else "asymmetric"
        groups = f"groups of {settings.group}" if settings.group else "a scale a row"
        made.append(attack_of(name, f"Weights rounded to {settings.bits} bits ({how}, {groups})", settings))
    unavailable = "" if has_bitsandbytes() else "needs bitsandbytes: pip install 'misdirect[quant]'"
    return [*made, attack_of("quantise-nf4", "Weights rounded to NF4 (bitsandbytes)", NF4(), unavailable)]


def attack_of(name: str, title: str, settings: RoundToNearest | NF4, unavailable: str = "") -> Attack:
    return Attack(
        name=name,
        family="quantise",
        title=title,
        attacker_access="weights",
        settings=settings,
        cost=weights.cost(1),
        num_steps=2,
        run=run,
        unavailable=unavailable,
    )


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    levels = [(Point(budget=float(attack.settings.bits)), rewrite_of(attack.settings))]
    return weights.run_levels(lm, inputs, attack, advance, levels)


def rewrite_of(settings: RoundToNearest | NF4) -> interventions.Rewrite:
    change = to_nf4 if isinstance(settings, NF4) else partial(round_to_nearest, **asdict(settings))

    def rewrite(matrix: Matrix, weight: Tensor) -> Tensor:
        return change(weight)

    return rewrite
