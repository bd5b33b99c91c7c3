"""The engine, the scorer and a short run on the real SmolLM2-135M-Instruct."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import misdirect as md
from misdirect import stats
from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.data import demo
from misdirect.data.batches import pad, pad_id, tokenize
from misdirect.data.questions import Question, read_questions
from misdirect.data.templates import cloze_prompt, letter_prompt, sample
from misdirect.evaluation import mcq
from misdirect.model.activations import capture
from misdirect.model.demo import model_folder
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.model.score import Encoded, encode, score

pytestmark = pytest.mark.real
BLOCK = 7


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def asked() -> list[Question]:
    return read_questions("demo-biology")


def encoded(lm: LM, questions: list[Question]) -> list[Encoded]:
    """Each question in both formats."""
    cloze = [encode(lm.tokenizer, cloze_prompt(q.question), [" " + c for c in q.choices]) for q in questions]
    return cloze + [encode(lm.tokenizer, letter_prompt(q, "plain"), [" A", " B", " C"]) for q in questions]


def full_forward(lm: LM, ids: list[int], start: int) -> list[float]:
    """log p of ids[start:], each token by itself, out of one forward pass over the whole text."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    logprobs = logits.log_softmax(-1)
    return [logprobs[i - 1, ids[i]].item() for i in range(start, len(ids))]


def largest_difference(lm: LM, items: list[Encoded]) -> float:
    """Of `score` from plain full forwards, in nats per token."""
    worst = 0.0
    for item, found in zip(items, score(lm, items), strict=True):
        for tail, value in zip(item.continuations, found.logprobs, strict=True):
            expected = sum(full_forward(lm, item.context + tail, len(item.context)))
            worst = max(worst, abs(value - expected) / len(tail))
    return worst


def test_scores_of_real_questions_are_those_of_plain_full_forwards(lm: LM, asked: list[Question]) -> None:
    items = encoded(lm, sample(asked, 6, seed=1))
    assert any(len(tail) > 3 for item in items for tail in item.continuations)
    # a plain forward pass in fp32 is itself 2e-5 a token from one in float64
    assert largest_difference(lm, items) < 1e-4


def test_and_in_float64_to_its_precision(lm: LM, asked: list[Question]) -> None:
    double = dataclasses.replace(lm, model=load_lm("demo", device="cpu", dtype="float32").model.double())
    assert largest_difference(double, encoded(double, sample(asked, 2, seed=2))) < 1e-9


def test_the_prefix_alone_computes_the_whole_models_states_bit_for_bit(lm: LM) -> None:
    prefix = load_lm("demo", last=BLOCK, device="cpu", dtype="float32")
    assert len(prefix.blocks) == BLOCK + 1
    assert prefix.num_hidden_layers == len(lm.blocks) == 30
    texts = [str(row["text"]) for row in demo.rows("demo-forget")[:4]]
    batch = pad(tokenize(lm.tokenizer, texts, 96)[:4], pad_id(lm.tokenizer))
    states = []
    for one in (lm, prefix):
        seen = capture(one.model, one.blocks, 5, BLOCK, batch.input_ids, batch.attention_mask)
        states.append(seen.output)
    with torch.no_grad():
        whole = lm.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
        ).hidden_states[BLOCK + 1]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[1], whole)


def test_the_base_knows_biology(lm: LM, asked: list[Question]) -> None:
    config = EvaluateConfig(limit=40, formats="cloze", seed=3)
    result = mcq.mcq(lm, "biology", asked, config)
    row: Any = next(row for row in result.metrics if row.metric == "cloze_accuracy")
    assert row.n == 40
    low, _ = stats.wilson(round(row.value * 40), 40)
    assert low > row.chance
    assert row.value > row.floor


def test_a_short_run_moves_forget_text_and_leaves_the_model_file(tmp_path: Path) -> None:
    weights = model_folder() / "model.safetensors"

    def print_of(path: Path) -> str:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    before = print_of(weights), weights.stat().st_mtime_ns
    run = md.unlearn(
        "demo",
        forget={"biology": "demo-forget"},
        retain={"wikipedia": "demo-retain-wikipedia"},
        out=tmp_path / "run",
        config=UnlearnConfig(
            recipe="demo", updates=6, batch_size=2, retain_batch_size=2, max_tokens=64, warmup=0, schedule="constant"
        ),
    )
    assert (print_of(weights), weights.stat().st_mtime_ns) == before
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert len(log) == 6
    assert log[-1]["cosine"] > log[0]["cosine"] + 0.01
    assert log[-1]["forget_loss"] < log[0]["forget_loss"]
    assert log[0]["retain_loss"] == 0.0  # nothing had been changed yet
    assert all(0 < line["tokens"] <= 2 * 2 * 64 for line in log)
