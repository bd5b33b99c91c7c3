"""`numerics="published"` against a slow, obvious, two-model form of the published algorithm: the same bits.

`published_rmu` keeps a frozen copy, runs whole models, and steps the optimizer that Hugging Face had at the time. It
shares no code with misdirect.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from misdirect.config import Topic, UnlearnConfig
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.recipes import resolve
from misdirect.unlearning.arithmetic import PUBLISHED, tokenized
from misdirect.unlearning.methods import unlearn
from misdirect.unlearning.schedule import Samples
from tiny import LAYERS, WIDTH, texts, tiny_folder, tiny_tokenizer

BLOCK, NUM_BLOCKS, BATCH = 3, 3, 2
MATRIX = {"llama": "model.layers.{}.mlp.down_proj.weight", "qwen2": "model.layers.{}.mlp.down_proj.weight",
          "gpt2": "transformer.h.{}.mlp.c_proj.weight"}  # fmt: skip
COEFFICIENTS, ALPHAS = [6.5, 4.0], [1200.0, 30.0]


def forget_and_retain() -> tuple[dict[str, list[str]], list[str]]:
    """Twelve texts each; among the first six, which six updates of two see, one is too long for each limit."""
    bio, cyber, retain = (texts(12, 20, seed=seed) for seed in (1, 2, 3))
    bio[1], cyber[2], retain[3] = (texts(1, words, seed=4, shortest=words)[0] for words in (600, 900, 600))
    return {"bio": bio, "cyber": cyber}, retain


def activations(model: nn.Module, inputs: Any, block: str) -> Tensor:
    """One whole forward pass; the state after `block`."""
    cache = []
    handle = model.get_submodule(block).register_forward_hook(
        lambda module, args, output: cache.append(output[0] if isinstance(output, tuple) else output)
    )
    model(**inputs)
    handle.remove()
    return cache[0]


class OldAdamW:
    """transformers' own AdamW of 2024 without weight decay; states in the parameter's dtype."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.parameters, self.lr, self.steps = parameters, lr, 0
        self.mean = [torch.zeros_like(p) for p in parameters]
        self.square = [torch.zeros_like(p) for p in parameters]

    def step(self) -> None:
        self.steps += 1
        step_size = self.lr * math.sqrt(1 - 0.999**self.steps) / (1 - 0.9**self.steps)
        for p, mean, square in zip(self.parameters, self.mean, self.square, strict=True):
            mean.mul_(0.9).add_(p.grad, alpha=1 - 0.9)
            square.mul_(0.999).addcmul_(p.grad, p.grad, value=1 - 0.999)
            p.data.addcdiv_(mean, square.sqrt().add_(1e-6), value=-step_size)


class Published(NamedTuple):
    start: dict[str, Tensor]
    matrices: dict[str, Tensor]
    losses: list[tuple[float, float]]
    num_padded: int
    lengths: list[int]


def published_rmu(
    folder: Path, family: str, forget: dict[str, list[str]], retain: list[str], lr: float, updates: int, seed: int,
    dtype: torch.dtype,
) -> Published:  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side, tokenizer.truncation_side = "left", "right"
    tokenizer.pad_token = tokenizer.eos_token
    updated = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    frozen = copy.deepcopy(updated).eval()
    updated.train()
    names = [MATRIX[family].format(index) for index in range(BLOCK - NUM_BLOCKS + 1, BLOCK + 1)]
    start = {name: updated.get_parameter(name).detach().clone() for name in names}
    optimizer = OldAdamW([updated.get_parameter(name) for name in names], lr)
    block = MATRIX[family].format(BLOCK).split(".mlp")[0]

    generator = torch.Generator().manual_seed(seed)
    control_vectors = []
    for coefficient in COEFFICIENTS[: len(forget)]:
        drawn = torch.rand(1, 1, WIDTH, generator=generator, dtype=dtype)
        control_vectors.append(drawn / torch.norm(drawn) * coefficient)

    losses, lengths, num_padded = [], [], 0
    for update in range(updates):
        topic, batch = update % len(forget), update // len(forget)
        lines = slice(batch * BATCH, (batch + 1) * BATCH)
        asked = {"return_tensors": "pt", "padding": True, "truncation": True}
        limit = 512 if topic == 0 else 768
        forget_inputs = tokenizer(list(forget.values())[topic][lines], max_length=limit, **asked)
        retain_inputs = tokenizer(retain[lines], max_length=512, **asked)
        for inputs in (forget_inputs, retain_inputs):
            assert (inputs["input_ids"][inputs["attention_mask"] == 0] == tokenizer.eos_token_id).all()
            num_padded += int((inputs["attention_mask"][:, 0] == 0).sum())
        lengths.append(forget_inputs["input_ids"].shape[1])

        state = activations(updated, forget_inputs, block)
        forget_loss = F.mse_loss(state, control_vectors[topic].expand_as(state))
        with torch.no_grad():
            target = activations(frozen, retain_inputs, block)
        retain_loss = F.mse_loss(activations(updated, retain_inputs, block), target)
        updated.zero_grad()
        (forget_loss + retain_loss * ALPHAS[topic]).backward()
        optimizer.step()
        losses.append((forget_loss.item(), retain_loss.item()))
    matrices = {name: updated.get_parameter(name).detach() for name in names}
    return Published(start, matrices, losses, num_padded, lengths)


