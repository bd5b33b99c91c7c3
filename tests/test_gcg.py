"""GCG against exhaustive search and autograd on tiny models, and the attacks made of it."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from attack_cases import state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import resume
from misdirect.attacks.gcg import attack as gcg
from misdirect.attacks.gcg import loss as gcg_loss
from misdirect.attacks.gcg import search as gcg_search
from misdirect.attacks.gcg.loss import Ids, PromptSlot, gradient, job_of, losses, slopes
from misdirect.attacks.gcg.search import (
    PromptTemplate,
    SearchSettings,
    State,
    allowed_tokens,
    merges,
    prompt_slots,
    retokenizes,
    search,
    start,
    swapped,
    text_of,
)
from misdirect.attacks.scoring import rendering
from misdirect.config import AuditConfig
from misdirect.model.lm import LM
from misdirect.model.score import encode, score

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
TEMPLATES = [
    PromptTemplate("Question: Which river is in the north?", "\nAnswer:", " the water"),
    PromptTemplate("Question: The host of a virus is", "\nAnswer:", " cell protein"),
    PromptTemplate("", "\nQuestion: Which light?\nAnswer:", " morning"),
]


def slots_of(lm: LM, count: int = 3, num_tokens: int = 5) -> tuple[list[PromptSlot], Ids]:
    return prompt_slots(lm.tokenizer, TEMPLATES[:count], num_tokens)


def obvious_loss(lm: LM, slot: PromptSlot, ids: Ids) -> float:
    """By one full forward pass and the definition."""
    whole = [*slot.before, *ids, *slot.after, *slot.target]
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([whole]), use_cache=False).logits[0].double()
    at = len(whole) - len(slot.target)
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
    slots, ids = slots_of(lm)
    candidates = candidates_of(lm, ids)
    expected = [[obvious_loss(lm, slot, c) for c in candidates] for slot in slots]
    assert set(gcg_loss.possible_forms(lm, slots, len(ids))) >= {*forms, "plain"}
    for form in sorted({*forms, "plain"}):
        job = job_of(lm, slots, ids, 300, form)  # type: ignore[arg-type]
        assert job.form == form
        for row in range(len(slots)):
            assert losses(job, [row], candidates, ids)[0].tolist() == pytest.approx(expected[row], abs=1e-4, rel=1e-5)
    assert job_of(lm, slots, ids).form == ("tree" if "tree" in forms else "cached" if forms else "plain")


@pytest.mark.parametrize(("family", "more", "forms"), FAMILIES, ids=NAMES)
def test_gradient_is_autograds_on_the_plain_one_hot_form(family: str, more: dict[str, Any], forms: set[str]) -> None:
    lm = tiny_lm(family, **more)
    slots, ids = slots_of(lm)
    table = lm.model.get_input_embeddings()
    scale = float(getattr(table, "scalar_embed_scale", 1.0))
    for form in sorted({*forms, "plain"}):
        job = job_of(lm, slots, ids, form=form)  # type: ignore[arg-type]
        for row, slot in enumerate(slots):
            whole = torch.tensor([*slot.before, *ids, *slot.after, *slot.target])
            one_hot = torch.nn.functional.one_hot(whole, table.weight.shape[0]).float().requires_grad_()
            embedded = (one_hot @ table.weight * scale).unsqueeze(0)
            logits = lm.model(inputs_embeds=embedded, use_cache=False).logits[0]
            at = len(whole) - len(slot.target)
            loss = torch.nn.functional.cross_entropy(logits[at - 1 : -1], whole[at:], reduction="sum")
            (expected,) = torch.autograd.grad(loss, one_hot)
            (found,), slope = gradient(job, [row], ids)
            assert found.item() == pytest.approx(loss.item(), abs=1e-4)
            room = slice(len(slot.before), len(slot.before) + len(ids))
            torch.testing.assert_close(slopes(lm, slope, chunk=100), expected[room], rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("family", "form"), [("llama", "tree"), ("gpt2", "cached"), ("mixtral", "plain")])
def test_a_step_takes_the_best_of_all_single_swaps(family: str, form: gcg_loss.Form) -> None:
    lm = tiny_lm(family)
    slots, ids = slots_of(lm, 2, num_tokens=4)
    job = job_of(lm, slots, ids, 4096, form)
    allowed = allowed_tokens(lm).nonzero().flatten().tolist()
    every = [swapped(ids, [(p, v)]) for p in range(4) for v in allowed if v != ids[p]]
    every = [c for c, good in zip(every, retokenizes(lm.tokenizer, slots, every), strict=True) if good]
    assert len(every) > 300
    sums = [plain_losses(lm, slot, every) for slot in slots]
    mean = [sum(pair) / len(slots) for pair in zip(*sums, strict=True)]
    best = min(range(len(every)), key=mean.__getitem__)
    found = search(job, start(job, ids), 1, SearchSettings(candidates=10**6, top_k=10**6, merged=0))
    assert found.ids == every[best]
    assert found.loss == pytest.approx(mean[best], abs=1e-5)
    assert found.loss < found.log[0]


def plain_losses(lm: LM, slot: PromptSlot, candidates: list[Ids]) -> list[float]:
    """All of one length, so one full forward pass without a cache gives them all."""
    rows = torch.tensor([[*slot.before, *ids, *slot.after, *slot.target] for ids in candidates])
    with torch.no_grad():
        logprobs = lm.model(input_ids=rows, use_cache=False).logits.double().log_softmax(-1)
    at = rows.shape[1] - len(slot.target)
    return (-logprobs[:, at - 1 : -1].gather(-1, rows[:, at:, None]).sum((1, 2))).tolist()


def test_in_double_precision_the_forms_are_one() -> None:
    lm = tiny_lm("llama")
    lm.model.double()
    slots, ids = slots_of(lm)
    candidates = candidates_of(lm, ids)
    plain = losses(job_of(lm, slots, ids, form="plain"), range(3), candidates, ids)
    slope = gradient(job_of(lm, slots, ids, form="plain"), range(3), ids)
    for form, batch_tokens in (("cached", 128), ("tree", 4096), ("tree", 128)):
        job = job_of(lm, slots, ids, batch_tokens, form)  # type: ignore[arg-type]
        torch.testing.assert_close(losses(job, range(3), candidates, ids), plain, rtol=0, atol=1e-10)
        torch.testing.assert_close(losses(job, [2, 0], candidates, ids), plain[[2, 0]], rtol=0, atol=1e-10)
        torch.testing.assert_close(gradient(job, range(3), ids), slope, rtol=0, atol=1e-9)


def test_half_precision_is_searched_too() -> None:
    lm = tiny_lm("llama")
    lm.model.bfloat16()
    slots, ids = slots_of(lm, 1)
    job = job_of(lm, slots, ids)
    assert job.form == "tree"
    found = search(job, start(job, ids), 4, SearchSettings(candidates=16))
    assert found.loss < found.log[0]


def test_a_form_that_disagrees_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm)
    right = gcg_loss.tree_losses
    monkeypatch.setattr(gcg_loss, "tree_losses", lambda *args: right(*args) + 0.1)
    assert job_of(lm, slots, ids).form == "cached"


def test_a_cache_is_not_written_to() -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 1)
    for form in ("tree", "cached"):
        job = job_of(lm, slots, ids, form=form)  # type: ignore[arg-type]
        before = [layer.keys.clone() for layer in job.caches[0].layers]
        first = losses(job, [0], candidates_of(lm, ids), ids)
        gradient(job, [0], ids)
        assert job.caches[0].get_seq_length() == len(slots[0].before)
        assert all(torch.equal(a, layer.keys) for a, layer in zip(before, job.caches[0].layers, strict=True))
        assert torch.equal(first, losses(job, [0], candidates_of(lm, ids), ids))


def test_a_search_that_goes_on_finds_the_same_bit_for_bit() -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 3)
    job, settings = job_of(lm, slots, ids), SearchSettings(candidates=12, prefiltered=1, seed=4)
    saved: list[str] = []
    whole = search(job, start(job, ids), 8, settings, save=lambda s: saved.append(json.dumps(dataclasses.asdict(s))))
    assert whole.step == len(saved) == 8
    for step in (0, 3, 6):
        assert search(job, State.from_json(json.loads(saved[step])), 8, settings) == whole
    assert search(job, start(job, ids), 8, dataclasses.replace(settings, seed=5)) != whole


def test_the_text_never_gets_worse_and_can_be_typed() -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 3)
    job = job_of(lm, slots, ids)
    steps: list[State] = []
    found = search(job, start(job, ids), 12, SearchSettings(candidates=16, prefiltered=2), save=steps.append)
    assert list(found.log) == sorted(found.log, reverse=True) and found.log[-1] < found.log[0] - 0.5
    for state in steps:
        text = text_of(lm.tokenizer, slots[0], state.ids)
        assert text.isascii() and text.isprintable()
        for slot, template in zip(slots, TEMPLATES, strict=True):
            typed = lm.tokenizer(template.before + text + template.after + template.target)["input_ids"]
            assert typed == [*slot.before, *state.ids, *slot.after, *slot.target]
        exact = sum(obvious_loss(lm, slot, state.ids) for slot in slots) / 3
        assert state.loss == pytest.approx(exact, abs=1e-4)


def test_no_text_is_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one position every text is a swap away from every other."""
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 1, 1)
    job = job_of(lm, slots, ids)
    seen: list[Ids] = []
    true = gcg_search.mean_losses

    def watching(job: Any, candidates: Any, *rest: Any) -> Any:
        seen.extend(candidates)
        return true(job, candidates, *rest)

    monkeypatch.setattr(gcg_search, "mean_losses", watching)
    found = search(job, start(job, ids), 12, SearchSettings(candidates=10, top_k=60))
    assert 2 < len(set(found.log)) < len(found.log), "some steps must fail and some not, or nothing is shown"
    assert len(seen) == len(set(seen)) > 40


