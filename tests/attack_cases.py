"""A tiny model with questions split by fact, and what else an attack is given."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import torch

import tiny
from misdirect.attacks.interface import AttackInputs, Form, Means, Shape
from misdirect.data.fact_splits import split
from misdirect.data.questions import Question
from misdirect.model.blocks import count_parameters, residual_width
from misdirect.model.lm import LM


def tiny_lm(family: str = "llama", **overrides: Any) -> LM:
    model = tiny.tiny_model(family, **overrides).requires_grad_(False)
    return LM(model, tiny.tiny_tokenizer(), family, tiny.LAYERS, "model.layers")


def questions(count: int, seed: int = 0, choices: int = 4, name: str = "q") -> list[Question]:
    """Questions of random words, no two alike; supports state the right answer."""
    draw = random.Random(f"{name}:{seed}")
    words = tiny.VOCABULARY.split()
    made = []
    for i in range(count):
        options = [
            " ".join(pair) for pair in draw.sample([(a, b) for a in words[20:28] for b in words[28:36]], choices)
        ]
        asked = f"Which {' '.join(draw.choices(words, k=7))} number {i}?"
        answer = draw.randrange(choices)
        made.append(
            Question(f"{name}{i}", asked, tuple(options), answer, "", f"In {i} it is {options[answer]} and so on.")
        )
    return made


def tiny_inputs(
    family: str = "llama", count: int = 16, form: Form = "cloze", lm: LM | None = None, **overrides: Any
) -> tuple[LM, AttackInputs]:
    """`count` forgotten questions, half of that retained; texts, control vectors and mean states are random."""
    lm = lm or tiny_lm(family, **overrides)
    blocks, width = len(lm.blocks), residual_width(lm.model)
    draw = torch.Generator().manual_seed(5)
    random_means = lambda: Means(*(torch.randn(blocks, width, generator=draw) for _ in range(2)))  # noqa: E731
    unit = torch.rand(width, generator=draw)
    inputs = AttackInputs(
        forgotten={"biology": split(questions(count), 0)},
        retained={"other": questions(count // 2, name="r")},
        forms={"biology": form, "other": form},
        forget_texts=tiny.texts(8, 20, seed=1),
        retain_texts=tiny.texts(8, 20, seed=2),
        benign_texts=tiny.texts(8, 20, seed=3),
        control_vectors={"biology": unit / unit.norm()},
        block=2,
        shape=Shape(count_parameters(lm.model), blocks, width, len(lm.tokenizer), 4),
        identity={"audited": "tiny"},
        means={"base": random_means(), "unlearned": random_means()},
        medians=torch.full((blocks,), 3.0),
    )
    return lm, inputs


def state_hash(lm: LM) -> str:
    """Of every weight and buffer, with what could be left behind: gradients, hooks, train mode, the global generator."""
    digest = hashlib.sha256()
    for name, value in lm.model.state_dict().items():
        digest.update(name.encode() + value.detach().float().numpy().tobytes())
    flags = [(n, p.requires_grad, p.grad is None) for n, p in lm.model.named_parameters()]
    hooks = [(n, len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for n, m in lm.model.named_modules()]
    digest.update(repr((flags, hooks)).encode() + torch.get_rng_state().numpy().tobytes())
    return digest.hexdigest()
