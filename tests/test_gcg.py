"""GCG against exhaustive search and autograd on tiny models, and the attacks made of it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from attack_cases import state_hash, tiny_case, tiny_lm
from misdirect.attacks import gcg_loss, gcg_search
from misdirect.attacks.gcg_loss import Frame, Ids, Job, gradient, job_of, losses, slopes
from misdirect.attacks.gcg_search import (
    Place,
    Settings,
    State,
    allowed_tokens,
    framed,
    merges,
    search,
    start,
    swapped,
    text_of,
    typable,
)
from misdirect.model.load import LM

FAMILIES: list[tuple[str, dict[str, Any], set[str]]] = [  # and the forms that the family allows
    ("llama", {}, {"tree", "cached"}),
    ("gpt2", {}, {"tree", "cached"}),
    ("gemma3_text", {"sliding_window": 512}, {"tree", "cached"}),
    ("gemma3_text", {}, {"cached"}),  # a window shorter than the prompt
    ("gemma2", {"sliding_window": 512}, {"tree", "cached"}),
    ("qwen2", {}, {"tree", "cached"}),
    ("mixtral", {}, {"tree", "cached"}),
    ("gpt_neox", {}, {"tree", "cached"}),
    ("bloom", {}, {"cached"}),  # positions by the mask
    ("jamba", {}, set()),
    ("mamba", {}, set()),
    ("qwen3_next", {}, set()),
]
NAMES = [f"{family}{'-' if more else ''}{'-'.join(map(str, more.values()))}" for family, more, _ in FAMILIES]
PLACES = [
    Place("Question: Which river is in the north?", "\nAnswer:", " the water"),
    Place("Question: The host of a virus is", "\nAnswer:", " cell protein"),
    Place("", "\nQuestion: Which light?\nAnswer:", " morning"),
]


def frames_of(lm: LM, count: int = 3, num_tokens: int = 5) -> tuple[list[Frame], Ids]:
    return framed(lm.tokenizer, PLACES[:count], num_tokens)


def obvious_loss(lm: LM, frame: Frame, ids: Ids) -> float:
    """By one full forward pass and the definition."""
    whole = [*frame.before, *ids, *frame.after, *frame.target]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].double()
    at = len(whole) - len(frame.target)
    return -sum(logits[i - 1].log_softmax(-1)[whole[i]].item() for i in range(at, len(whole)))


def candidates_of(lm: LM, ids: Ids, count: int = 12) -> list[Ids]:
    """The text itself, single swaps at every position, and texts that differ everywhere."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, len(lm.tokenizer), (count, len(ids)), generator=draw).tolist()
    singles = [swapped(ids, [(i % len(ids), row[0])]) for i, row in enumerate(tokens)]
    return [ids, *singles, *(tuple(row) for row in tokens[:4])]


@pytest.mark.parametrize(("family", "more", "forms"), FAMILIES, ids=NAMES)
def test_every_form_gives_the_plain_loss(family: str, more: dict[str, Any], forms: set[str]) -> None:
    lm = tiny_lm(family, **more)
    frames, ids = frames_of(lm)
    candidates = candidates_of(lm, ids)
    expected = [[obvious_loss(lm, frame, c) for c in candidates] for frame in frames]
    assert set(gcg_loss.possible_forms(lm, frames, len(ids))) >= {*forms, "plain"}
    for form in sorted({*forms, "plain"}):
        job = job_of(lm, frames, ids, 300, form)  # type: ignore[arg-type]
        assert job.form == form
        for row in range(len(frames)):
            assert losses(job, row, candidates, ids).tolist() == pytest.approx(expected[row], abs=1e-4, rel=1e-5)
    assert job_of(lm, frames, ids).form == ("tree" if "tree" in forms else "cached" if forms else "plain")


@pytest.mark.parametrize(("family", "more", "forms"), FAMILIES, ids=NAMES)
def test_gradient_is_autograds_on_the_plain_one_hot_form(family: str, more: dict[str, Any], forms: set[str]) -> None:
    lm = tiny_lm(family, **more)
    frames, ids = frames_of(lm)
    table = lm.model.get_input_embeddings()
    scale = float(getattr(table, "scalar_embed_scale", 1.0))
    for form in sorted({*forms, "plain"}):
        job = job_of(lm, frames, ids, form=form)  # type: ignore[arg-type]
        for row, frame in enumerate(frames):
            whole = torch.tensor([*frame.before, *ids, *frame.after, *frame.target])
            one_hot = torch.nn.functional.one_hot(whole, table.weight.shape[0]).float().requires_grad_()
            embedded = (one_hot @ table.weight * scale).unsqueeze(0)
            logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[0]
            at = len(whole) - len(frame.target)
            loss = torch.nn.functional.cross_entropy(logits[at - 1 : -1], whole[at:], reduction="sum")
            (expected,) = torch.autograd.grad(loss, one_hot)
            found, slope = gradient(job, row, ids)
            assert found == pytest.approx(loss.item(), abs=1e-4)
            room = slice(len(frame.before), len(frame.before) + len(ids))
            torch.testing.assert_close(slopes(lm, slope, chunk=100), expected[room], rtol=1e-3, atol=2e-4)