def test_untypable_texts_are_left_out() -> None:
    """Two tokens that the tokenizer would write as one, and a token that merges with what stands before."""
    lm = tiny_lm("llama")
    tokenizer = lm.tokenizer
    slots, _ = slots_of(lm, 1, 5)
    whole = next(i for i in range(len(tokenizer)) if tokenizer.decode([i]) == " water")
    cuts = [[tokenizer(part)["input_ids"] for part in (" water"[:cut], " water"[cut:])] for cut in range(1, 6)]
    halves = next(pair for pair in cuts if all(len(part) == 1 for part in pair))
    split = (halves[0][0], halves[1][0], whole, whole, whole)
    assert retokenizes(tokenizer, slots, [(whole,) * 5, split]) == [True, False]


def test_what_a_text_may_hold() -> None:
    lm = tiny_lm("llama")
    allowed = allowed_tokens(lm)
    pieces = [lm.tokenizer.decode([i]) for i in allowed.nonzero().flatten().tolist()]
    assert " water" in pieces and "!" in pieces
    assert not {"<pad>", "<eos>", "\n", " ", "\t"} & set(pieces)
    assert all(piece.isascii() and piece.isprintable() for piece in pieces)
    assert len(allowed) == lm.model.get_input_embeddings().weight.shape[0]


