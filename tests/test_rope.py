"""A text's value must not depend on its neighbours: tables of positions that grow with the longest row.

The oracle is plain transformers: every text alone, in a fresh copy of the model that has seen nothing before.
"""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from misdirect.attacks import finetune, optimize
from misdirect.attacks.gcg import loss
from misdirect.attacks.gcg.tree import PromptSlot
from misdirect.auditing.baseline import mean_states
from misdirect.cli.main import main
from misdirect.config import EvaluateConfig
from misdirect.data.batches import pad
from misdirect.data.prompts import Prompt
from misdirect.evaluation import generation
from misdirect.model import lens as model_lens
from misdirect.model import rope, states
from misdirect.model.blocks import find_blocks
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.model.score import Encoded, score, text_logprobs
from misdirect.unlearning.schedule import Samples, check_samples
from tiny import VOCABULARY, tiny_config, tiny_folder, tiny_model, tiny_tokenizer

CASES = Path(__file__).parents[2] / "shared" / "cases"
LIMIT = 24
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope", "factor": 8.0, "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT,
    "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dynamic": ("llama", {"max_position_embeddings": LIMIT, "rope_parameters": DYNAMIC}),
    "longrope": ("llama", {"rope_parameters": LONG}),
    "phi3": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": LIMIT}),
    "phimoe": ("phimoe", {"rope_parameters": LONG | {"short_mscale": 1.0, "long_mscale": 1.4}}),
    "partial": ("stablelm", {
        "max_position_embeddings": LIMIT, "rope_parameters": DYNAMIC | {"partial_rotary_factor": 0.5}}),
    "by layer": ("gemma3_text", {"sliding_window": 512, "max_position_embeddings": LIMIT, "rope_parameters": {
        "full_attention": DYNAMIC, "sliding_attention": PLAIN}}),
    "long by layer": ("gemma3_text", {"sliding_window": 512, "rope_parameters": {
        "full_attention": PLAIN, "sliding_attention": LONG}}),
}  # fmt: skip
LENGTHS = (5, 9, LIMIT - 1, LIMIT, LIMIT + 1, 31, 31, 40, 60)


def made(name: str) -> Any:
    """Configs change the dicts that they are given."""
    family, settings = copy.deepcopy(MODELS[name])
    return tiny_model(family, **settings)


def lm_of(model: Any) -> LM:
    name, blocks = find_blocks(model)
    return LM(model.requires_grad_(False), tiny_tokenizer(), "tiny", len(blocks), name)


def tokens(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(2, 300) for _ in range(length)]


