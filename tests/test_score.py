"""Log-probabilities against obvious code, whatever the family, the batch and the lengths; and what is made of them."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, processors
from torch import nn
from transformers import PreTrainedTokenizerFast

from misdirect.config import EvaluateConfig
from misdirect.data.batches import pad_id, tokenize
from misdirect.data.prompts import Prompt
from misdirect.data.questions import LETTERS, Question
from misdirect.data.templates import cloze_prompt, letter_prompt, shifted
from misdirect.evaluation import generation, mcq, nll
from misdirect.model import packed
from misdirect.model.blocks import find_blocks
from misdirect.model.lm import LM
from misdirect.model.score import (
    Encoded,
    by_length,
    encode,
    has_plain_cache,
    score,
    score_batch,
    score_plainly,
    similar_lengths,
    text_logprobs,
)
from tiny import texts as draw_texts
from tiny import tiny_model, tiny_tokenizer

FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("gpt2", {}),
    ("gemma2", {}),  # soft-capped logits, every other block slides
    ("mistral", {}),  # a window shorter than the contexts
    ("mistral", {"sliding_window": 512}),  # and one longer than any text here
    ("gemma3_text", {}),
    ("gpt_neox", {}),
    ("qwen3_moe", {}),
    ("jamba", {}),  # no plain cache: scored plainly
    ("qwen3_next", {}),
    ("llama4_text", {"attention_chunk_size": 8}),
]
IDS = [f"{family}{'-' if changes else ''}{'-'.join(map(str, changes.values()))}" for family, changes in FAMILIES]


# Transformers mixes in float32: attention in plain torch turns a float64 mask into infinities, experts and states do not add.
SINGLE = {"gemma2", "qwen3_moe", "jamba", "qwen3_next"}


def tiny_lm(family: str = "llama", tokenizer: Any = None, double: bool = True, **overrides: Any) -> LM:
    """A tiny random model in float64, so that what differs is the arithmetic and not its rounding."""
    model: Any = tiny_model(family, **overrides).requires_grad_(False)
    model = model.double() if double and family not in SINGLE else model
    name, blocks = find_blocks(model)
    return LM(model, tokenizer or tiny_tokenizer(), family, len(blocks), name)


def with_bos() -> PreTrainedTokenizerFast:
    """The tiny tokenizer, but one that begins every text with BOS, as Llama's does."""
    inner = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<eos>", eos_token="<eos>", pad_token="<pad>")


def merging() -> PreTrainedTokenizerFast:
    """A tokenizer that merges a colon with the space behind it, and so across the border of prompt and answer."""
    vocab = {char: i for i, char in enumerate("<>Q:abc \n")} | {": ": 9, ": a": 10}
    inner = Tokenizer(models.BPE(vocab, [(":", " "), (": ", "a")]))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<", pad_token=">")


def random_items(count: int, vocab: int, seed: int = 0) -> list[Encoded]:
    """Contexts of 1 to 24 tokens with 1 to 5 continuations of 1 to 9 tokens; some have continuations of one token only."""
    draw = random.Random(seed)

    def ids(shortest: int, longest: int) -> list[int]:
        return [draw.randrange(2, vocab) for _ in range(draw.randint(shortest, longest))]

    return [Encoded(ids(1, 24), [ids(1, draw.choice((1, 9))) for _ in range(draw.randint(1, 5))]) for _ in range(count)]


