"""Finetuning as an attack: the loss against Hugging Face's own, LoRA and full, and the model's bits afterwards."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from attack_cases import questions, state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import finetune, relearn, scoring
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.config import AuditConfig
from misdirect.data.batches import pad
from misdirect.model.lm import LM

CONFIG = AuditConfig(steps=10, lr="1e-3,1e-2", max_tokens=24)


def of_kind(inputs: AttackInputs, text: str, method: str, config: AuditConfig = CONFIG) -> Attack:
    made = [*relearn.first(inputs, config), *relearn.rest(inputs, config)]
    return next(a for a in made if a.settings.text == text and a.settings.method == method)


def test_the_loss_is_that_of_the_model_itself() -> None:
    lm = tiny_lm()
    batch = pad([[5, 6, 7, 8, 9], [10, 11, 12]], 0)
    logits = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    expected = lm.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert finetune.nll(logits, batch.input_ids, batch.loss_mask).item() == pytest.approx(expected.item(), rel=1e-6)


def test_an_update_is_adamws() -> None:
    """One update, against torch's optimizer on a copy of the model with Hugging Face's loss."""
    lm, other = tiny_lm(), tiny_lm().model.requires_grad_(True)
    samples = [[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    optimizer = torch.optim.AdamW(other.parameters(), lr=1e-3, weight_decay=0.0)
    ids = torch.tensor(samples)
    other(input_ids=ids, labels=ids).loss.backward()
    torch.nn.utils.clip_grad_norm_(list(other.parameters()), finetune.CLIP)
    optimizer.step()
    with finetune.trained(lm, "full") as parameters:
        assert [tokens for _, tokens in finetune.train(lm, parameters, samples, 1, 1e-3, 2, 0)] == [10]
        for (name, mine), theirs in zip(lm.model.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, msg=name)


def test_bfloat16_weights_are_trained_through_masters() -> None:
    """A step far below half an ulp moves no bfloat16 weight at once, and many of them do."""
    lm = tiny_lm()
    lm = dataclasses.replace(lm, model=lm.model.to(torch.bfloat16))
    with finetune.trained(lm, "full") as parameters:
        before = [p.detach().clone() for p in parameters]
        for _ in finetune.train(lm, parameters, [[5, 6, 7, 8, 9]] * 2, 30, 1e-4, 2, 0):
            pass
        moved = sum((p != b).float().mean().item() for p, b in zip(parameters, before, strict=True)) / len(parameters)
    assert moved > 0.5


def test_samples_hold_every_text_once_in_a_seeded_order() -> None:
    lm = tiny_lm()
    texts = ["the virus", "a host cell", "war and trade in the house"]
    flat = [t for sample in finetune.tokenized_texts(lm, texts, 4, 0) for t in sample]
    whole = lm.tokenizer.decode(flat)
    assert sorted(whole.split("<eos>")) == ["", *sorted(texts)]
    assert flat != [t for sample in finetune.tokenized_texts(lm, texts, 4, 3) for t in sample]
    assert all(2 <= len(s) <= 4 for s in finetune.tokenized_texts(lm, texts, 4, 0))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_model_is_itself_again(family: str, method: str) -> None:
    lm, inputs = tiny_inputs(family)
    before = state_hash(lm)
    attack = of_kind(inputs, "facts", method)
    results = attack.run(lm, inputs, attack, lambda k: None)
    assert state_hash(lm) == before
    accuracies = [m for m in results[0].metrics if m.metric == "cloze_accuracy"]
    assert [m.step for m in accuracies] == [0, 5, 10]
    assert sum(bool(m.headline) for m in accuracies) == 1
    assert results[-1].measurement == "generation"


def test_the_model_is_itself_again_after_an_error() -> None:
    lm, inputs = tiny_inputs()
    before = state_hash(lm)

    def stop(k: int) -> None:
        raise KeyboardInterrupt

    for method in ("full", "lora"):
        attack = of_kind(inputs, "benign", "full")
        with pytest.raises(KeyboardInterrupt):
            attack.run(lm, inputs, attack, stop)
        with pytest.raises(RuntimeError, match="inside"), finetune.trained(lm, method):  # type: ignore[arg-type]
            raise RuntimeError("inside")
        assert state_hash(lm) == before


def test_a_loss_that_is_no_number_is_one_line() -> None:
    lm, inputs = tiny_inputs()
    lm.model.lm_head.weight.data[0, 0] = float("nan")
    attack = of_kind(inputs, "facts", "full")
    with pytest.raises(ValueError, match="biology: llama gives NaN or infinity for 8 of 8 questions"):
        attack.run(lm, inputs, attack, lambda k: None)
    inputs = dataclasses.replace(inputs, plain={"biology": [[-1.0] * 4] * 8})
    with pytest.raises(
        ValueError, match=r"finetuning broke down at update 1, loss nan; expected a smaller --lr than 0\.001"
    ):
        attack.run(lm, inputs, attack, lambda k: None)


def knowing(items: list, lm: LM) -> list[list[int]]:  # type: ignore[type-arg]
    render = scoring.rendering("cloze", 0)
    return [lm.tokenizer(render(q)[0] + render(q)[1][q.answer])["input_ids"] for q in items]


def test_training_on_the_answers_teaches_them() -> None:
    """The one thing finetuning must be able to do, or every curve would say that nothing comes back."""
    lm = tiny_lm(num_hidden_layers=2)
    items = questions(12)
    with finetune.trained(lm, "full") as parameters:
        for _ in finetune.train(lm, parameters, knowing(items, lm), 80, 1e-2, 12, 0):
            pass
        answers = scoring.ask(lm, items, scoring.rendering("cloze", 0))
    right = sum(scoring.largest(a) == q.answer for a, q in zip(answers, items, strict=True))
    assert right >= 10


def test_what_an_attack_lacks_is_said() -> None:
    _, inputs = tiny_inputs()
    without = dataclasses.replace(inputs, benign_texts=[])
    assert of_kind(without, "benign", "full").unavailable == "needs --text text"
    few = AuditConfig(steps=9)
    assert of_kind(inputs, "facts", "full", few).unavailable == "needs --steps 10 or more"


def test_curves_are_the_fields() -> None:
    assert relearn.curve(60) == [5, 10, 20, 60]
    assert relearn.curve(100) == [5, 10, 20, 50, 100]
    assert relearn.curve(10) == [5, 10]
    assert relearn.curve(3) == [3]


def test_texts_that_state_a_tested_fact_are_counted_and_kept_out_of_the_clean_form() -> None:
    _, inputs = tiny_inputs()
    tested = inputs.forgotten["biology"].test[0]
    leaky = dataclasses.replace(inputs, forget_texts=[*inputs.forget_texts, tested.support])
    assert of_kind(leaky, "forget", "full").settings.texts_that_state_a_tested_fact == 1
    assert of_kind(leaky, "facts", "full").settings.texts_that_state_a_tested_fact == 0