def settings(lr: float, updates: int | None, numerics: str = "published", **others: Any) -> UnlearnConfig:
    config = UnlearnConfig(
        block=BLOCK,
        num_blocks=NUM_BLOCKS,
        batch_size=BATCH,
        lr=lr,
        updates=updates,
        numerics=numerics,
        seed=11,
        **others,
    )
    return resolve(config, LAYERS)


def own_topics(forget: dict[str, list[str]]) -> list[Topic]:
    return [Topic(n, "-", str(c), a) for n, c, a in zip(forget, COEFFICIENTS, ALPHAS, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", MATRIX)
def test_the_matrices_are_those_of_two_models_bit_for_bit(family: str, dtype: str, tmp_path: Path) -> None:
    folder, updates, lr = tiny_folder(tmp_path, family), 6, 5e-3
    forget, retain = forget_and_retain()
    oracle = published_rmu(folder, family, forget, retain, lr, updates, 11, getattr(torch, dtype))
    assert oracle.num_padded >= updates
    assert 512 in oracle.lengths
    assert 768 in oracle.lengths

    lm = load_lm(str(folder), BLOCK, dtype=dtype)
    delta, log = unlearn(lm, forget, [("wiki", retain, 1.0)], settings(lr, updates), own_topics(forget))
    assert [(line["forget_loss"], line["retain_loss"]) for line in log] == oracle.losses
    assert [line["topic"] for line in log] == ["bio", "cyber"] * 3
    assert delta.tensors.keys() == oracle.matrices.keys()
    for name, expected in oracle.matrices.items():
        found = delta.tensors[name]
        assert found.dtype == expected.dtype == getattr(torch, dtype)
        assert torch.equal(found, expected), name
        moved = (expected != oracle.start[name]).float().mean()
        assert moved > 0.9, f"{name}: only {moved:.0%} of the weights moved, so that equality would prove little"


def test_clean_numerics_give_something_else(tmp_path: Path) -> None:
    lm = load_lm(str(tiny_folder(tmp_path)), BLOCK)
    forget, retain = forget_and_retain()
    found = {
        numerics: unlearn(
            lm, forget, [("wiki", retain, 1.0)], settings(5e-3, 6, numerics, max_tokens=512), own_topics(forget)
        )[0].tensors
        for numerics in ("clean", "published")
    }
    assert found["clean"].keys() == found["published"].keys()
    for name, value in found["published"].items():
        assert not torch.allclose(value, found["clean"][name], atol=1e-3)


def test_bf16_weights_hardly_move_at_the_published_rate_and_fp32_masters_do(tmp_path: Path) -> None:
    """Half a unit in the last place of a bf16 weight above 2^-6 is more than a step of 5e-5, so that it is rounded away."""
    lm = load_lm(str(tiny_folder(tmp_path)), BLOCK, dtype="bfloat16")
    forget, retain = forget_and_retain()
    start = {f"model.layers.{name}": value.clone() for name, value in lm.blocks.state_dict().items()}
    moved = {}
    for numerics in ("clean", "published"):
        config = settings(5e-5, 6, numerics, max_tokens=64)
        found = unlearn(lm, forget, [("wiki", retain, 1.0)], config, own_topics(forget))[0].tensors
        assert {value.dtype for value in found.values()} == {torch.float32 if numerics == "clean" else torch.bfloat16}
        moved[numerics] = min((value != start[name]).float().mean().item() for name, value in found.items())
    assert moved["published"] < 0.5
    assert moved["clean"] > 0.99


def samples_of(lm: LM, forget: dict[str, list[str]], retain: list[str]) -> Samples:
    return tokenized(lm, forget, [("wiki", retain, 1.0)], settings(5e-3, None))


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_cut_off_right_at_512_and_768_tokens(side: str, tmp_path: Path) -> None:
    lm = load_lm(str(tiny_folder(tmp_path)), BLOCK)
    lm.tokenizer.truncation_side = side
    long = texts(4, 1000, seed=9, shortest=950)
    samples = samples_of(lm, {"bio": long, "cyber": long}, long)
    whole = [tiny_tokenizer()(text)["input_ids"] for text in long]
    assert min(map(len, whole)) > 768
    assert samples.forget == {"bio": [ids[:512] for ids in whole], "cyber": [ids[:768] for ids in whole]}
    assert samples.retain == {"wiki": [ids[:512] for ids in whole]}
    assert lm.tokenizer.truncation_side == side


def test_every_topic_sees_the_same_retain_lines_in_file_order(tmp_path: Path) -> None:
    lm = load_lm(str(tiny_folder(tmp_path)), BLOCK)
    bio, cyber, retain = (texts(9, 12, seed=seed) for seed in (1, 2, 3))
    plan = PUBLISHED.updates(samples_of(lm, {"bio": bio, "cyber": cyber}, retain), settings(5e-3, 5))
    decoded = [
        (topic, lm.tokenizer.batch_decode(forget), lm.tokenizer.batch_decode(kept)) for topic, forget, kept in plan
    ]
    assert decoded == [
        ("bio", bio[0:2], retain[0:2]),
        ("cyber", cyber[0:2], retain[0:2]),
        ("bio", bio[2:4], retain[2:4]),
        ("cyber", cyber[2:4], retain[2:4]),
        ("bio", bio[4:6], retain[4:6]),
    ]


@pytest.mark.parametrize(("asked", "made"), [(None, 4), (3, 3), (99, 4)])
def test_there_are_at_most_as_many_updates_as_the_shortest_corpus_has_batches(
    asked: int | None, made: int, tmp_path: Path
) -> None:
    lm = load_lm(str(tiny_folder(tmp_path)), BLOCK)
    forget = {"bio": texts(7, 9, seed=1), "cyber": texts(12, 9, seed=2)}  # four batches, the last of one text; six
    samples, config = samples_of(lm, forget, texts(11, 9, seed=3)), settings(5e-3, asked)
    assert PUBLISHED.num_updates(samples, config) == len(PUBLISHED.updates(samples, config)) == made


def test_dropout_is_on_for_the_updated_model_alone_and_comes_from_the_seed(tmp_path: Path) -> None:
    """Dropout on the embeddings only: with the frozen target dropped too, the first retain loss would be exactly 0."""
    folder = tiny_folder(tmp_path, "gpt2", embd_pdrop=0.3)
    lm = load_lm(str(folder), BLOCK)
    forget, retain = forget_and_retain()
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        runs.append(unlearn(lm, forget, [("wiki", retain, 1.0)], settings(5e-3, 3), own_topics(forget)))
        assert torch.equal(torch.get_rng_state(), state)
        assert not lm.model.training
    assert all(torch.equal(value, runs[1][0].tensors[name]) for name, value in runs[0][0].tensors.items())

    batch = tiny_tokenizer()(retain[:BATCH], padding=True, padding_side="left", return_tensors="pt")
    full = AutoModelForCausalLM.from_pretrained(folder)
    losses = []
    with torch.no_grad():
        target = activations(full.eval(), batch, f"transformer.h.{BLOCK}")
        for seed in range(30):
            torch.manual_seed(seed)
            losses.append(F.mse_loss(activations(full.train(), batch, f"transformer.h.{BLOCK}"), target).item())
    assert min(losses) / 2 < runs[0][1][0]["retain_loss"] < 2 * max(losses)
