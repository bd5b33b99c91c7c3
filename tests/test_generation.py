"""Prompts, answers, and the measure of degenerate text."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from misdirect import runs, storage
from misdirect.config import EvaluateConfig
from misdirect.data.prompts import Prompt, read_prompts
from misdirect.evaluation import degeneration
from misdirect.evaluation import generation as g
from misdirect.model import generate
from misdirect.model.lm import LM

TURN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
TEMPLATE = TURN + "{% if add_generation_prompt %}[assistant]{% endif %}"


def tiny_lm(family: str = "llama", dtype: torch.dtype = torch.float64, **overrides: Any) -> LM:
    return LM(
        tiny.tiny_model(family, **overrides).to(dtype), tiny.tiny_tokenizer(), f"tiny-{family}", 6, "model.layers"
    )


def chat_lm(template: str = TEMPLATE) -> LM:
    lm = tiny_lm()
    tokenizer = tiny.tiny_tokenizer.__wrapped__()  # its own: a template is set on it
    tokenizer.chat_template = template
    return dataclasses.replace(lm, tokenizer=tokenizer)


def prompts(count: int = 5) -> list[Prompt]:
    """Prompts of unequal length, every second one of two turns."""
    first, second = tiny.texts(count, 20), tiny.texts(count, 12, seed=1)
    return [Prompt(str(i), (first[i], second[i])[: 1 + i % 2], "words") for i in range(count)]


def saved(result: runs.Result, model: str = "base") -> dict[str, Any]:
    """A result as it is read back from its file."""
    data = dataclasses.asdict(result) | {"model": model, "metrics": [runs.row_of(m) for m in result.metrics]}
    return json.loads(json.dumps(storage.finite(data)))


def bits(lm: LM) -> str:
    return storage.sha256(b"".join(p.detach().numpy().tobytes() for p in lm.model.parameters()))


# ------------------------------------------------------------------------------------------------ prompt files


def read(tmp_path: Path, text: str, name: str = "p.jsonl") -> list[Prompt]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_prompts(str(tmp_path / name))


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "Where?"}, ("Where?",)),
        ({"question": "Where?", "choices": ["a", "b"]}, ("Where?",)),
        ({"text": "Where?"}, ("Where?",)),
        ({"anything": "Where?"}, ("Where?",)),
        ({"instruction": "Translate.", "input": "Fluss", "output": "river"}, ("Translate.\n\nFluss",)),
        ({"instruction": "Name one.", "input": "", "output": "river"}, ("Name one.",)),
        ({"turns": ["One?", "Two?"], "reference": ["x"]}, ("One?", "Two?")),
        ({"turns": ["One?"], "prompt": "other"}, ("One?",)),
        (
            {"messages": [{"role": r, "content": c} for r, c in (("user", "A"), ("assistant", "B"), ("user", "C"))]},
            ("A", "C"),
        ),
        ({"prompt": [{"role": "user", "content": "A"}]}, ("A",)),
    ],
)  # fmt: skip
def test_a_prompt_is_found_in_every_form(tmp_path: Path, row: dict[str, Any], turns: tuple[str, ...]) -> None:
    assert read(tmp_path, json.dumps(row)) == [Prompt("0", turns)]


def test_mt_bench_rows_keep_their_id_and_category(tmp_path: Path) -> None:
    lines = [
        {"question_id": 81, "category": "geography", "turns": ["Where is the Rhine?", "And the Elbe?"]},
        {"question_id": 82, "category": "science", "turns": ["Why is ice slippery?"]},
    ]
    found = read(tmp_path, "\n".join(map(json.dumps, lines)))
    assert found == [
        Prompt("81", ("Where is the Rhine?", "And the Elbe?"), "geography"),
        Prompt("82", ("Why is ice slippery?",), "science"),
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"prompt": " "}, r"p.jsonl, row 2: 'prompt' has the turn ' '; expected text"),
        ({"prompt": 3}, r"row 2: 'prompt' is 3; expected text, a list of texts, or a list of messages"),
        ({"turns": []}, r"row 2: 'turns' is \[\]; expected text, a list"),
        ({"turns": ["a", None]}, r"row 2: 'turns' has the turn None; expected text"),
        ({"turns": {"a": 1}}, r"row 2: 'turns' is \{'a': 1\}; expected text"),
        ({"messages": [{"role": "system", "content": "s"}]}, r"row 2: 'messages' has a message of the role 'system'; exp"),
        ({"messages": [{"role": "assistant", "content": "s"}]}, r"row 2: 'messages' has no message of the user"),
        ({"messages": [{"content": "s"}]}, r"has a message of the role None"),
        ({"a": "x", "b": "y"}, r"row 2 has the columns a, b; expected one named"),
        ({"prompt": "x", "id": "first"}, r"row 2: the id 'first' is already taken"),
        ({"prompt": "x\ud800"}, r"row 2 holds half a surrogate pair"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(tmp_path: Path, second: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, json.dumps({"prompt": "Where?", "id": "first"}) + "\n" + json.dumps(second))


def test_prompts_come_from_csv_and_text_files_too(tmp_path: Path) -> None:
    assert read(tmp_path, "id,prompt\na,Where?\nb,Why?\n", "p.csv") == [
        Prompt("a", ("Where?",)),
        Prompt("b", ("Why?",)),
    ]
    assert read(tmp_path, "Where is\nthe Rhine?", "p.txt") == [Prompt("0", ("Where is\nthe Rhine?",))]


# ------------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("llama", torch.float64),
        ("mistral", torch.float64),  # sliding window of 5
        ("gpt2", torch.float64),  # learned positions
        ("gemma2", torch.float32),  # sliding and full blocks, soft-capped logits
        ("gemma2", torch.float64),  # breaks under left padding: its rows are asked again alone
        ("qwen3_moe", torch.float32),
        ("llama4_text", torch.float32),  # never padded
    ],
)
def test_batched_answers_equal_those_of_one_by_one(family: str, dtype: torch.dtype) -> None:
    lm = tiny_lm(family, dtype)
    config = EvaluateConfig(new_tokens=10, samples=2)
    together = g.generation(lm, "x", prompts(), config)
    alone = g.generation(lm, "x", prompts(), dataclasses.replace(config, batch_tokens=1))
    assert together.records == alone.records
    texts = {t["text"] for r in together.records for t in g.turns(r)}
    assert len(texts) > 10
    assert all(t["finite"] for r in together.records for t in g.turns(r))


def greedy_by_hand(lm: LM, ids: list[int], new_tokens: int) -> list[int]:
    """The slow, obvious form: a full forward pass a token."""
    out: list[int] = []
    for _ in range(new_tokens):
        logits = lm.model(input_ids=torch.tensor([ids + out]), use_cache=False).logits[0, -1]
        out.append(int(logits.argmax()))
        if out[-1] == lm.tokenizer.eos_token_id:
            return out[:-1]
    return out


def test_greedy_answers_are_the_argmax_token_by_token() -> None:
    lm = tiny_lm()
    result = g.generation(lm, "x", prompts(), EvaluateConfig(new_tokens=8))
    for prompt, record in zip(prompts(), result.records, strict=True):
        text = prompt.turns[0]
        first = lm.tokenizer.decode(greedy_by_hand(lm, lm.tokenizer(text)["input_ids"], 8))
        turns = record["answers"][0]["turns"]
        assert turns[0]["text"] == first
        if len(prompt.turns) == 2:  # its own answer stands in the second turn's context
            context = lm.tokenizer(f"{text}{first}\n\n{prompt.turns[1]}")["input_ids"]
            assert turns[1]["text"] == lm.tokenizer.decode(greedy_by_hand(lm, context, 8))
        assert record["prompt"] == prompt.turns[-1]
        assert record["text"] == turns[-1]["text"].strip()
        assert record["turns"] == list(prompt.turns)


def test_under_a_chat_template_the_conversation_is_rendered_with_the_own_answer() -> None:
    lm = chat_lm()
    one = [Prompt("a", ("the river", "the house"))]
    turns = g.generation(lm, "x", one, EvaluateConfig(new_tokens=6)).records[0]["answers"][0]["turns"]
    text = "[user]the river\n[assistant]"
    first = lm.tokenizer.decode(greedy_by_hand(lm, lm.tokenizer(text)["input_ids"], 6))
    assert turns[0]["text"] == first
    text = f"[user]the river\n[assistant]{first}\n[user]the house\n[assistant]"
    assert turns[1]["text"] == lm.tokenizer.decode(greedy_by_hand(lm, lm.tokenizer(text)["input_ids"], 6))
    plain = g.generation(lm, "x", one, EvaluateConfig(new_tokens=6, chat_template="none"))
    assert plain.records[0]["chat"] is False
    assert plain.records[0]["answers"][0]["turns"][0]["text"] == lm.tokenizer.decode(
        greedy_by_hand(lm, lm.tokenizer("the river")["input_ids"], 6)
    )


def test_a_template_that_asks_for_the_date_gets_a_fixed_one_and_one_that_refuses_is_one_line() -> None:
    lm = chat_lm("{{ date_string or strftime_now('%d %b %Y') }}" + TEMPLATE)
    assert lm.tokenizer.decode(g.conversation(lm.tokenizer, ["a"], [], True)).startswith("01 Jan 2025[user]a")
    lm = chat_lm("{{ raise_exception('only in French') }}")
    with pytest.raises(
        ValueError, match="chat template refuses a prompt: only in French; expected --chat-template none"
    ):
        g.generation(lm, "x", prompts(1), EvaluateConfig(new_tokens=2))


def test_answers_depend_on_seed_prompt_and_sample_alone() -> None:
    lm = tiny_lm()
    config = EvaluateConfig(new_tokens=8, samples=3, temperature=1.5)
    before, state = bits(lm), torch.random.get_rng_state()
    result = g.generation(lm, "x", prompts(), config)
    assert bits(lm) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(123)
    backwards = g.generation(lm, "x", prompts()[::-1], config)
    assert backwards.records[::-1] == result.records
    fewer = g.generation(lm, "x", prompts()[3:4], dataclasses.replace(config, samples=1))
    assert fewer.records[0]["answers"] == result.records[3]["answers"][:2]
    other = g.generation(lm, "x", prompts(), dataclasses.replace(config, seed=1))
    assert [r["answers"][0] for r in other.records] == [r["answers"][0] for r in result.records]
    assert [r["answers"][1] for r in other.records] != [r["answers"][1] for r in result.records]
    assert len({a["turns"][0]["text"] for a in result.records[0]["answers"]}) == 4


def test_the_models_own_generation_settings_are_neither_used_nor_changed() -> None:
    lm = tiny_lm()
    config = EvaluateConfig(new_tokens=8)
    plain = g.generation(lm, "x", prompts(), config).records
    lm.model.generation_config.update(
        repetition_penalty=3.0, do_sample=True, top_k=1, suppress_tokens=[5, 6, 7], min_length=99
    )
    settings = lm.model.generation_config.to_dict()
    assert g.generation(lm, "x", prompts(), config).records == plain
    assert lm.model.generation_config.to_dict() == settings


def test_an_end_token_of_either_kind_ends_an_answer() -> None:
    lm = tiny_lm()
    config = EvaluateConfig(new_tokens=8)
    asked = prompts(12)
    before = [r["answers"][0]["turns"][0] for r in g.generation(lm, "x", asked, config).records]
    assert {(turn["num_tokens"], turn["stopped"]) for turn in before} == {(8, False)}
    answers = [greedy_by_hand(lm, lm.tokenizer(prompt.turns[0])["input_ids"], 8) for prompt in asked]
    row, new = next((r, i) for r, ids in enumerate(answers) for i in range(1, 8) if ids[i] not in ids[:i])
    lm.model.generation_config.eos_token_id = [1, answers[row][new]]
    turn = g.generation(lm, "x", asked, config).records[row]["answers"][0]["turns"][0]
    assert (turn["num_tokens"], turn["stopped"], turn["text"]) == (new, True, lm.tokenizer.decode(answers[row][:new]))


def test_a_draw_follows_the_softmax_and_the_nucleus() -> None:
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])
    count = 4000
    generator = torch.Generator().manual_seed(0)
    rows = logits.expand(count, 5)
    for temperature, top_p in ((1.0, 1.0), (2.0, 1.0), (1.0, 0.9)):
        drawn = generate.next_tokens(rows, [generator] * count, temperature, top_p)
        share = torch.bincount(drawn, minlength=5) / count
        wanted = (logits / temperature).softmax(-1)
        if top_p < 1:  # 0.61 + 0.22 + 0.14 is the first sum of at least 0.9
            wanted[3:] = 0
            wanted /= wanted.sum()
        assert (share - wanted).abs().max() < 0.027  # 3.4 standard errors
        assert (share[wanted == 0] == 0).all()
    assert generate.next_tokens(rows[:2], [None, None], 1.0, 0.5).tolist() == [0, 0]
    assert generate.nucleus(logits, 1e-9).isfinite().tolist() == [True, False, False, False, False]


def test_a_model_without_numbers_is_refused_as_speaker_and_as_reader() -> None:
    lm = tiny_lm(dtype=torch.float32)
    config = EvaluateConfig(new_tokens=4, samples=1)
    said = saved(g.generation(tiny_lm(), "x", prompts(), config))
    with torch.no_grad():
        lm.model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    count = 2 * len(prompts())
    with pytest.raises(ValueError, match=f"llama gives NaN or infinity for {count} of {count} answers"):
        g.generation(lm, "x", prompts(), config)
    with pytest.raises(ValueError, match=r"gives NaN or infinity for .* answers"):
        g.read_by_base(lm, said, config)
    [answer] = generate.answer_batch(lm, [[5, 6]], [None], config)  # as a conversation shows it
    assert (answer.text, answer.num_tokens, answer.stopped, answer.finite) == ("", 0, False, False)


def test_a_prompt_too_long_for_the_model_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("gpt2", n_positions=64)
    some = [Prompt("short", ("the river",)), Prompt("long", ("the river", "the house " * 20))]
    monkeypatch.setattr(lm.model, "forward", None)
    with pytest.raises(
        ValueError, match=r"prompt 'long' may take \d+ tokens with its answers and tiny-gpt2 takes 64 at most"
    ):
        g.generation(lm, "x", some, EvaluateConfig(new_tokens=10))


def test_progress_adds_up_and_batches_stay_within_the_limit() -> None:
    lm = tiny_lm()
    config = EvaluateConfig(new_tokens=6, samples=1, batch_tokens=60)
    steps: list[int] = []
    g.generation(lm, "x", prompts(), config, steps.append)
    assert sum(steps) == g.num_items(prompts(), config) == 14
    contexts = [[0] * n for n in (3, 50, 9, 9, 4)]
    for rows in g.batches(lm, contexts, config):
        assert len(rows) == 1 or len(rows) * (max(len(contexts[r]) for r in rows) + 6) <= 60


def test_the_config_names_what_determines_the_answers() -> None:
    config = EvaluateConfig()
    first = g.config_of(config, prompts())
    assert first == g.config_of(dataclasses.replace(config, seed=3, temperature=2.0, batch_tokens=1), prompts())
    assert first == g.config_of(dataclasses.replace(config, judge="http://a/v1", judge_model="m"), prompts())
    assert first != g.config_of(dataclasses.replace(config, chat_template="none"), prompts())
    sampled = dataclasses.replace(config, samples=1)
    assert g.config_of(sampled, prompts()) != g.config_of(dataclasses.replace(sampled, seed=3), prompts())
    joined = [Prompt("0", ("a", "b"))], [Prompt("0", ("a",)), Prompt("b", ())]
    assert g.config_of(config, joined[0])["sha256"] != g.config_of(config, joined[1])["sha256"]


# ------------------------------------------------------------------------------------------------ degenerate text

PROSE = (
    "The Rhine rises in the Swiss Alps, flows through Lake Constance and then turns north along the border of France and "
    "Germany. Below Cologne it divides into several arms, the largest of which reaches the North Sea near Rotterdam. "
    "Barges carry coal, grain and containers upstream as far as Basel, and vineyards cover the slopes of its gorge."
)
LANGUAGE = {
    "prose": PROSE,
    "short": "Paris.",
    "one letter": "B",
    "number": "42",
    "formula": "(a + b)^2 = a^2 + 2ab + b^2",
    "list": "1. Switzerland\n2. Austria\n3. Germany\n4. France\n5. The Netherlands",
    "table": "| River | Length | Mouth |\n| --- | --- | --- |\n| Rhine | 1,233 km | North Sea |\n| Elbe | 1,094 km | North Sea |",
    "code": "def area(radius):\n    return 3.14159 * radius ** 2\n\nfor r in range(1, 4):\n    print(r, area(r))\n",
    "refrain": "Row, row, row your boat, gently down the stream. Merrily, merrily, merrily, merrily, life is but a dream.",
    "german": "Der Rhein entspringt in den Schweizer Alpen und mündet bei Rotterdam in die Nordsee.",
    "chinese": "莱茵河发源于瑞士阿尔卑斯山,流经博登湖,然后沿法国和德国边界向北流去,最后在鹿特丹附近注入北海。",
    "hindi": "राइन नदी स्विट्ज़रलैंड के आल्प्स पर्वत से निकलती है और रॉटरडैम के पास उत्तरी सागर में गिरती है।",
    "repeated question": "What is the capital of France? The capital of France is Paris.",
}
DEGENERATE = {
    "one word": ("or " * 40, "loop"),
    "one word after a start": ("or or on " + "or " * 37, "loop"),
    "one letter": ("A" * 60, "loop"),
    "hyphens": ("and You and-An-You-Me-A-Thon I" + "-A-T" * 20, "loop"),
    "sentence": ("The river flows to the sea and it is long. " * 6, "loop"),
    "loop after prose": (PROSE + " and so on" * 40, "loop"),
    "loop in chinese": ("河流" * 60, "loop"),
    "symbols": ('/*";,(){}[]#$%^&*<>?~` . .. ,', "symbols"),
    "replacement characters": ("\ufffd\ufffd\ufffd a \ufffd\ufffd\ufffd\ufffd\ufffd\ufffd", "symbols"),
    "nothing": ("", "empty"),
    "blank": (" \n\t ", "empty"),
}


@pytest.mark.parametrize("text", LANGUAGE.values(), ids=LANGUAGE)
def test_language_passes(text: str) -> None:
    assert degeneration.verdict(degeneration.measures(text)) == ""


@pytest.mark.parametrize(("text", "why"), DEGENERATE.values(), ids=DEGENERATE)
def test_degenerate_text_fails(text: str, why: str) -> None:
    assert degeneration.verdict(degeneration.measures(text)) == why


def test_prose_looped_at_any_period_is_a_loop_and_prose_is_not() -> None:
    words = PROSE.split()
    for period in range(1, 13):
        for start in range(0, 24, 5):
            looped = (words[start : start + period] * 40)[:40]
            assert degeneration.verdict(degeneration.measures(" ".join(looped))) == "loop", (period, start)
    for start in range(20):
        assert degeneration.verdict(degeneration.measures(" ".join(words[start : start + 40]))) == ""


def test_salad_is_what_the_base_finds_incomprehensible() -> None:
    seen = degeneration.measures("the wings plotted seldom under copper Thursdays mild and ninth")
    assert degeneration.verdict(seen) == ""
    assert degeneration.verdict(seen | {"base_nll": 6.5, "base_tokens": 30}) == "salad"  # 195 > 30 + 157.5
    assert degeneration.verdict(seen | {"base_nll": 6.2, "base_tokens": 30}) == ""  # 186 < 187.5
    assert degeneration.verdict(seen | {"base_nll": 9.0, "base_tokens": 5}) == ""  # a short answer nobody expects
    assert degeneration.verdict(seen | {"base_nll": 12.0, "base_tokens": 5}) == "salad"
    assert degeneration.verdict(seen | {"base_nll": None, "base_tokens": 0}) == ""


def test_repetition_and_compression_are_what_they_say() -> None:
    assert degeneration.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert degeneration.repetition("a b c d") == 0
    assert degeneration.compression("") == 1
    noise = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=256))
    assert degeneration.compression(noise) > 0.6
    assert degeneration.compression(noise + "x" * 400 + noise) < 0.05  # the most compressible window counts
    assert degeneration.compression(noise + "x" * 10 + noise[:100]) > 0.5


# ------------------------------------------------------------------------------------------------ the base reads, metrics


@pytest.mark.parametrize("chat", [False, True])
def test_incoherence_is_the_mean_nll_of_the_answer_after_its_prompt(chat: bool) -> None:
    lm = chat_lm()
    pairs = [("the river", " the house in the north"), ("the market", ""), ("a", " king trade"), ("a", " war")]
    for (prompt, answer), (nll, count) in zip(pairs, g.incoherence(lm, pairs, chat), strict=True):
        context = lm.tokenizer(f"[user]{prompt}\n[assistant]" if chat else prompt)["input_ids"]
        tail = lm.tokenizer(answer)["input_ids"]
        assert count == len(tail)
        if tail:
            logits = lm.model(input_ids=torch.tensor([context + tail])).logits[0]
            logprobs = logits.log_softmax(-1)[len(context) - 1 : -1]
            wanted = -logprobs.gather(-1, torch.tensor(tail)[:, None]).mean().item()
            assert nll == pytest.approx(wanted, abs=1e-6)
        else:
            assert nll is None


def test_the_second_pass_reads_every_turn_and_makes_verdicts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm()
    config = EvaluateConfig(new_tokens=24, samples=1)
    result = saved(g.generation(lm, "x", prompts(), config))
    assert g.unread(result)
    before = json.dumps(result)
    steps: list[int] = []
    read = g.read_by_base(lm, result, config, steps.append)
    assert json.dumps(result) == before
    assert not g.unread(read)
    assert sum(steps) == g.num_items(prompts(), config)
    second = read["records"][1]["answers"][0]["turns"][1]
    alone = g.incoherence(lm, [(prompts()[1].turns[1], second["text"])], False)[0]
    assert (second["base_nll"], second["base_tokens"]) == pytest.approx(alone)
    monkeypatch.setattr(degeneration, "START_NATS", -1e9)
    strict = g.read_by_base(lm, result, config)
    assert all(t["degenerate"] for r in strict["records"] for t in g.turns(r))
    assert strict["metrics"][0]["value"] == 1 >= read["metrics"][0]["value"]


def made(verdicts: list[tuple[bool, list[bool]]], model: str) -> dict[str, Any]:
    """A stored result with these verdicts on greedy and sampled answers."""
    records = []
    for i, (greedy, sampled) in enumerate(verdicts):
        texts = ["" if bad else f"The river is {'very ' * i}long." for bad in (greedy, *sampled)]
        slots = [
            generate.Slot(
                Prompt(str(i), ("Q?",)), None if k == 0 else k - 1, [generate.Answer(t, len(t.split()), True, True)]
            )
            for k, t in enumerate(texts)
        ]
        records.append(g.record_of(slots, False))
    return json.loads(json.dumps(g.remade({"model": model, "set": "x"}, records)))


def test_metrics_and_pairs_can_be_computed_again_by_hand() -> None:
    base = made(
        [(False, [False, False]), (False, [True, False]), (True, [False, False]), (False, [False, False])], "base"
    )
    other = made(
        [(True, [True, True]), (True, [True, False]), (True, [False, True]), (False, [False, False])], "unlearned"
    )
    rows = {m["metric"]: m for m in g.beside_base(other, base)["metrics"]}
    share = rows["degenerate_share"]
    assert (share["value"], share["n"]) == (0.75, 4)
    assert 0.3 < share["low"] < 0.75 < share["high"] < 0.96  # Wilson: 0.301 to 0.954
    assert share["paired"]["difference"] == 0.5
    assert (share["paired"]["gained"], share["paired"]["lost"], share["paired"]["p_value"]) == (2, 0, 0.5)
    sampled = rows["degenerate_share_sampled"]
    assert (sampled["value"], sampled["n"]) == (0.5, 4)  # of 1, 1/2, 1/2, 0
    assert (sampled["low"], sampled["high"]) == (0, pytest.approx(1, abs=0.2))
    assert sampled["high"] <= 1
    assert sampled["paired"]["difference"] == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert rows["mean_answer_tokens"]["value"] == 7 / 4  # 0, 0, 0, and "The river is very very very long."
    assert rows["mean_answer_tokens"]["paired"]["difference"] == pytest.approx((-4 - 5 - 0 - 0) / 4)
    assert rows["repetition"]["value"] == 0
    assert not any(m.get("headline") for m in rows.values())
    assert g.beside_base(base, base) == base
    assert g.remade(other, other["records"]) == other