def test_merged_swaps_are_at_different_positions() -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 1, 5)
    job = job_of(lm, slots, ids)
    water, house, light = (lm.tokenizer(x)["input_ids"][0] for x in (" water", " house", " light"))
    swaps = [(0, water), (0, house), (3, house), (1, light)]
    assert merges(job, ids, swaps, 6) == [
        swapped(ids, [(0, water), (3, house)]),
        swapped(ids, [(0, water), (3, house), (1, light)]),
    ]


def test_a_model_that_emits_nan_stops_the_search() -> None:
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 1)
    job = job_of(lm, slots, ids)
    lm.model.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="loss of an adversarial text is nan; expected a model with finite") as error:
        start(job, ids)
    assert "\n" not in str(error.value)


CONFIG = AuditConfig(gcg_steps=20, gcg_candidates=8, suffix_tokens=4)


@pytest.mark.parametrize(
    ("form", "where"), [("cloze", "suffix"), ("cloze", "prefix"), ("letter", "prefix"), ("letter_permuted", "suffix")]
)
def test_a_universal_attack_asks_what_it_searched(form: Any, where: gcg.Where) -> None:
    lm, inputs = tiny_inputs(form=form)
    attack = next(a for a in gcg.attacks(inputs, CONFIG) if a.name == f"gcg-{where}-universal")
    assert attack.recovers and not attack.unavailable and attack.attacker_access == "gradients"
    before, done = state_hash(lm), []
    found, spoken = attack.run(lm, inputs, attack, done.append)
    assert state_hash(lm) == before and sum(done) == attack.num_steps == 20
    rows = {m.metric: m for m in found.metrics if m.step is None}
    assert rows["train_answer_nll_end"].value < rows["train_answer_nll_start"].value
    assert rows["positive_control"].value in (0.0, 1.0) and rows["attack_tokens"].value > 0
    assert [m.step for m in found.metrics if m.metric == f"{form}_accuracy"] == [0, 10, 20]
    assert "text" not in found.config
    halves = inputs.forgotten["biology"]
    assert [r["id"] for r in found.records] == [q.id for q in halves.test]
    render = rendering(inputs.forms["biology"], inputs.seed)
    text = found.records[0]["points"][-1]["text"]
    assert (spoken.measurement, len(spoken.records)) == ("generation", 8) and all(
        text in r["prompt"] for r in spoken.records
    )
    assert found.records[0]["points"][0]["text"] == "" != text
    for item, record in zip(halves.test, found.records, strict=True):
        context, choices = render(item)
        asked = context.replace(item.question, item.question + text) if where == "suffix" else f"{text}\n{context}"
        assert text in asked
        exact = obvious_loss(lm, split_slot(lm, asked, choices[item.answer]), ())
        assert -record["points"][-1]["logprobs"][item.answer] == pytest.approx(exact, abs=1e-3)


