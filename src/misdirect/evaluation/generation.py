"""Answers to prompts, base and unlearned side by side: whether what is left is still language.

Each prompt gets the greedy answer and `samples` drawn ones: softmax(logits / temperature), cut to the likeliest tokens that
hold `top_p` together (arXiv 1904.09751), drawn by the Gumbel-max trick with noise of a generator of its own for each
seed, prompt id, sample and turn. So an answer depends on no batch, order or global generator, and base and unlearned
model draw with the same noise. In a prompt of several turns the model's own answers stand in the context of the next.
The model's own generation settings (repetition penalties and the like) are not used, only its end-of-text tokens.

A second pass reads all answers under the base (`read_by_base`), and `misdirect.evaluation.judge` can score them; both work
on the stored result, so answers are never lost to a failure there.

    result = generation(lm, "answers", read_prompts("question.jsonl"), EvaluateConfig(samples=2))
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from misdirect import stats
from misdirect.config import EvaluateConfig
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.prompts import Prompt
from misdirect.data.tokens import token_ids
from misdirect.evaluation import degeneration, paired
from misdirect.model import rope
from misdirect.model.contexts import check_tokens, conversation
from misdirect.model.finite import not_finite
from misdirect.model.generate import Answer, Slot, answer_slots, uses_chat
from misdirect.model.lm import LM
from misdirect.model.load import check_length
from misdirect.model.score import Encoded, by_length, score, takes_padding, watch
from misdirect.runs import Metric, Result, row_of
from misdirect.storage import fingerprint

MEASUREMENT = "generation"
GREEDY, SAMPLED = "greedy", "sampled"


def config_of(config: EvaluateConfig, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What determines the answers. The judge is not part of it: answers stay valid when another one reads them."""
    sampling = ("temperature", "top_p", "seed") if config.samples else ()
    keys = ("new_tokens", "chat_template", "samples", "dtype", *sampling)
    parts = (part for p in prompts for part in (p.id, p.category, str(len(p.turns)), *p.turns))
    return {k: dataclasses.asdict(config)[k] for k in keys} | {"prompts": len(prompts), "sha256": fingerprint(parts)}


def num_items(prompts: Sequence[Prompt], config: EvaluateConfig) -> int:
    """How many answers `generation` advances by in all: each turn of each."""
    return (1 + config.samples) * sum(len(prompt.turns) for prompt in prompts)


def num_chars(prompts: Sequence[Prompt], config: EvaluateConfig) -> int:
    """Characters that the model reads or writes in all, for an estimate of the time."""
    turns = [turn for prompt in prompts for turn in prompt.turns]
    return (1 + config.samples) * sum(len(turn) + CHARS_PER_TOKEN * config.new_tokens for turn in turns)


def generation(
    lm: LM,
    name: str,
    prompts: Sequence[Prompt],
    config: EvaluateConfig,
    advance: Callable[[int], None] | None = None,
    edit: Callable[[list[int]], list[int]] | None = None,
) -> Result:
    """Answers of at most `new_tokens` tokens; `edit` changes a conversation's tokens before it is answered.

    Raises ValueError where a prompt is too long for the model, before it runs, and NotFinite where logits are not numbers.
    """
    started = time.perf_counter()
    chat = uses_chat(lm, config)
    check_prompts(lm, prompts, config, chat)
    slots = [Slot(p, s, []) for p in prompts for s in (None, *range(config.samples))]
    for turn in range(max(len(p.turns) for p in prompts)):
        asked = [slot for slot in slots if len(slot.prompt.turns) > turn]
        contexts = [
            conversation(lm.tokenizer, s.prompt.turns[: turn + 1], [a.text for a in s.answers], chat) for s in asked
        ]
        contexts = [edit(ids) for ids in contexts] if edit else contexts
        for rows in batches(lm, contexts, config):
            found = answer_slots(lm, [asked[r] for r in rows], [contexts[r] for r in rows], config)
            for row, answer in zip(rows, found, strict=True):
                asked[row].answers.append(answer)
            if advance:
                advance(len(rows))
    if broken := sum(not all(answer.finite for answer in slot.answers) for slot in slots):
        raise not_finite(lm, f"{broken} of {len(slots)} answers")
    per_prompt = 1 + config.samples
    records = [record_of(slots[i : i + per_prompt], chat) for i in range(0, len(slots), per_prompt)]
    seconds = time.perf_counter() - started
    return Result(MEASUREMENT, name, config_of(config, prompts), metrics(records), tuple(records), seconds)


