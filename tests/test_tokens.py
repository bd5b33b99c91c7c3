"""Tokenizers that append a token, and token ids without an embedding. The oracle of the one is the same tokenizer without
what it appends, of the other the same model with a padding that has a row, both under plain transformers."""

from __future__ import annotations

import ast
import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

import misdirect
import misdirect as md
import tiny
from attack_cases import tiny_inputs
from misdirect.attacks import finetune, soft_prompt
from misdirect.attacks import prompts as prompt_attacks
from misdirect.attacks.gcg import search
from misdirect.attacks.gcg.loss import job_of
from misdirect.attacks.scoring import score_sets
from misdirect.auditing import pair
from misdirect.auditing.baseline import mean_states
from misdirect.cli.main import main
from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.data import batches
from misdirect.data.prompts import Prompt
from misdirect.data.questions import Question
from misdirect.data.tokens import appending_nothing, starting_ids, steadied, token_ids
from misdirect.evaluation.generation import generation, incoherence
from misdirect.evaluation.mcq import mcq
from misdirect.evaluation.nll import nll
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.model.rows import fill_id, padded
from misdirect.model.score import encode, score
from misdirect.planning import estimate as planning
from misdirect.recipes import resolve
from misdirect.unlearning.arithmetic import CLEAN, PUBLISHED
from misdirect.unlearning.methods import unlearn

TEXTS = ["The river is old.", "a", "", "water <eos>", "<eos>", "  two  spaces "]


def own_tokenizer() -> PreTrainedTokenizerFast:
    """That of the other tests, not shared with them."""
    return copy.deepcopy(tiny.tiny_tokenizer())


