"""Multiple-choice accuracy: cloze (the answer's text is scored) and letter (its letter is).

Cloze scores `Question: ...\\nAnswer:` + " " + choice, three ways: the summed log-probability, the same per character,
and per token. Letter shows the choices with A., B., .. and scores " A", " B", ... The floor is the cloze accuracy with
the question removed: what a reader of the choices alone scores, which is not exactly one over the number of choices.

    result = mcq(lm, "biology", read_questions("biology.jsonl"), EvaluateConfig())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misdirect import stats
from misdirect.config import EvaluateConfig, as_dict
from misdirect.data.questions import LETTERS, Question, cloze_prompt, letter_prompt, sample
from misdirect.model.load import LM
from misdirect.model.score import Encoded, Scored, encode, score
from misdirect.runs import Metric, Result, fingerprint

MEASUREMENT = "mcq"
# metric name -> the key of a record's `correct` that it averages
ACCURACIES = {
    "cloze_accuracy": "cloze",
    "cloze_per_char_accuracy": "cloze_per_char",
    "cloze_per_token_accuracy": "cloze_per_token",
    "letter_accuracy": "letter",
}
HEADLINES = ("cloze_accuracy", "letter_accuracy")  # the formats that a set may be judged by


def config_of(config: EvaluateConfig, questions: Sequence[Question]) -> dict[str, Any]:
    """What determines the numbers of this measurement: compared when a stored result is to be used again."""
    texts = (part for q in questions for part in (q.id, q.question, *q.choices, str(q.answer)))
    keys = ("limit", "formats", "seed", "dtype")
    return {k: as_dict(config)[k] for k in keys} | {"questions": len(questions), "sha256": fingerprint(texts)}


def mcq(
    lm: LM,
    name: str,
    questions: Sequence[Question],
    config: EvaluateConfig,
    advance: Callable[[int], None] | None = None,
) -> Result:
    """Scores one set in every format. `advance(k)` is called as k forward items are done, `num_items` in all."""
    started = time.perf_counter()
    chosen = sample(questions, config.limit, config.seed)

    def scored(items: Sequence[Encoded]) -> list[Scored]:
        return score(lm, items, config.batch_tokens, advance)

    def cloze(text: Callable[[Question], str]) -> list[Encoded]:
        return [encode(lm.tokenizer, cloze_prompt(text(q)), [" " + c for c in q.choices]) for q in chosen]

    records = [start_record(q) for q in chosen]
    if config.formats != "letter":
        add_cloze(records, scored(cloze(lambda q: q.question)), scored(cloze(lambda q: "")))
    if config.formats != "cloze":
        letters = [encode(lm.tokenizer, letter_prompt(q), [f" {x}" for x in LETTERS[: len(q.choices)]]) for q in chosen]
        add_letter(records, scored(letters))
    seconds = time.perf_counter() - started
    return Result(MEASUREMENT, name, config_of(config, questions), metrics(records), tuple(records), seconds)


def num_items(questions: Sequence[Question], config: EvaluateConfig) -> int:
    """How many items `mcq` advances by in all."""
    passes = {"all": 3, "cloze": 2, "letter": 1}[config.formats]
    return passes * min(len(questions), config.limit or len(questions))


def num_chars(questions: Sequence[Question], config: EvaluateConfig) -> int:
    """Characters that the model reads in all, for an estimate of the time."""
    share = min(1.0, (config.limit or len(questions)) / len(questions))
    choices = sum(len(choice) for q in questions for choice in q.choices)
    asked = sum(len(q.question) for q in questions)
    cloze, letter = config.formats != "letter", config.formats != "cloze"
    return int(share * (cloze * (asked + 2 * choices) + letter * (asked + choices)))


Record = dict[str, Any]


def start_record(question: Question) -> Record:
    """A record holds everything from which each metric can be computed again."""
    return {
        "id": question.id,
        "subject": question.subject,
        "answer": question.answer,
        "num_choices": len(question.choices),
        "num_chars": [len(choice) for choice in question.choices],
        "correct": {},
    }


def add_cloze(records: Sequence[Record], asked: Sequence[Scored], floor: Sequence[Scored]) -> None:
    for record, scored, alone in zip(records, asked, floor, strict=True):
        record |= {
            "cloze_logprobs": scored.logprobs,
            "num_tokens": scored.num_tokens,
            "floor_logprobs": alone.logprobs,
        }
        per_char = [s / n for s, n in zip(scored.logprobs, record["num_chars"], strict=True)]
        per_token = [s / n for s, n in zip(scored.logprobs, scored.num_tokens, strict=True)]
        values = {
            "cloze": scored.logprobs,
            "cloze_per_char": per_char,
            "cloze_per_token": per_token,
            "floor": alone.logprobs,
        }
        record["correct"] |= {key: largest(v) == record["answer"] for key, v in values.items()}


def add_letter(records: Sequence[Record], letter: Sequence[Scored]) -> None:
    for record, scored in zip(records, letter, strict=True):
        record["letter_logprobs"] = scored.logprobs
        record["correct"]["letter"] = largest(scored.logprobs) == record["answer"]


def largest(values: Sequence[float]) -> int:
    """The first index of the largest value; NaN never wins, and all NaN is -1, which is never right."""
    best = -1
    for index, value in enumerate(values):
        if value == value and (best < 0 or value > values[best]):
            best = index
    return best


def metrics(records: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Accuracy with Wilson interval and centred on chance, for each format. Chance is the mean of 1/C."""
    n = len(records)
    chance = sum(1 / r["num_choices"] for r in records) / n
    measured = records[0]["correct"]
    floor = sum(r["correct"]["floor"] for r in records) / n if "floor" in measured else None
    out = []
    for metric, key in ACCURACIES.items():
        if key not in measured:
            continue
        right = sum(r["correct"][key] for r in records)
        low, high = stats.wilson(right, n)
        stderr = stats.proportion_stderr(right, n)
        beside = floor if key != "letter" else None
        out.append(Metric(metric, right / n, stderr, n, low, high, chance, beside))
        scale = 1 - chance
        out.append(
            Metric(
                metric + "_centred",
                stats.centred(right / n, chance),
                stderr / scale,
                n,
                stats.centred(low, chance),
                stats.centred(high, chance),
            )
        )
    return tuple(out)