# ------------------------------------------------------------------------------------------------ contexts


def check_prompts(lm: LM, prompts: Sequence[Prompt], config: EvaluateConfig, chat: bool) -> None:
    """Refuses a prompt that, with its answers at their longest, has more tokens than the model has positions, and one
    with a token that the model has no embedding for."""
    for prompt in prompts:
        ids = conversation(lm.tokenizer, prompt.turns, ["."] * (len(prompt.turns) - 1), chat)
        check_tokens(lm, ids, f"prompt {prompt.id!r}", chat)
        if not ids:
            raise ValueError(f"prompt {prompt.id!r} has no token; expected text")
        longest = len(ids) + len(prompt.turns) * config.new_tokens
        try:
            check_length(lm, longest, f"prompt {prompt.id!r}")
        except ValueError:
            limit = lm.model.config.get_text_config(decoder=True).max_position_embeddings
            raise ValueError(
                f"prompt {prompt.id!r} may take {longest} tokens with its answers and {lm.source} takes {limit} at "
                "most; expected a smaller --new-tokens, or a shorter prompt"
            ) from None


def batches(lm: LM, contexts: Sequence[Sequence[int]], config: EvaluateConfig) -> Iterator[list[int]]:
    """Rows of similar length, within `batch_tokens` tokens when all answers are at their longest.

    Rows of equal length where a model must not see padding: it keeps a state across tokens, counts positions itself, or its
    table of positions changes with the longest row (`misdirect.model.rope`).
    """
    watch(lm, contexts)
    pads = takes_padding(lm, max(map(len, contexts)) + config.new_tokens)
    for rows in by_length([Encoded(list(ids), [[0] * config.new_tokens]) for ids in contexts], config.batch_tokens):
        groups: dict[tuple[int, int], list[int]] = {}
        for row in rows:
            place = (0, 0) if pads else (len(contexts[row]), 0 if rope.reach(lm.model) else row)
            groups.setdefault(place, []).append(row)
        yield from groups.values()


# ------------------------------------------------------------------------------------------------ records and metrics

Record = dict[str, Any]


def record_of(slots: Sequence[Slot], chat: bool) -> Record:
    """A prompt with all its answers, the greedy one first; `prompt`, `text` and the rest are its last turn's."""
    prompt = slots[0].prompt
    answers: list[Record] = [
        {
            "kind": GREEDY if slot.sample is None else SAMPLED,
            "sample": slot.sample,
            "turns": [turn_of(answer) for answer in slot.answers],
        }
        for slot in slots
    ]
    last = answers[0]["turns"][-1]
    return {
        "id": prompt.id,
        "category": prompt.category,
        "chat": chat,
        "turns": list(prompt.turns),
        "prompt": prompt.turns[-1],
        "text": last["text"].strip(),
        "num_tokens": last["num_tokens"],
        "repetition": last["repetition"],
        "answers": answers,
    }


def turn_of(answer: Answer) -> Record:
    return with_verdict(answer._asdict() | degeneration.measures(answer.text))


def with_verdict(turn: Mapping[str, Any]) -> Record:
    why = degeneration.verdict(turn)
    return {**turn, "degenerate": bool(why), "why": why}


def turns(record: Mapping[str, Any], kind: str | None = None) -> list[Record]:
    """Every turn of a prompt's answers, or of those of one kind."""
    return [turn for answer in record["answers"] if kind in (None, answer["kind"]) for turn in answer["turns"]]


def degenerate_share(record: Mapping[str, Any], kind: str) -> float | None:
    """Share of a prompt's answers that are degenerate in some turn."""
    found = [any(t["degenerate"] for t in a["turns"]) for a in record["answers"] if a["kind"] == kind]
    return sum(found) / len(found) if found else None


def score_of(record: Mapping[str, Any], kind: str) -> float | None:
    """Mean of the judge's scores of a prompt's answers, over its turns."""
    scores = [t["judge"]["score"] for t in turns(record, kind) if "judge" in t and t["judge"]["score"] is not None]
    return sum(scores) / len(scores) if scores else None


# Metric name -> its value for one prompt, None where the prompt has none. Prompts are the independent units.
PER_PROMPT: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "degenerate_share_sampled": lambda record: degenerate_share(record, SAMPLED),
    "repetition": lambda record: record["repetition"],
    "mean_answer_tokens": lambda record: (
        math.fsum(t["num_tokens"] for t in turns(record, GREEDY)) / len(record["turns"])
    ),
    "judge_score": lambda record: score_of(record, GREEDY),
    "judge_score_sampled": lambda record: score_of(record, SAMPLED),
}