def split_slot(lm: LM, context: str, answer: str) -> PromptSlot:
    ids, whole = (tuple(lm.tokenizer(x)["input_ids"]) for x in (context, context + answer))
    return PromptSlot(ids, (), whole[len(ids) :], context, answer)


def test_an_interrupted_attack_leaves_the_model_as_it_was() -> None:
    lm, inputs = tiny_inputs()
    attack = gcg.attacks(inputs, CONFIG)[0]
    before = state_hash(lm)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.run(lm, inputs, attack, stop)
    assert state_hash(lm) == before


class Killed(Exception):
    pass


def test_a_killed_attack_goes_on_where_it_was(tmp_path: Path) -> None:
    lm, inputs = tiny_inputs()
    attack = gcg.attacks(inputs, CONFIG)[0]
    whole, *said = attack.run(lm, inputs, attack, lambda count: None)
    inputs = dataclasses.replace(inputs, progress_file=tmp_path / "base.unfinished")
    done: list[int] = []

    def killed_at(step: int) -> Any:
        def advance(count: int) -> None:
            done.append(count)
            if sum(done) >= step:
                raise Killed

        return advance

    for step in (7, 13):  # within the first points, and between two of them
        done.clear()
        with pytest.raises(Killed):
            attack.run(lm, inputs, attack, killed_at(step))
    done.clear()
    found, *again = attack.run(lm, inputs, attack, done.append)
    assert sum(done) == attack.num_steps
    assert [r.records for r in again] == [r.records for r in said]
    assert done[0] == 13, "what was done before is not done again"
    assert found.records == whole.records
    told = lambda result: [m for m in result.metrics if m.metric != "attack_seconds"]  # noqa: E731
    assert told(found) == told(whole)
    other = dataclasses.replace(attack, settings=dataclasses.replace(attack.settings, gcg_candidates=9))
    assert resume.read(inputs, attack) and not resume.read(inputs, other)


def test_a_search_has_worked_when_a_fifth_of_the_loss_is_gone() -> None:
    assert gcg.positive_control(14.5, 11.5) and gcg.positive_control(2.0, 1.4)
    assert (
        not gcg.positive_control(14.47, 11.95)
        and not gcg.positive_control(2.0, 1.7)
        and not gcg.positive_control(1.0, 0.7)
    )


def test_a_small_budget_is_no_attack() -> None:
    _, inputs = tiny_inputs()
    for attack in gcg.attacks(inputs, dataclasses.replace(CONFIG, gcg_steps=19)):
        assert attack.unavailable == "needs --gcg-steps 20 or more"
    assert json.dumps([dataclasses.asdict(a.settings) for a in gcg.attacks(inputs, CONFIG)])


def test_a_search_that_climbs_fails_its_control(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the gradient's sign turned the candidates are the worst ones."""
    lm = tiny_lm("llama")
    slots, ids = slots_of(lm, 2, 8)
    job, settings = job_of(lm, slots, ids), SearchSettings(candidates=24, top_k=24)
    before = (
        sum(-score(lm, [encode(lm.tokenizer, p.before + p.after, [p.target])])[0].logprobs[0] for p in TEMPLATES[:2])
        / 2
    )
    right = search(job, start(job, ids), 20, settings).loss
    monkeypatch.setattr(gcg, "MIN_LOSS_DECREASE", 0.0)  # a model of random weights is moved by little
    monkeypatch.setattr(gcg, "MIN_NATS", 0.5)
    true = gcg_search.descent
    monkeypatch.setattr(gcg_search, "descent", lambda job, ids: -true(job, ids))
    wrong = search(job, start(job, ids), 20, settings).loss
    assert (gcg.positive_control(before, right), gcg.positive_control(before, wrong)) == (True, False), (
        before,
        right,
        wrong,
    )