def headline_metric(base: Mapping[str, Any]) -> tuple[str, dict[str, bool]]:
    """(the metric that a set is judged by, metric -> whether the BASE is above chance in that format).

    The format in which the base answers best over chance; letter only where it clearly beats cloze, since letters
    can be gamed. `base` is a stored result.
    """
    rows = {m["metric"]: m for m in base["metrics"] if m["metric"] in ACCURACIES}
    knows = {name: row["low"] > max(row["chance"], row.get("floor", 0.0)) for name, row in rows.items()}
    if not all(name in rows for name in HEADLINES):
        return next(name for name in HEADLINES if name in rows), knows
    cloze, letter = (rows[name] for name in HEADLINES)
    return ("letter_accuracy" if letter["low"] > cloze["high"] else "cloze_accuracy"), knows


def judged(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with `headline`, `base_knows` and, where `result` is not the base's own, the paired comparison."""
    headline, knows = headline_metric(base)
    rows = []
    for row in result["metrics"]:
        row = dict(row)
        name = row["metric"]
        if name in knows:
            row["headline"] = name == headline
            row["base_knows"] = knows[name]
            if result["model"] != "base":
                row["paired"] = compare(base["records"], result["records"], ACCURACIES[name])._asdict()
        rows.append(row)
    return {**result, "metrics": rows}


def compare(base: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], key: str) -> stats.Paired:
    return stats.paired([r["correct"][key] for r in base], [r["correct"][key] for r in other])
