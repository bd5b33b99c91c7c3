"""The logit lens is the model itself at the last block, and the model's own tail at every other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import tiny
from attack_cases import questions, state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import lens, scoring
from misdirect.config import AuditConfig
from misdirect.model import lens as model_lens
from misdirect.model import states
from misdirect.model.hooks import hooked
from misdirect.model.lm import LM
from misdirect.model.packed import Encoded
from misdirect.model.score import encode, score, score_plainly

# A capped head (gemma2), a tied one (gemma2, gpt2), Conv1D (gpt2), experts (mixtral), scaled logits (cohere, granite), a
# scaled state before the head (minicpm3), states across tokens (mamba), a window shorter than the questions (mistral).
FAMILIES = [
    "llama",
    "gpt2",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "mixtral",
    "cohere",
    "granite",
    "minicpm3",
    "mamba",
    "mistral",
]


def asked(lm: LM, count: int = 3, form: str = "cloze") -> list[Encoded]:
    """Questions and choices of unequal length, so that rows are padded."""
    render = scoring.rendering(form, 0)  # type: ignore[arg-type]
    uneven = [
        dataclasses.replace(
            q, question=" ".join(q.question.split()[i:]), choices=(q.choices[0], "stone", *q.choices[2:])
        )
        for i, q in enumerate(questions(count))
    ]
    return [encode(lm.tokenizer, *render(q)) for q in uneven]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_block_is_the_model(family: str) -> None:
    lm = tiny_lm(family)
    items = asked(lm)
    own, found = score_plainly(lm, items), model_lens.lens(lm, items)
    assert len(found) == tiny.LAYERS
    for scored, row in zip(own, found[-1], strict=True):
        assert row == pytest.approx(scored.logprobs, abs=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_or_not(tied: bool) -> None:
    lm = tiny_lm("llama", tie_word_embeddings=tied)
    items = asked(lm, form="letter")
    assert (lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight) is tied
    own = [scored.logprobs for scored in score(lm, items)]
    assert torch.allclose(torch.tensor(model_lens.lens(lm, items)[-1]), torch.tensor(own), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_middle_block_is_read_through_norm_head_and_cap(family: str) -> None:
    """The oracle knows the family: norm, head, cap by name, one text at a time."""
    lm = tiny_lm(family)
    if family == "gemma2":
        assert lm.model.config.final_logit_softcapping == 30.0
        with torch.no_grad():
            lm.model.get_output_embeddings().weight.mul_(40)  # far enough for the cap to bite
    item, block = asked(lm, 1)[0], 2
    found = model_lens.lens(lm, [item])[block][0]
    for tail, value in zip(item.continuations, found, strict=True):
        ids = torch.tensor([item.context + tail])
        with torch.no_grad():
            hidden = lm.model.model(ids, output_hidden_states=True).hidden_states[block + 1]
            logits = lm.model.lm_head(lm.model.model.norm(hidden))[0]
            if family == "gemma2":
                capped = 30 * torch.tanh(logits / 30)
                assert (capped - logits).abs().max() > 1
                logits = capped
        logprobs = logits[len(item.context) - 1 : -1].log_softmax(-1)
        assert value == pytest.approx(logprobs.gather(1, torch.tensor(tail)[:, None]).sum().item(), abs=1e-3)


def test_parts_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    items = asked(lm, 6)
    whole = torch.tensor(model_lens.lens(lm, items))
    monkeypatch.setattr(lens, "MAX_LOGITS", 3 * len(lm.tokenizer))
    assert torch.allclose(whole, torch.tensor(model_lens.lens(lm, items, batch_tokens=64)), atol=1e-5)


def test_a_tail_that_is_not_the_models_own_is_refused() -> None:
    lm = tiny_lm()
    add_by_length = lambda module, args, output: output + args[0].shape[1]  # noqa: E731
    with (
        hooked([lambda: lm.blocks[-1].register_forward_hook(add_by_length)]),
        hooked([lambda: lm.model.model.norm.register_forward_hook(add_by_length)]),
        pytest.raises(ValueError, match="do not give the model's own logits"),
    ):
        model_lens.lens(lm, asked(lm))
    with pytest.raises(ValueError, match="GPTBigCodeForCausalLM do not give the model's own logits"):
        model_lens.check(tiny_lm("gpt_bigcode"))


@pytest.mark.parametrize("form", ["cloze", "letter", "letter_permuted"])
def test_an_attack_gives_a_point_a_block_and_leaves_the_model_alone(form: str) -> None:
    lm, inputs = tiny_inputs(form=form)  # type: ignore[arg-type]
    attack, other = lens.attacks(inputs, AuditConfig())
    assert (attack.name, other.name) == (
        ("lens-cloze", "lens-letter") if form == "cloze" else ("lens-letter", "lens-cloze")
    )
    before, steps = state_hash(lm), []
    found = {result.set: result for result in attack.run(lm, inputs, attack, steps.append)}
    assert state_hash(lm) == before
    assert sum(steps) == attack.num_steps == 16
    assert set(found) == {"biology", "other"}
    rows = [m for m in found["biology"].metrics if m.metric == f"{form}_accuracy"]
    assert [row.block for row in rows] == list(range(tiny.LAYERS))
    baseline_attack = scoring.score_sets(lm, inputs)
    for record, own in zip(found["biology"].records, baseline_attack["biology"], strict=True):
        assert record["points"][-1]["logprobs"] == pytest.approx(own, abs=1e-4)
        assert record["points"][0]["logprobs"] != pytest.approx(own, abs=1e-2)
    asked_otherwise = {result.set: result for result in other.run(lm, inputs, other, lambda count: None)}
    name = "cloze_accuracy" if form != "cloze" else "letter_accuracy"
    assert [m.block for m in asked_otherwise["biology"].metrics if m.metric == name] == list(range(tiny.LAYERS))
    found_otherwise = [record["points"][-1]["logprobs"] for record in asked_otherwise["biology"].records]
    assert found_otherwise != [record["points"][-1]["logprobs"] for record in found["biology"].records]


def test_a_model_that_says_nan_has_no_accuracy() -> None:
    lm, inputs = tiny_inputs(count=8)
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(torch.nan)
    attack, _ = lens.attacks(inputs, AuditConfig())
    with pytest.raises(ValueError, match="block 0: llama gives NaN or infinity for 4 of 4 questions"):
        attack.run(lm, inputs, attack, lambda k: None)


def test_the_model_is_whole_after_an_error() -> None:
    lm, inputs = tiny_inputs(count=8)
    attack, _ = lens.attacks(inputs, AuditConfig())
    before = state_hash(lm)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.run(lm, inputs, attack, stop)
    assert state_hash(lm) == before


# states


def plainly(lm: LM, ids: list[int]) -> torch.Tensor:
    """Hidden states of one text alone, as transformers gives them; the last is after the final norm and is left out."""
    with torch.no_grad():
        output = lm.model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
    return torch.stack([hidden[0] for hidden in output.hidden_states[:-1]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "mamba"])
def test_states_are_those_of_a_text_alone(family: str) -> None:
    lm = tiny_lm(family)
    items = asked(lm, 5)
    assert states.takes_packed(lm, items) is (family in ("llama", "gpt2", "mixtral"))
    found = states.last_states(lm, items, batch_tokens=300)
    texts = [item.context + tail for item in items for tail in item.continuations]
    assert found.shape == (tiny.LAYERS + 1, len(texts), tiny.WIDTH)
    assert len({len(text) for text in texts}) > 1  # so that rows are padded
    for row, text in enumerate(texts):
        own = found[1:, row] if family == "mamba" else found[:-1, row]  # transformers' list begins after block 0 there
        assert torch.allclose(own, plainly(lm, text)[:, -1], atol=1e-4)


def test_padding_changes_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    items = asked(lm, 5)
    packed_rows = states.last_states(lm, items)
    monkeypatch.setattr(states, "takes_packed", lambda *_: False)
    alone, together = states.last_states(lm, items, batch_tokens=1), states.last_states(lm, items, batch_tokens=4096)
    assert torch.allclose(alone, together, atol=1e-5)
    assert torch.allclose(alone, packed_rows, atol=1e-5)


def test_an_empty_continuation_is_the_contexts_last_token() -> None:
    lm = tiny_lm()
    (item,) = asked(lm, 1)
    found = states.last_states(lm, [Encoded(item.context, [[]])])
    assert torch.allclose(found[:-1, 0], plainly(lm, item.context)[:, -1], atol=1e-5)


def test_other_streams_are_refused() -> None:
    lm = tiny_lm("gemma3n_text")
    with pytest.raises(ValueError, match="has no single residual stream that passes each block once"):
        states.states_at(lm, {"input_ids": torch.tensor([[5, 6]])}, torch.tensor([1]))
    lm = tiny_lm("mllama")
    with pytest.raises(ValueError, match="block 4 does not run on text alone"):
        states.states_at(lm, {"input_ids": torch.tensor([[5, 6]])}, torch.tensor([1]))