TEXTS = [tokens(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def alone(model: Any, ids: list[int]) -> list[float]:
    """log p of every token but the first, in a model that was just made."""
    with torch.no_grad():
        logits = copy.deepcopy(model)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    return logits[:-1].log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


def test_a_text_has_the_value_that_it_has_alone(model: Any) -> None:
    expected = [alone(model, ids) for ids in TEXTS]
    lm = lm_of(copy.deepcopy(model))
    for batch_tokens in (4096, 1, 64, 100):
        for found, own in zip(text_logprobs(lm, TEXTS, batch_tokens), expected, strict=True):
            assert found == pytest.approx(own, abs=2e-4)
    backwards = text_logprobs(lm, TEXTS[::-1], 128)[::-1]  # after longer ones
    assert all(found == pytest.approx(own, abs=2e-4) for found, own in zip(backwards, expected, strict=True))


def test_the_oracle_would_see_the_fault(model: Any) -> None:
    """What transformers itself says of the short text beside the long one."""
    short, long = TEXTS[1], TEXTS[-1]
    batch = pad([short, long], 0)
    with torch.no_grad():
        logits = copy.deepcopy(model)(batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[0]
    found = logits[: len(short) - 1].log_softmax(-1).gather(-1, torch.tensor(short[1:])[:, None])[:, 0].tolist()
    assert max(abs(a - b) for a, b in zip(found, alone(model, short), strict=True)) > 1e-3


def test_questions_have_the_values_that_they_have_alone(model: Any) -> None:
    items = [
        Encoded(tokens(n, n), [tokens(k, n + k) for k in (1, 3, 9)]) for n in (4, 12, LIMIT - 3, LIMIT, 40, 15, 50)
    ]
    items.append(Encoded(tokens(LIMIT - 4, 99), [tokens(4, 1), tokens(5, 2)]))  # up to the limit, and beyond it
    expected = [[sum(alone(model, i.context + t)[-len(t) :]) for t in i.continuations] for i in items]
    lm, steps = lm_of(copy.deepcopy(model)), []
    for batch_tokens in (4096, 64, 4096):
        found = score(lm, items, batch_tokens, steps.append)
        assert all(f.logprobs == pytest.approx(own, abs=1e-3) for f, own in zip(found, expected, strict=True))
    assert sum(steps) == 3 * len(items)


def test_answers_are_those_of_transformers_alone(model: Any) -> None:
    words = VOCABULARY.split()
    prompts = [Prompt(str(n), (" ".join(words[:n]),)) for n in (2, 5, 9, 16, 22)]
    config = EvaluateConfig(new_tokens=12, chat_template="none")
    lm = lm_of(copy.deepcopy(model))
    text_logprobs(lm, TEXTS)
    found = generation.generation(lm, "x", prompts, config)
    for record, prompt in zip(found.records, prompts, strict=True):
        ids = tiny_tokenizer()(prompt.turns[0], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            said = copy.deepcopy(model).generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=1,
            )[0, ids.shape[1] :]
        assert record["text"] == tiny_tokenizer().decode(said, skip_special_tokens=True).strip()


def hidden_alone(model: Any, ids: list[int]) -> list[torch.Tensor]:
    """The residual stream before block 0 and after every block but the last, at the text's last token."""
    with torch.no_grad():
        found = copy.deepcopy(model)(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    return [state[0, -1] for state in found[:-1]]


def test_states_are_those_of_the_text_alone(model: Any) -> None:
    items = [Encoded(tokens(n, n), [tokens(k, n + k) for k in (1, 4)]) for n in (4, LIMIT - 4, LIMIT - 1, 40)]
    lm = lm_of(copy.deepcopy(model))
    found = states.last_states(lm, items)
    texts = [item.context + tail for item in items for tail in item.continuations]
    for row, ids in enumerate(texts):
        for place, own in enumerate(hidden_alone(model, ids)):
            torch.testing.assert_close(found[place, row], own, atol=1e-4, rtol=1e-4)


def test_the_lens_at_the_last_block_is_the_score(model: Any) -> None:
    items = [Encoded(tokens(n, n), [tokens(k, n + k) for k in (1, 4)]) for n in (4, LIMIT - 3, 40)]
    lm = lm_of(model)
    last = model_lens.lens(lm, items)[-1]
    for row, scored in zip(last, score(lm, items), strict=True):
        assert row == pytest.approx(scored.logprobs, abs=1e-3)


def test_a_training_step_is_the_mean_over_texts_alone(model: Any) -> None:
    samples = [TEXTS[i] for i in (0, 3, 5, 8)]
    lm = lm_of(copy.deepcopy(model))
    with finetune.trained(lm, "full") as parameters:
        list(finetune.train(lm, parameters, samples, 1, 0.01, len(samples), 0))
        moved = [p.detach().clone() for p in parameters]
    total = sum(len(ids) - 1 for ids in samples)
    plain = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    for ids in samples:  # each in a fresh copy, the gradients summed
        fresh = copy.deepcopy(model).requires_grad_(True)
        logits = fresh(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        (torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum") / total).backward()
        for p, q in zip(plain.parameters(), fresh.parameters(), strict=True):
            if q.grad is not None:
                p.grad = q.grad.clone() if p.grad is None else p.grad + q.grad
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    close = [(a - b).abs().median() < 1e-4 for a, b in zip(moved, plain.parameters(), strict=True)]
    assert all(close)  # Adam's first step is the sign of the gradient, so single entries near 0 may differ


def test_the_loss_of_training_questions_is_each_one_s_alone(model: Any) -> None:
    items = [Encoded(tokens(n, n), [tokens(3, n + 1)]) for n in (40, 5, LIMIT - 3, 50)]
    found = optimize.nlls(lm_of(copy.deepcopy(model)), items)
    own = [-sum(alone(model, i.context + i.continuations[0])[-3:]) / 3 for i in items]
    assert found.tolist() == pytest.approx(own, abs=1e-4)


def test_searched_text_beyond_the_limit_is_scored_plainly() -> None:
    lm = lm_of(made("longrope"))
    slot = lambda n: PromptSlot(tuple(tokens(n, n)), tuple(tokens(4, n)), tuple(tokens(2, 7)), "", "")  # noqa: E731
    assert loss.possible_forms(lm, [slot(5)], 4) == ["tree", "cached", "plain"]
    assert loss.possible_forms(lm, [slot(5), slot(20)], 4) == ["plain"]


def test_mean_states_are_those_of_each_text_alone() -> None:
    model = made("longrope")
    texts = ["the river house", "the river " * 20, "stone bread north"]
    mean, _ = mean_states(lm_of(copy.deepcopy(model)), texts, 0)
    parts = []
    for text in texts:
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            hidden = copy.deepcopy(model)(ids, output_hidden_states=True, use_cache=False).hidden_states[1]
        parts.append(hidden[0, 1:])
    torch.testing.assert_close(mean[0], torch.cat(parts).mean(0), atol=1e-5, rtol=1e-4)


def test_unlearning_says_where_a_long_sample_changes_its_batch(capsys: pytest.CaptureFixture[str]) -> None:
    lm = lm_of(made("longrope"))
    check_samples(lm, Samples({"a": [TEXTS[0]]}, {"b": [TEXTS[3]]}, [1.0]))
    assert capsys.readouterr().err == ""
    check_samples(lm, Samples({"a": [TEXTS[0]]}, {"b": [TEXTS[5]]}, [1.0]))
    assert f"--max-tokens {LIMIT} trains every sample as if it stood alone" in " ".join(capsys.readouterr().err.split())


class Stretched(nn.Module):
    """Rotary positions in somebody's own code: stretched by the longest row of the pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return self.inner(x, position_ids.float() * (1 if x.shape[1] <= LIMIT else 0.25))


def test_code_of_others_is_tried_and_every_text_then_runs_alone() -> None:
    model = tiny_model("llama")
    model.model.rotary_emb = Stretched(model.model.rotary_emb)
    expected = [alone(model, ids) for ids in TEXTS]
    lm = lm_of(copy.deepcopy(model))
    text_logprobs(lm, TEXTS[:2])
    assert rope.reach(lm.model) == sys.maxsize, "short texts show nothing"
    for found, own in zip(text_logprobs(lm, TEXTS), expected, strict=True):
        assert found == pytest.approx(own, abs=1e-4)
    assert rope.reach(lm.model) == 0
    assert rope.apart(lm.model, [3, 3, 5]) == [[0], [1], [2]]
    item = Encoded(TEXTS[1], [TEXTS[0], TEXTS[5]])
    own = [sum(alone(model, item.context + tail)[-len(tail) :]) for tail in item.continuations]
    assert score(lm, [item])[0].logprobs == pytest.approx(own, abs=1e-3)
    other = lm_of(copy.deepcopy(model))
    other_items = [Encoded(TEXTS[0], [TEXTS[1]]), Encoded(TEXTS[4], [TEXTS[5]])]
    sums = [sum(alone(model, i.context + i.continuations[0])[-len(i.continuations[0]) :]) for i in other_items]
    assert [s.logprobs[0] for s in score(other, other_items)] == pytest.approx(sums, abs=1e-3)


class Kept(Stretched):
    """The same, and it stays stretched."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        self.longest = max(x.shape[1], getattr(self, "longest", 0))
        return self.inner(x, position_ids.float() * (1 if self.longest <= LIMIT else 0.25))


def test_code_of_others_that_keeps_a_longer_text_s_table_is_refused() -> None:
    model = tiny_model("llama")
    model.model.rotary_emb = Kept(model.model.rotary_emb)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM, .* gives a text other values after a longer one"):
        text_logprobs(lm_of(model), TEXTS)


class Sound(LlamaForCausalLM):
    """Other people's class that does nothing of its own."""


def test_sound_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for family in ("llama", "gpt2", "gemma3_text", "jamba"):
        model = tiny_model(family)
        assert rope.reach(model) == sys.maxsize
        assert not any(m._forward_pre_hooks for m in model.modules())
        assert rope.apart(model, [3, 900, 3]) == [[0, 1, 2]]
        assert not rope.foreign(model)
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": LIMIT}
    for given in (PLAIN, yarn, {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}):
        assert rope.reach(tiny_model("llama", rope_parameters=given)) == sys.maxsize
    passes: list[int] = []
    sound = lm_of(tiny_model("llama"))
    sound.model.register_forward_hook(lambda *_: passes.append(1))
    text_logprobs(sound, TEXTS)
    assert passes == [1], "no pass more than before"
    config = tiny_config("llama")
    text_logprobs(foreign := lm_of(Sound(config).eval()), TEXTS)
    assert rope.reach(foreign.model) == sys.maxsize


def test_a_model_as_loaded_depends_on_no_text_before(tmp_path: Path) -> None:
    """Also where its own forward pass is called: the table of a long text does not stay."""
    family, settings = copy.deepcopy(MODELS["dynamic"])
    lm = load_lm(str(tiny_folder(tmp_path, family, **settings)))
    middle = torch.tensor([TEXTS[4]])
    with torch.no_grad():
        before = lm.model(middle).logits
        lm.model(torch.tensor([TEXTS[-1]]))
        assert torch.equal(lm.model(middle).logits, before)


def test_evaluate_gives_the_same_at_any_batch(tmp_path: Path) -> None:
    family, settings = copy.deepcopy(MODELS["dynamic"])
    folder = tiny_folder(tmp_path, family, **settings)
    texts = ["the river house", "stone bread north south " * 9, "winter morning", "the virus cell protein gene " * 14]
    (tmp_path / "w.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = made("dynamic")
    expected = [math.fsum(alone(model, tiny_tokenizer()(text)["input_ids"])) for text in texts]
    for batch_tokens in ("1", "4096"):
        out = tmp_path / batch_tokens
        arguments = ["--text", f"w={tmp_path / 'w.jsonl'}", "--batch-tokens", batch_tokens, "--out", str(out)]
        assert main(["evaluate", str(folder), *arguments]) == 0
        records = json.loads((out / "results/base/nll.w.json").read_text())["records"]
        assert [r["logprob"] for r in records] == pytest.approx(expected, abs=1e-2)


@pytest.mark.skipif(not CASES.is_dir(), reason="the given cases lie beside a checkout, in ../shared")
@pytest.mark.parametrize("batch_tokens", ["1", "100", "300", "4096"])
def test_the_given_case(batch_tokens: str, tmp_path: Path) -> None:
    arguments = ["--text", f"w={CASES / 'mixed-lengths.jsonl'}", "--batch-tokens", batch_tokens, "--out", str(tmp_path)]
    assert main(["evaluate", str(CASES / "longrope"), *arguments]) == 0
    wanted = json.loads((CASES / "expected.json").read_text())
    (expected,) = (values for key, values in wanted.items() if key.startswith("longrope"))
    records = json.loads((tmp_path / "results/base/nll.w.json").read_text())["records"]
    assert [r["logprob"] for r in records] == pytest.approx(expected, abs=1e-3)


def test_eight_bits_with_outliers_are_those_of_each_text_alone(tmp_path: Path) -> None:
    """LLM.int8() computes a column otherwise for a whole pass once one of its rows has a large value there."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent: pip install 'misdirect[quant]'")
    model = tiny_model("llama", num_hidden_layers=2)
    with torch.no_grad():
        model.get_input_embeddings().weight[[100, 101], 5] = 30.0  # two tokens that the shorter texts do not hold
    model.save_pretrained(tmp_path / "full")
    eight = LlamaForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=4.0)
    )
    eight.save_pretrained(tmp_path / "eight")
    tiny_tokenizer().save_pretrained(tmp_path / "eight")
    texts = [list(range(10, 20)), [*range(30, 38), 100, 101, 102], list(range(40, 52))]
    lm = load_lm(str(tmp_path / "eight"), device="cpu", dtype="float32", dequantize=False)
    expected = [alone(lm.model, text) for text in texts]
    with torch.no_grad():
        together = lm.model(torch.tensor([texts[0], texts[1][:10]])).logits[0].log_softmax(-1)
    beside = [together[i, token].item() for i, token in enumerate(texts[0][1:])]
    assert beside != pytest.approx(expected[0], abs=1e-4)  # the oracle would see the fault
    for found, values in zip(text_logprobs(lm, texts), expected, strict=True):
        assert found == pytest.approx(values, abs=1e-5)