def processed(form: str) -> PreTrainedTokenizerFast:
    tokenizer = own_tokenizer()
    special = [("<eos>", 1), ("<pad>", 0)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(form, special_tokens=special)
    return tokenizer


def by_flag(**flags: bool) -> PreTrainedTokenizerFast:
    backend = own_tokenizer().backend_tokenizer
    names = {"bos_token": "<pad>", "eos_token": "<eos>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **flags)


def of_words(unknown_alone: bool = False) -> PreTrainedTokenizerFast:
    """[CLS] x [SEP], as BERT's; with `unknown_alone` it knows none of the probes' words."""
    words = ["[UNK]", "[CLS]", "[SEP]", "river", *([] if unknown_alone else ["a", "b", "house"])]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


APPENDING: dict[str, tuple[Callable[[], Any], list[int], list[int]]] = {  # what is put before, what is appended
    "eos": (lambda: processed("$A <eos>"), [], [1]),
    "bos and eos": (lambda: processed("<pad> $A <eos>"), [0], [1]),
    "two of them": (lambda: processed("<pad> $A <eos> <pad>"), [0], [1, 0]),
    "the same on both sides": (lambda: processed("<eos> $A <eos>"), [1], [1]),
    "add_eos_token": (lambda: by_flag(add_eos_token=True), [], [1]),
    "add_bos_token and add_eos_token": (lambda: by_flag(add_bos_token=True, add_eos_token=True), [0], [1]),
    "cls and sep": (of_words, [1], [2]),
    "cls and sep around unknown words": (lambda: of_words(unknown_alone=True), [1], [2]),
    "bytes, in Python": (ByT5Tokenizer, [], [1]),
}
SOUND: dict[str, Callable[[], Any]] = {
    "nothing": own_tokenizer,
    "bos": lambda: processed("<pad> $A"),
    "eos before": lambda: processed("<eos> $A"),
    "add_bos_token": lambda: by_flag(add_bos_token=True),
}


@pytest.mark.parametrize("name", APPENDING)
def test_what_is_appended_is_left_away_and_what_stands_before_stays(name: str, tmp_path: Path) -> None:
    make, before, after = APPENDING[name]
    made = make()
    made.save_pretrained(tmp_path)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
        assert tokenizer("a")["input_ids"] == [*before, *bare[1], *after]  # it does append
        assert token_ids(tokenizer, TEXTS) == [[*before, *ids] for ids in bare]
        assert token_ids(tokenizer, TEXTS, start=False) == bare
        assert starting_ids(tokenizer) == before
        freed = appending_nothing(tokenizer)
        assert [freed(text)["input_ids"] for text in TEXTS] == [[*before, *ids] for ids in bare]
        assert tokenizer("a")["input_ids"] == [*before, *bare[1], *after]  # and is left as it was


@pytest.mark.parametrize("name", SOUND)
def test_ids_of_a_tokenizer_that_appends_nothing_are_its_own(name: str) -> None:
    tokenizer = SOUND[name]()
    assert token_ids(tokenizer, TEXTS) == tokenizer(TEXTS)["input_ids"]
    assert token_ids(tokenizer, TEXTS, start=False) == tokenizer(TEXTS, add_special_tokens=False)["input_ids"]
    assert appending_nothing(tokenizer)(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert token_ids(tokenizer, []) == []


def test_an_end_that_a_text_spells_out_stays() -> None:
    plain, tokenizer = own_tokenizer(), processed("$A <eos>")
    assert token_ids(tokenizer, ["water<eos>"]) == plain(["water<eos>"])["input_ids"]
    assert token_ids(tokenizer, ["water<eos>"])[0][-1] == 1
    assert token_ids(ByT5Tokenizer(), ["ab</s>"]) == [[100, 101, 1]]  # appends none where one stands already


class Always(PreTrainedTokenizerFast):
    """Appends an end also where it is asked for no special tokens."""

    def __call__(self, text: Any, *args: Any, **named: Any) -> Any:
        found = super().__call__(text, *args, **named)
        return {"input_ids": [[*ids, 1] for ids in found["input_ids"]]}


def test_what_is_appended_even_without_special_tokens_is_left_away() -> None:
    tokenizer = Always(tokenizer_object=own_tokenizer().backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
    assert (
        token_ids(tokenizer, TEXTS) == token_ids(tokenizer, TEXTS, start=False) == own_tokenizer()(TEXTS)["input_ids"]
    )
    with pytest.raises(ValueError, match="appends a token to every text"):
        appending_nothing(tokenizer)


def test_a_tokenizer_that_is_changed_is_measured_again() -> None:
    tokenizer = by_flag(add_eos_token=False)
    plain = token_ids(tokenizer, TEXTS)
    tokenizer.add_eos_token = True
    assert tokenizer("a")["input_ids"][-1] == 1
    assert token_ids(tokenizer, TEXTS) == plain


def test_no_text_takes_another_way() -> None:
    """Every call of a tokenizer, or of its chat template, in the whole package."""
    allowed = {
        ("data/tokens.py", "encoded"),
        ("unlearning/published.py", "as_samples"),
    }  # as the published code calls it
    source, found = Path(misdirect.__file__).parent, set()
    for path in sorted(source.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
                names = [call.split(".")[-1] for call in calls]
                if {"tokenizer", "batch_encode_plus", "encode_plus"} & set(names) or any(
                    call.endswith("tokenizer.tokenize") for call in calls
                ):
                    found.add((path.relative_to(source).as_posix(), function.name))
                if "apply_chat_template" in names:
                    assert path.name == "contexts.py"
    assert found == allowed


# ------------------------------------------------------------------------------------------------ the numbers


def lm_with(tokenizer: Any, **overrides: Any) -> LM:
    model = tiny.tiny_model("llama", num_hidden_layers=3, **overrides).requires_grad_(False)
    return LM(model, tokenizer, "tiny", 3, "model.layers")


QUESTIONS = [Question(f"q{i}", f"{t}?", tuple(t.split()[:4]), i % 4) for i, t in enumerate(tiny.texts(5, 12))]
ASKED = [Prompt("a", ("the river", "the house")), Prompt("b", ("old water",))]


@pytest.mark.parametrize("before", ["", "<pad> "])
def test_every_measurement_is_that_of_the_tokenizer_without_it(before: str) -> None:
    sound, lm = (lm_with(processed(f"{before}$A{after}")) for after in ("", " <eos>"))
    config = EvaluateConfig(new_tokens=4)
    for measure, given in ((mcq, QUESTIONS), (nll, tiny.texts(4, 20)), (generation, ASKED)):
        assert measure(lm, "x", given, config).records == measure(sound, "x", given, config).records  # type: ignore[operator]
    answers = [("the river", "the old water"), ("a", "b")]
    assert incoherence(lm, answers, chat=False) == incoherence(sound, answers, chat=False)
    both = (sound, lm)
    samples = [finetune.tokenized_texts(one, tiny.texts(5, 20), 16, seed=0) for one in both]
    assert samples[0] == samples[1]
    assert len({batches.preview({"x": ["The river"]}, one.tokenizer, 9)[0] for one in both}) == 1
    assert pair.likeness(sound) == pair.likeness(lm)


def test_a_choice_scores_what_a_plain_forward_pass_gives_it() -> None:
    lm = lm_with(processed("<pad> $A <eos>"))
    context, choices = "Question: Which river?\nAnswer:", [" the water", " old"]
    (found,) = score(lm, [encode(lm.tokenizer, context, choices)])
    ids = [own_tokenizer()(context + choice)["input_ids"] for choice in choices]
    start = len(own_tokenizer()(context)["input_ids"])
    for whole, value, count in zip(ids, found.logprobs, found.num_tokens, strict=True):
        logits = lm.model(torch.tensor([[0, *whole]])).logits[0].log_softmax(-1)
        assert value == pytest.approx(sum(logits[i, whole[i]].item() for i in range(start, len(whole))), abs=1e-4)
        assert count == len(whole) - start
    assert encode(lm.tokenizer, " ", ["old"]).context == [0]  # no token of its own: what the tokenizer puts before
    assert encode(of_words(), "", ["river"]) == ([1], [[3]])


def test_training_samples_are_without_it_and_the_published_ones_with_it() -> None:
    sound, lm = lm_with(own_tokenizer()), lm_with(processed("$A <eos>"))
    clean = resolve(UnlearnConfig(block=1, max_tokens=12, updates=2), 3)
    published = dataclasses.replace(clean, numerics="published")
    given = tiny.texts(3, 20)
    assert CLEAN.as_samples(lm, given, clean, 0) == CLEAN.as_samples(sound, given, clean, 0)
    assert PUBLISHED.as_samples(lm, given, published, 0) == lm.tokenizer(given)["input_ids"]
    assert all(ids[-1] == 1 for ids in PUBLISHED.as_samples(lm, given, published, 0))


def test_gcg_finds_what_it_finds_without_it() -> None:
    places = [
        search.PromptTemplate("Question: Which river?", "\nAnswer:", " the water"),
        search.PromptTemplate("", "\nA:", " old"),
    ]
    found = []
    for form in ("$A", "$A <eos>", "<pad> $A <eos>"):
        lm = lm_with(processed(form))
        slots, ids = search.prompt_slots(lm.tokenizer, places, 4)
        job = job_of(lm, slots, ids)
        found.append(search.search(job, search.start(job, ids), 2, search.SearchSettings(candidates=8, top_k=16)))
        assert found[-1].loss < found[-1].log[0]
        assert all(search.retokenizes(lm.tokenizer, slots, [found[-1].ids]))
    assert found[0] == found[1] and found[2].loss != found[0].loss


# ------------------------------------------------------------------------------------------------ ids without a row


def with_pad(lm: LM) -> LM:
    """The same model under a tokenizer with a padding token that it has no embedding for."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == lm.model.get_input_embeddings().weight.shape[0]
    return dataclasses.replace(lm, tokenizer=tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "mamba"])
def test_padding_without_a_row_changes_nothing(family: str) -> None:
    sound = LM(tiny.tiny_model(family).requires_grad_(False), own_tokenizer(), "tiny", tiny.LAYERS, "x.layers")
    lm = with_pad(sound)
    assert fill_id(lm) == 1 and fill_id(sound) == 0
    config = EvaluateConfig(new_tokens=4)
    for measure, given in ((nll, tiny.texts(4, 20)), (generation, ASKED)):
        ours, theirs = (measure(one, "x", given, config).records for one in (lm, sound))  # type: ignore[operator]
        assert ours == theirs
    items = [encode(lm.tokenizer, f"{q.question}\nAnswer:", [f" {c}" for c in q.choices]) for q in QUESTIONS]
    flat = lambda scored: [x for one in scored for x in one.logprobs]  # noqa: E731
    assert flat(score(lm, items)) == pytest.approx(flat(score(sound, items)), abs=1e-5)


def test_unlearning_and_attacks_pad_with_a_token_that_has_a_row() -> None:
    lm, inputs = tiny_inputs(count=8)
    config = resolve(UnlearnConfig(block=2, updates=2, batch_size=2, max_tokens=16, lr=0.1), tiny.LAYERS)
    made = []
    for one in (lm, with_pad(lm)):
        delta, _ = unlearn(one, {"bio": tiny.texts(4, 12)}, [("wiki", tiny.texts(4, 12, 1), 1.0)], config)
        made.append((delta.tensors, score_sets(one, inputs), mean_states(one, inputs.forget_texts, 0)))
    (first, logprobs, means), (second, logprobs_again, means_again) = made
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert logprobs == logprobs_again and all(torch.equal(a, b) for a, b in zip(means, means_again, strict=True))
    assert pair.likeness(lm) == pair.likeness(with_pad(lm))
    allowed = search.allowed_tokens(with_pad(lm))
    assert torch.equal(allowed, search.allowed_tokens(lm))
    assert max(soft_prompt.placeholders(with_pad(lm), inputs, 5)) < len(allowed)


def test_a_text_with_such_a_token_is_refused_by_name_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = with_pad(lm_with(own_tokenizer()))
    rows = lm.model.get_input_embeddings().weight.shape[0]
    monkeypatch.setattr(type(lm.model), "forward", lambda *args, **named: pytest.fail("the model ran"))
    config = EvaluateConfig(new_tokens=4)
    said = rf"holds the token '\[PAD\]' \(id {rows}\), and tiny has embeddings for {rows} tokens, 0 to {rows - 1}; exp"
    asked = QUESTIONS[0]
    inside, choice = (dataclasses.replace(asked, **change) for change in (
        {"question": "Which [PAD] river?"}, {"choices": ("a", "b [PAD]", "c", "d")}
    ))  # fmt: skip
    for odd in (inside, choice):
        with pytest.raises(ValueError, match=f"a question of x {said}"):
            mcq(lm, "x", [asked, odd], config)
    with pytest.raises(ValueError, match=f"a question of x {said}"):  # as an answered example
        mcq(lm, "x", [asked, QUESTIONS[1]], dataclasses.replace(config, shots=1), None, [inside])
    with pytest.raises(ValueError, match=f"a text of x {said}"):
        nll(lm, "x", ["fine", "a [PAD] b"], config)
    with pytest.raises(ValueError, match=f"prompt 'a' {said}"):
        generation(lm, "x", [Prompt("a", ("b [PAD]",))], config)
    settings = resolve(UnlearnConfig(block=1, max_tokens=12, updates=2), 3)
    for forget, retain in ((["a [PAD] b"], ["a b"]), (["a b"], ["a [PAD] b"])):
        with pytest.raises(ValueError, match=f"a text of (bio|wiki) {said}"):
            tiny.prepared(lm, {"bio": forget}, [("wiki", retain, 1.0)], settings)
    with pytest.raises(ValueError, match=said):
        mean_states(lm, ["a [PAD] b"], 0)
    with pytest.raises(ValueError, match="holds the token id -1, and tiny"):
        padded(lm, [[3, -1]])
    lm.tokenizer.chat_template = "[PAD]{{ messages[0].content }}"
    with pytest.raises(ValueError, match=f"prompt 'a' {said}ected --chat-template none where the chat template puts"):
        generation(lm, "x", [Prompt("a", ("fine",))], config)
    inputs = tiny_inputs(count=4)[1]
    assert "chat" not in prompt_attacks.formats(lm, inputs)


def test_ends_without_a_row_end_nothing() -> None:
    sound = lm_with(own_tokenizer())
    tokenizer = copy.deepcopy(sound.tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"})
    lm = dataclasses.replace(sound, tokenizer=tokenizer)
    config = EvaluateConfig(new_tokens=4)
    assert generation(lm, "x", ASKED, config).records == generation(sound, "x", ASKED, config).records
    samples = finetune.tokenized_texts(lm, tiny.texts(4, 9), 16, 0)
    assert max(map(max, samples)) < tokenizer.eos_token_id
    published = resolve(UnlearnConfig(block=1, numerics="published"), 3)
    with pytest.raises(ValueError, match=r"padding of the published arithmetic holds the token '<\|im_end\|>'"):
        PUBLISHED.as_samples(lm, ["a b"], published, 0)


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as people have them: chat tokens and padding added, the embeddings left as they were."""
    shelf = tmp_path_factory.mktemp("chatty")
    tiny.fill_shelf(shelf)
    tokenizer = AutoTokenizer.from_pretrained(shelf / "llama")
    tokenizer.add_special_tokens({"pad_token": "[PAD]", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(shelf / "llama")
    config = json.loads((shelf / "llama" / "config.json").read_text())
    config["pad_token_id"] = tokenizer.pad_token_id  # which torch's embedding table would refuse
    (shelf / "llama" / "config.json").write_text(json.dumps(config))
    (shelf / "talk.jsonl").write_text(json.dumps({"prompt": "Tell me of the river."}) + "\n")
    (shelf / "odd.jsonl").write_text(json.dumps({"text": "the river <|im_start|> is old"}) + "\n")
    return shelf


def test_the_command_line_works_around_padding_and_names_what_it_refuses(
    chatty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(chatty / "llama"), str(tmp_path / "out")
    assert load_lm(model).model.config.pad_token_id is None
    asked = ["evaluate", model, "--questions", f"q={chatty / 'asked.jsonl'}", "--out", out, "--device", "cpu"]
    assert main(asked) == 0
    capsys.readouterr()
    assert main(["evaluate", model, "--prompts", f"p={chatty / 'talk.jsonl'}", "--new-tokens", "3", "--out", out]) == 2
    said = capsys.readouterr().err
    assert "prompt '0' holds the token '<|im_start|>'" in said and "--chat-template none" in said
    plain = ["--prompts", f"p={chatty / 'talk.jsonl'}", "--new-tokens", "3", "--chat-template", "none"]
    assert main(["evaluate", model, *plain, "--out", out]) == 0
    for verb in ("unlearn", "plan"):
        more = ["--block", "1", "--updates", "2", *(["--out", str(tmp_path / "run")] if verb == "unlearn" else [])]
        odd, fine = chatty / "odd.jsonl", chatty / "wiki.jsonl"
        assert main([verb, model, "--forget", f"bio={odd}", "--retain", f"wiki={fine}", *more]) == 2
        assert "a text of bio holds the token '<|im_start|>'" in capsys.readouterr().err


def test_a_plan_says_which_tokens_have_no_embedding(chatty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = md.plan(str(chatty / "llama"), {"bio": str(chatty / "bio.jsonl")}, {"wiki": str(chatty / "wiki.jsonl")})
    (problem,) = made.problems
    assert "the tokenizer knows [PAD] (id " in problem and "<|im_start|> (id " in problem
    known = planning.local_tokenizer(str(chatty / "llama"), trust_remote_code=False)
    monkeypatch.setattr(planning, "local_tokenizer", lambda *_: None)
    assert known is not None and not md.plan(str(chatty / "llama")).problems


def test_a_tokenizer_that_splits_by_chance_does_so_no_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BPE dropout is for training; a value would be another at every call."""
    folder = tiny.tiny_folder(tmp_path, "llama", num_hidden_layers=2)
    path = folder / "tokenizer.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"model": stored["model"] | {"dropout": 0.5}}))
    assert len({tuple(AutoTokenizer.from_pretrained(folder)(TEXTS[0])["input_ids"]) for _ in range(9)}) > 1
    found = load_lm(str(folder), device="cpu").tokenizer
    assert all(token_ids(found, TEXTS) == token_ids(own_tokenizer(), TEXTS) for _ in range(9))
    assert "splits texts by chance (dropout 0.5)" in capsys.readouterr().err


def test_one_that_cannot_be_kept_from_it_is_refused() -> None:
    class Sampling:
        count = 0

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            self.count += 1
            return {"input_ids": [[self.count] for _ in texts]}

    with pytest.raises(
        ValueError, match=r"the tokenizer of here splits a text by chance, .* \(enable_sampling false\)"
    ):
        steadied(Sampling(), "here")