BOUNDS = {
    "degenerate_share_sampled": (0.0, 1.0),
    "repetition": (0.0, 1.0),
    "judge_score": (1.0, 10.0),
    "judge_score_sampled": (1.0, 10.0),
}


def metrics(records: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """`degenerate_share`: prompts with a degenerate greedy answer, Wilson's interval. The rest: means over prompts."""
    bad, n = sum(is_degenerate(r) for r in records), len(records)
    low, high = stats.wilson(bad, n)
    out = [Metric("degenerate_share", bad / n, stats.proportion_stderr(bad, n), n, low, high)]
    for name, of in PER_PROMPT.items():
        values = [value for record in records if (value := of(record)) is not None]
        if values:
            mean = stats.sample_mean(values)
            least, most = BOUNDS.get(name, (0.0, math.inf))  # Student's interval knows of no bounds
            low, high = (min(max(x, least), most) if x == x else x for x in (mean.low, mean.high))
            out.append(Metric(name, mean.value, mean.stderr, len(values), low, high))
    asked = [t["judge"] for r in records for t in turns(r) if "judge" in t]
    if asked:  # a score that could not be read is counted, never guessed
        out.append(Metric("judge_unscored", sum(a["score"] is None for a in asked) / len(asked), n=len(asked)))
    return tuple(out)


def is_degenerate(record: Mapping[str, Any]) -> bool:
    return bool(degenerate_share(record, GREEDY))


def remade(result: Mapping[str, Any], records: Sequence[Record]) -> dict[str, Any]:
    """A stored result with other records and the metrics that follow from them."""
    return {**result, "metrics": [row_of(metric) for metric in metrics(records)], "records": list(records)}


def beside_base(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with paired differences to the base: McNemar for `degenerate_share`, else means by prompt."""
    return paired.with_changes(result, base, reading)


def reading(metric: str) -> paired.Reading | None:
    if metric == "degenerate_share":
        return paired.Reading(is_degenerate, paired.mcnemar)
    return paired.Reading(PER_PROMPT[metric], paired.student_mean) if metric in PER_PROMPT else None


# ------------------------------------------------------------------------------------------------ the base reads


def unread(result: Mapping[str, Any]) -> bool:
    """Whether the base has still to read a stored result's answers."""
    return any("base_nll" not in turn for record in result["records"] for turn in turns(record))


def read_by_base(
    lm: LM, result: Mapping[str, Any], config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """A stored result with `base_nll` in every turn, verdicts and metrics made anew. `lm` is the BASE, no delta in it.

    Each answer is read after its own turn of the prompt alone: gibberish in an earlier answer would make more of it
    expected.
    """
    records = copy.deepcopy(list(result["records"]))
    found = [
        (record["turns"][i], turn)
        for record in records
        for answer in record["answers"]
        for i, turn in enumerate(answer["turns"])
    ]
    pairs = [(prompt, turn["text"]) for prompt, turn in found]
    values = incoherence(lm, pairs, records[0]["chat"], config.batch_tokens, advance)
    for (_, turn), (nll, count) in zip(found, values, strict=True):
        turn.update(with_verdict(turn | {"base_nll": nll, "base_tokens": count}))
    return remade(result, records)


def incoherence(
    lm: LM,
    pairs: Sequence[tuple[str, str]],
    chat: bool,
    batch_tokens: int = 4096,
    advance: Callable[[int], None] | None = None,
) -> list[tuple[float | None, int]]:
    """(nats per token, tokens) of each (prompt, answer) under `lm`; None for an answer without tokens.

    Raises NotFinite where `lm` gives no numbers.
    """
    items, rows = [], []
    for row, (prompt, answer) in enumerate(pairs):
        tail = token_ids(lm.tokenizer, [answer], start=False)[0]
        if tail:
            items.append(Encoded(conversation(lm.tokenizer, [prompt], [], chat), [tail]))
            rows.append(row)
    out: list[tuple[float | None, int]] = [(None, 0)] * len(pairs)
    for row, scored in zip(rows, score(lm, items, batch_tokens, advance, "an answer"), strict=True):
        out[row] = (-scored.logprobs[0] / scored.num_tokens[0], scored.num_tokens[0])
    return out