def slow_logprobs(lm: LM, ids: list[int]) -> list[float]:
    """log p of every token but the first, by a full forward pass and the definition of the softmax in Python floats."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0].tolist()
    out = []
    for row, token in zip(logits[:-1], ids[1:], strict=True):
        top = max(row)
        out.append(row[token] - top - math.log(sum(math.exp(value - top) for value in row)))
    return out


def slow_scores(lm: LM, item: Encoded) -> list[float]:
    return [sum(slow_logprobs(lm, item.context + tail)[-len(tail) :]) for tail in item.continuations]


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=IDS)
def test_scores_are_those_of_plain_full_forwards(family: str, changes: dict[str, Any]) -> None:
    lm = tiny_lm(family, **changes)
    items = random_items(12, lm.model.config.vocab_size)
    found = score(lm, items, batch_tokens=200)
    plain = score_plainly(lm, items)
    for item, ours, theirs in zip(items, found, plain, strict=True):
        assert ours.num_tokens == theirs.num_tokens == [len(tail) for tail in item.continuations]
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)
        assert ours.logprobs == pytest.approx(slow_scores(lm, item), abs=1e-5)


def test_shared_contexts_are_used_wherever_a_cache_can_be_repeated() -> None:
    plain = {
        name
        for (family, changes), name in zip(FAMILIES, IDS, strict=True)
        if has_plain_cache(tiny_lm(family, **changes))
    }
    assert set(IDS) - plain == {"jamba", "qwen3_next", "llama4_text-8"}


PACKED = {"llama", "gpt2", "gemma2", "mistral", "mistral-512", "gemma3_text", "gpt_neox", "qwen3_moe", "llama4_text-8"}


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=IDS)
def test_packed_rows_are_used_where_they_give_the_same_scores(family: str, changes: dict[str, Any]) -> None:
    lm = tiny_lm(family, **changes)
    name = next(n for n, pair in zip(IDS, FAMILIES, strict=True) if pair == (family, changes))
    assert packed.fits(lm, score_plainly) == (name in PACKED)
    if name not in PACKED:
        return
    longest = packed.window(lm)
    items = [item for item in random_items(40, lm.model.config.vocab_size) if packed.span(item) <= longest]
    assert items
    plain = [x for scored in score_plainly(lm, items) for x in scored.logprobs]
    for batch_tokens in (1, 300, 5000):
        found = packed.score_packed(lm, items, batch_tokens)
        assert [x for row in found for x in row] == pytest.approx(plain, abs=1e-5)


def test_a_model_whose_mask_is_not_ours_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that sees everything before it, whatever the mask says: packed scores differ, and are not used."""
    lm = tiny_lm("llama")
    inner = type(lm.model).forward

    def blind(self: Any, input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
        plain = attention_mask if attention_mask is None or attention_mask.dim() == 2 else None
        return inner(self, input_ids=input_ids, attention_mask=plain, **rest)

    monkeypatch.setattr(type(lm.model), "forward", blind)
    assert not packed.fits(lm, score_plainly)
    items = random_items(6, lm.model.config.vocab_size)
    plain = [scored.logprobs for scored in score_plainly(lm, items)]
    assert [x for scored in score(lm, items) for x in scored.logprobs] == pytest.approx(
        [x for row in plain for x in row], abs=1e-5
    )


def test_rows_hold_every_question_once_and_are_filled() -> None:
    items = random_items(400, 50)
    rows = packed.rows_of(items)
    assert sorted(i for row in rows for i in row) == list(range(400))
    sizes = [sum(packed.length(items[i]) for i in row) for row in rows]
    assert max(sizes) <= packed.ROW
    assert sum(sizes) > 0.9 * packed.ROW * (len(rows) - 1)
    grouped = list(packed.passes(items, 600, 50))
    assert [row for group in grouped for row in group] == rows
    assert all(len(group) <= 2 for group in grouped)
    few_logits = packed.MAX_LOGITS // 50 - 1
    assert all(len(group) == 1 for group in packed.passes(items, 10**6, few_logits))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_scores_in_float32(family: str) -> None:
    lm = tiny_lm(family, double=False)
    items = random_items(8, lm.model.config.vocab_size, seed=3)
    for item, ours in zip(items, score(lm, items), strict=True):
        assert ours.logprobs == pytest.approx(slow_scores(lm, item), abs=1e-5 * 9)


def test_scores_in_float64_have_its_precision() -> None:
    lm = tiny_lm("gpt2")  # unlike Llama's, GPT-2's norms do not go through float32
    items = random_items(6, lm.model.config.vocab_size, seed=4)
    for item, ours in zip(items, score(lm, items), strict=True):
        assert ours.logprobs == pytest.approx(slow_scores(lm, item), abs=1e-11)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral", "jamba"])
def test_the_batch_size_changes_nothing(family: str) -> None:
    lm = tiny_lm(family)
    items = random_items(15, lm.model.config.vocab_size, seed=1)
    samples = [item.context + item.continuations[0] for item in items]
    scores = {size: [s.logprobs for s in score(lm, items, size)] for size in (1, 60, 4096)}
    texts = {size: text_logprobs(lm, samples, size) for size in (1, 60, 4096)}
    for size in (1, 60):
        for a, b in zip(scores[size] + texts[size], scores[4096] + texts[4096], strict=True):
            assert a == pytest.approx(b, abs=1e-5)


def test_continuations_of_one_token_need_one_forward_pass() -> None:
    lm = tiny_lm()
    items = [Encoded([5, 6, 7], [[8], [9], [10]]), Encoded([5], [[11]])]
    seen: list[int] = []
    handle = lm.model.register_forward_pre_hook(lambda *_: seen.append(1))
    found = score_batch(lm, items)
    handle.remove()
    assert len(seen) == 1
    for item, ours in zip(items, found, strict=True):
        assert ours.logprobs == pytest.approx(slow_scores(lm, item), abs=1e-5)


def test_one_token_continuations_of_a_context_are_a_distribution() -> None:
    lm = tiny_lm()
    vocab = lm.model.config.vocab_size
    (found,) = score(lm, [Encoded([5, 9, 3], [[token] for token in range(vocab)])])
    assert sum(map(math.exp, found.logprobs)) == pytest.approx(1.0)


@pytest.mark.parametrize(("family", "changes"), FAMILIES, ids=IDS)
def test_text_logprobs_are_those_of_plain_full_forwards(family: str, changes: dict[str, Any]) -> None:
    lm = tiny_lm(family, **changes)
    samples = tokenize(lm.tokenizer, draw_texts(7, 20, seed=1), 30)
    assert len({len(ids) for ids in samples}) > 3
    done: list[int] = []
    found = text_logprobs(lm, samples, 100, done.append)
    assert sum(done) == len(samples)
    assert len(done) > 1
    for ids, ours in zip(samples, found, strict=True):
        assert ours == pytest.approx(slow_logprobs(lm, ids), abs=1e-5)


def test_by_length_takes_every_row_once_within_its_tokens() -> None:
    items = random_items(60, 90, seed=7)
    for limit in (1, 50, 300, 10_000):
        groups = list(by_length(items, limit))
        assert sorted(row for group in groups for row in group) == list(range(60))
        for group in groups:
            contexts = max(len(items[row].context) for row in group)
            tails = max(len(items[row].continuations) * max(map(len, items[row].continuations)) for row in group)
            assert len(group) == 1 or len(group) * (contexts + tails) <= limit
    assert len(groups) == 1


def test_similar_lengths_takes_every_row_with_a_length_once() -> None:
    lengths = [random.Random(2).choice((0, 1, 5, 40, 90)) for _ in range(50)]
    groups = list(similar_lengths(lengths))
    assert sorted(row for group in groups for row in group) == [i for i, n in enumerate(lengths) if n]
    assert list(similar_lengths([0, 0])) == []


TOKENIZERS = {"plain": tiny_tokenizer, "bos": with_bos, "merging": merging}
CONTEXTS = ["Question: Which?\nAnswer:", "A: ", "Q:", "x\n\n", "a  \t", ":"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_context_and_continuation_are_the_tokens_of_the_whole_text(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for context in CONTEXTS:
        if name == "merging":
            context = "".join(c for c in context if c in "Q:abc \n")
        tails = [" a", " bac", "a", " abc"]
        found = encode(tokenizer, context, tails)
        for text, tail in zip(tails, found.continuations, strict=True):
            whole = tokenizer(context + text)["input_ids"]
            assert [t for t in found.context + tail if t != tokenizer.eos_token_id] == [
                t for t in whole if t != tokenizer.eos_token_id
            ]
            assert found.context
            assert tail


@settings(max_examples=200)
@given(st.text(max_size=12), st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=4))
def test_any_context_and_continuations_are_the_tokens_of_the_whole_text(context: str, tails: list[str]) -> None:
    tokenizer = tiny_tokenizer()
    found = encode(tokenizer, context, tails)
    start = [] if context.strip() else [tokenizer.eos_token_id]
    for text, tail in zip(tails, found.continuations, strict=True):
        assert found.context + tail in (
            start + tokenizer(context + text)["input_ids"],
            [tokenizer.eos_token_id, *tokenizer(context + text)["input_ids"]],
        )


def test_a_tokenizers_bos_starts_the_context_once() -> None:
    tokenizer = with_bos()
    found = encode(tokenizer, "Answer:", [" a", " bac"])
    assert found.context == [1, *tiny_tokenizer()("Answer:")["input_ids"]]
    assert all(1 not in tail for tail in found.continuations)
    empty = encode(tokenizer, "", [" a"])
    assert empty == Encoded([1], [tiny_tokenizer()(" a")["input_ids"]])


def test_a_merge_across_the_border_moves_it_to_the_left() -> None:
    found = encode(merging(), "Q:", [" a", " b"])
    assert found == Encoded([2], [[10], [9, 5]])


def test_an_empty_context_starts_with_the_end_of_text_token() -> None:
    tokenizer = tiny_tokenizer()
    assert tokenizer.bos_token_id is None
    assert encode(tokenizer, "", [" a"]).context == [tokenizer.eos_token_id]
    assert pad_id(tokenizer) != tokenizer.eos_token_id


def test_a_continuation_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="the answer '' has no token of its own after 'Answer:'; expected text"):
        encode(tiny_tokenizer(), "Answer:", [" a", ""])


def questions(count: int, seed: int = 0) -> list[Question]:
    """Questions with 2 to 5 choices of 1 to 4 words."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        num_choices = draw.randint(2, 5)
        choices = tuple(draw_texts(num_choices, 4, seed=100 * seed + number, shortest=1))
        text = draw_texts(1, 12, seed=1000 + number)[0]
        made.append(Question(f"q{number}", text + "?", choices, draw.randrange(num_choices), draw.choice(("x", "y"))))
    return made


def bits(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_mcq_records_hold_the_scores_and_every_metric_follows_from_them() -> None:
    lm, asked = tiny_lm("gemma2"), questions(11)
    result = mcq.mcq(lm, "set", asked, EvaluateConfig())
    rows = {row.metric: row for row in result.metrics if row.subject is None}
    n = len(asked)
    right, floors = dict.fromkeys(mcq.ACCURACIES, 0), dict.fromkeys(mcq.ACCURACIES, 0)

    def winner(values: list[float]) -> int:
        return max(range(len(values)), key=values.__getitem__)

    for question, record in zip(asked, result.records, strict=True):
        context = cloze_prompt(question.question)
        cloze = slow_scores(lm, encode(lm.tokenizer, context, [" " + choice for choice in question.choices]))
        alone = slow_scores(lm, encode(lm.tokenizer, "Answer:", [" " + choice for choice in question.choices]))
        letters = [" " + letter for letter in LETTERS[: len(question.choices)]]
        letter = slow_scores(lm, encode(lm.tokenizer, letter_prompt(question, "current"), letters))
        moved, by = shifted(question, 0)
        permuted = slow_scores(lm, encode(lm.tokenizer, letter_prompt(moved, "current"), letters))
        assert record["cloze_logprobs"] == pytest.approx(cloze, abs=1e-5)
        assert record["floor_logprobs"] == pytest.approx(alone, abs=1e-5)
        assert record["letter_logprobs"] == pytest.approx(letter, abs=1e-5)
        assert record["letter_permuted_logprobs"] == pytest.approx(permuted, abs=1e-5)
        assert record["shift"] == by
        assert (record["id"], record["subject"], record["answer"]) == (question.id, question.subject, question.answer)
        num_tokens = [len(lm.tokenizer(" " + choice)["input_ids"]) for choice in question.choices]
        assert record["num_tokens"] == num_tokens
        lengths = {"cloze": 1, "cloze_per_char": [len(c) for c in question.choices], "cloze_per_token": num_tokens}
        for key, sizes in lengths.items():
            for kind, count in (("cloze", right), ("floor", floors)):
                values = np.array(record[f"{kind}_logprobs"]) / sizes
                count[f"{key}_accuracy"] += winner(values.tolist()) == question.answer
        right["letter_accuracy"] += winner(record["letter_logprobs"]) == question.answer
        right["letter_permuted_accuracy"] += winner(record["letter_permuted_logprobs"]) == moved.answer
    chance = sum(1 / len(question.choices) for question in asked) / n
    assert set(rows) == {name + end for name in right for end in ("", "_centred", "_macro")}
    for name, (key, _) in mcq.ACCURACIES.items():
        own = {row.subject: row for row in result.metrics if row.metric == f"{name}_by_subject"}
        assert set(own) == {question.subject for question in asked}
        for subject, row in own.items():
            scored = [r["correct"][key] for r in result.records if r["subject"] == subject]
            assert (row.value, row.n) == (sum(scored) / len(scored), len(scored))
        assert rows[f"{name}_macro"].value == pytest.approx(sum(row.value for row in own.values()) / len(own))
    for name, count in right.items():
        row, centered = rows[name], rows[name + "_centred"]
        assert row.value == pytest.approx(count / n)
        assert row.chance == pytest.approx(chance)
        assert row.n == n
        assert row.low is not None
        assert row.high is not None
        assert row.low <= row.value <= row.high
        assert centered.value == pytest.approx((count / n - chance) / (1 - chance))
        assert row.floor == (None if "letter" in name else pytest.approx(floors[name] / n))
    assert mcq.metrics(result.records) == result.metrics


def test_the_floor_does_not_depend_on_the_question() -> None:
    lm, asked = tiny_lm(), questions(6)
    other = [dataclasses.replace(q, question="What else is there to say about " + q.question) for q in asked]
    a, b = (mcq.mcq(lm, "set", items, EvaluateConfig(formats="cloze")) for items in (asked, other))
    assert [r["floor_logprobs"] for r in a.records] == [r["floor_logprobs"] for r in b.records]
    assert [m.floor for m in a.metrics] == [m.floor for m in b.metrics]
    assert [r["cloze_logprobs"] for r in a.records] != [r["cloze_logprobs"] for r in b.records]


@pytest.mark.parametrize(("formats", "absent"), [("cloze", "letter"), ("letter", "cloze")])
def test_only_the_format_asked_for_is_scored(formats: Any, absent: str) -> None:
    asked, steps = questions(5), []
    config = EvaluateConfig(formats=formats, limit=4)
    result = mcq.mcq(tiny_lm(), "set", asked, config, steps.append)
    assert not any(row.metric.startswith(absent) for row in result.metrics)
    assert result.metrics
    assert len(result.records) == 4
    assert sum(steps) == mcq.num_items(asked, config)


def test_a_model_without_numbers_has_no_accuracy() -> None:
    lm = tiny_lm()
    lm.model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(ValueError, match="llama gives NaN or infinity for 5 of 5 questions"):
        mcq.mcq(lm, "set", questions(5), EvaluateConfig())


def test_largest_is_the_first_of_equals_and_passes_nan_over() -> None:
    assert mcq.largest([1.0, 3.0, 3.0]) == 1
    assert mcq.largest([math.nan, -5.0, math.nan, -4.0]) == 3
    assert mcq.largest([-math.inf, math.nan]) == 0
    assert mcq.largest([math.nan, math.nan]) == -1


def stored(model: str, metrics: list[dict[str, Any]], correct: list[dict[str, bool]]) -> dict[str, Any]:
    return {"model": model, "metrics": metrics, "records": [{"correct": c} for c in correct]}


def accuracy(metric: str, value: float, low: float, high: float, floor: float | None = None) -> dict[str, Any]:
    row = {"metric": metric, "value": value, "low": low, "high": high, "chance": 0.25}
    return row if floor is None else row | {"floor": floor}


@pytest.mark.parametrize(
    ("cloze", "letter", "headline"),
    [
        ((0.5, 0.4, 0.6), (0.3, 0.2, 0.4), "cloze_accuracy"),
        ((0.5, 0.4, 0.6), (0.55, 0.45, 0.65), "cloze_accuracy"),  # better, but not clearly
        ((0.5, 0.4, 0.6), (0.8, 0.7, 0.9), "letter_accuracy"),
        ((0.2, 0.1, 0.3), (0.2, 0.1, 0.3), "cloze_accuracy"),
    ],
)
def test_a_set_is_judged_by_one_format_chosen_on_the_base(
    cloze: tuple[float, float, float], letter: tuple[float, float, float], headline: str
) -> None:
    rows = [accuracy("cloze_accuracy", *cloze, floor=0.3), accuracy("letter_accuracy", *letter)]
    base = stored("base", rows, [{"cloze": True, "letter": True}, {"cloze": True, "letter": False}])
    worse = stored("unlearned", rows, [{"cloze": False, "letter": True}, {"cloze": True, "letter": True}])
    for result in (base, worse):
        judged = mcq.beside_base(result, base)
        assert [row["metric"] for row in judged["metrics"] if row["headline"]] == [headline]
        knows = {row["metric"]: row["base_knows"] for row in judged["metrics"]}
        assert knows == {"cloze_accuracy": cloze[1] > 0.3, "letter_accuracy": letter[1] > 0.25}
    changes = {row["metric"]: row["paired"] for row in mcq.beside_base(worse, base)["metrics"]}
    assert (changes["cloze_accuracy"]["lost"], changes["cloze_accuracy"]["gained"]) == (1, 0)
    assert (changes["letter_accuracy"]["lost"], changes["letter_accuracy"]["gained"]) == (0, 1)
    assert "paired" not in mcq.beside_base(base, base)["metrics"][0]


def test_nll_is_the_mean_over_tokens_of_plain_full_forwards() -> None:
    lm, documents = tiny_lm(), draw_texts(9, 40, seed=8)
    config = EvaluateConfig(max_tokens=25)
    result = nll.nll(lm, "set", documents, config)
    slow = [slow_logprobs(lm, lm.tokenizer(text)["input_ids"][:25]) for text in documents]
    assert [r["logprob"] for r in result.records] == pytest.approx([sum(values) for values in slow], abs=1e-5)
    assert [r["num_tokens"] for r in result.records] == [len(values) for values in slow]
    (row,) = result.metrics
    flat = [value for values in slow for value in values]
    assert row.metric == "nll_per_token"
    assert row.value == pytest.approx(-sum(flat) / len(flat), abs=1e-6)
    assert row.n == len(documents)
    assert row.headline is True
    assert nll.metrics(result.records) == result.metrics


def test_nll_leaves_out_texts_of_one_token_and_keeps_the_numbers_of_the_others() -> None:
    documents = ["a", "the king of the river", "b", "the law of the house"]
    result = nll.nll(tiny_lm(), "set", documents, EvaluateConfig())
    assert [r["id"] for r in result.records] == ["1", "3"]
    with pytest.raises(ValueError, match="set holds no text of two tokens or more"):
        nll.nll(tiny_lm(), "set", ["a", "b"], EvaluateConfig())


def test_nll_of_a_sample_is_that_of_its_documents() -> None:
    lm, documents = tiny_lm(), draw_texts(12, 10, seed=9)
    all_of_them = {r["id"]: r for r in nll.nll(lm, "set", documents, EvaluateConfig()).records}
    drawn = nll.nll(lm, "set", documents, EvaluateConfig(text_limit=5, seed=2)).records
    assert len(drawn) == 5
    for record in drawn:
        assert record["logprob"] == pytest.approx(all_of_them[record["id"]]["logprob"], abs=1e-5)


def test_nll_beside_its_base_is_paired_by_document() -> None:
    records = [{"logprob": -30.0, "num_tokens": 10}, {"logprob": -20.0, "num_tokens": 5}]
    worse = [{"logprob": -40.0, "num_tokens": 10}, {"logprob": -22.0, "num_tokens": 5}]
    base = {"model": "base", "metrics": [{"metric": "nll_per_token"}], "records": records}
    (row,) = nll.beside_base({**base, "model": "unlearned", "records": worse}, base)["metrics"]
    assert row["paired"]["difference"] == pytest.approx(12 / 15)
    assert row["paired"]["n"] == 2
    assert nll.beside_base(base, base) == base


def test_nll_that_an_older_version_stored_as_none_is_paired_with_nothing() -> None:
    records = [{"logprob": -30.0, "num_tokens": 10}, {"logprob": -20.0, "num_tokens": 5}]
    broken = [{"logprob": None, "num_tokens": 10}, {"logprob": -22.0, "num_tokens": 5}]  # NaN has no JSON form
    base = {"model": "base", "metrics": [{"metric": "nll_per_token"}], "records": records}
    with pytest.raises(ValueError, match="1 of 4 numbers are NaN or infinite"):
        nll.beside_base({**base, "model": "unlearned", "records": broken}, base)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "jamba"])
def test_a_measurement_leaves_the_model_as_it_was(family: str) -> None:
    lm = tiny_lm(family, double=False)
    before, config = bits(lm.model), repr(lm.model.config)
    mcq.mcq(lm, "set", questions(3), EvaluateConfig())
    nll.nll(lm, "set", draw_texts(3, 9), EvaluateConfig())
    generation.generation(lm, "set", [Prompt("0", ("the king",))], EvaluateConfig(new_tokens=3))
    after = bits(lm.model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert repr(lm.model.config) == config
    assert not lm.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())


def test_a_class_without_a_cache_is_scored_plainly() -> None:
    """The first GPT takes no `past_key_values`, though nothing in its config says so."""
    lm = tiny_lm("openai-gpt", double=False)
    items = random_items(4, 300)
    for found, plain in zip(score(lm, items), score_plainly(lm, items), strict=True):
        assert found.logprobs == pytest.approx(plain.logprobs, abs=1e-4)
