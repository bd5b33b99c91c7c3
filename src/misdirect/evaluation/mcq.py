"""Multiple-choice accuracy: cloze (the answer's text is scored) and letter (its letter is).

Cloze scores `Question: ...\\nAnswer:` + " " + choice, three ways: the summed log-probability, the same per character,
and per token. Letter shows the choices with A., B., .. and scores " A", " B", ..: once with the choices as they are
given, once moved on by a number of places drawn per question, so that a model that prefers a letter gains nothing. The
floor is the cloze accuracy with the question removed, scored the same way: what a reader of the choices alone knows,
which is not exactly one over the number of choices.

Accuracy over a set with subjects is the micro average; the macro average (the mean over subjects, as MMLU is often
given) and every subject's own accuracy stand beside it.

    result = mcq(lm, "biology", read_questions("biology.jsonl"), EvaluateConfig())
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misdirect import stats
from misdirect.config import EvaluateConfig
from misdirect.data import templates
from misdirect.data.questions import LETTERS, Question
from misdirect.evaluation import paired
from misdirect.model.lm import LM
from misdirect.model.score import Scored, encode, score
from misdirect.runs import Metric, Result
from misdirect.storage import fingerprint

MEASUREMENT = "mcq"
# metric name -> the key of a record's `correct` that it averages, and the key of its floor
ACCURACIES = {
    "cloze_accuracy": ("cloze", "floor"),
    "cloze_per_char_accuracy": ("cloze_per_char", "floor_per_char"),
    "cloze_per_token_accuracy": ("cloze_per_token", "floor_per_token"),
    "letter_accuracy": ("letter", None),
    "letter_permuted_accuracy": ("letter_permuted", None),
}
# The formats that a set may be judged by, the first that the base knows; letter alone may overtake cloze.
HEADLINES = ("cloze_accuracy", "letter_accuracy", "letter_permuted_accuracy")


def config_of(
    config: EvaluateConfig, questions: Sequence[Question], examples: Sequence[Question] = ()
) -> dict[str, Any]:
    """What determines the numbers of this measurement: compared when a stored result is to be used again."""
    keys = ("limit", "formats", "shots", "seed", "dtype")
    made = {k: dataclasses.asdict(config)[k] for k in keys} | {
        "questions": len(questions),
        "sha256": hash_of(questions),
    }
    if config.formats != "cloze":
        made["prompt"] = templates.prompt_form(config.prompt, questions)
    if examples:
        made["examples_sha256"] = hash_of(examples)
    return made


def hash_of(questions: Sequence[Question]) -> str:
    """A context counts where there is one, so that the hashes of sets without any stay as they were."""
    return fingerprint(
        part
        for q in questions
        for part in (q.id, q.subject, q.question, *q.choices, str(q.answer), *([q.context] if q.context else []))
    )


def mcq(
    lm: LM,
    name: str,
    questions: Sequence[Question],
    config: EvaluateConfig,
    advance: Callable[[int], None] | None = None,
    examples: Sequence[Question] = (),
) -> Result:
    """Scores one set in every format. `advance(k)` is called as k forward items are done, `num_items` in all.

    With `config.shots`, each question comes after that many answered ones out of `examples`, else out of `questions`
    themselves, and those are not asked then.
    """
    started = time.perf_counter()
    asked, prompts = rendered(questions, config, examples)
    scored = {
        form: score(
            lm, [encode(lm.tokenizer, *p) for p in found], config.batch_tokens, advance, f"a question of {name}"
        )
        for form, found in prompts.items()
    }
    records = [start_record(q) for q in asked]
    if "cloze" in scored:
        add_cloze(records, scored["cloze"], scored["floor"])
    if "letter" in scored:
        add_letter(records, scored["letter"])
        add_permuted(records, scored["permuted"], [templates.shifted(q, config.seed)[1] for q in asked])
    seconds = time.perf_counter() - started
    made = config_of(config, questions, examples)
    return Result(MEASUREMENT, name, made, metrics(records), tuple(records), seconds)


Rendered = dict[str, list[tuple[str, list[str]]]]  # format -> (context, continuations) of each question


def rendered(
    questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question] = ()
) -> tuple[list[Question], Rendered]:
    """(the questions that are asked, their prompts in every format). Raises ValueError where one cannot be asked so."""
    pool, asked = pool_and_asked(questions, config, examples)
    shown = [templates.examples_for(q, pool, config.shots) for q in asked]
    out: Rendered = {}
    if config.formats != "letter":
        choices = [[" " + choice for choice in q.choices] for q in asked]
        out["cloze"] = [(templates.cloze_prompt(q, e), c) for q, e, c in zip(asked, shown, choices, strict=True)]
        out["floor"] = [(templates.cloze_prompt("", e), c) for e, c in zip(shown, choices, strict=True)]
    if config.formats != "cloze":
        form = templates.prompt_form(config.prompt, questions)
        letters = [[f" {x}" for x in LETTERS[: len(q.choices)]] for q in asked]
        for key, items in (("letter", asked), ("permuted", [templates.shifted(q, config.seed)[0] for q in asked])):
            asked_as = [templates.letter_prompt(q, form, e) for q, e in zip(items, shown, strict=True)]
            out[key] = list(zip(asked_as, letters, strict=True))
    return asked, out


def pool_and_asked(
    questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question]
) -> tuple[list[Question], list[Question]]:
    """(where examples come from, the questions that are asked). Raises ValueError where a format cannot be asked."""
    if config.formats != "cloze":
        templates.check_letters(questions)
    pool, rest = (
        (list(examples), list(questions)) if examples else templates.set_apart(questions, config.shots, config.seed)
    )
    return pool, templates.sample(rest, config.limit, config.seed)


def num_items(questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question] = ()) -> int:
    """How many items `mcq` advances by in all."""
    passes = {"all": 4, "cloze": 2, "letter": 2}[config.formats]
    return passes * len(pool_and_asked(questions, config, examples)[1])


def num_chars(questions: Sequence[Question], config: EvaluateConfig, examples: Sequence[Question] = ()) -> int:
    """Characters that the model reads in all, for an estimate of the time."""
    pool, asked = pool_and_asked(questions, config, examples)
    choices = sum(len(choice) for q in asked for choice in q.choices)
    stems = sum(len(templates.stem(q)) for q in asked)
    shown = [e for q in asked for e in templates.examples_for(q, pool, config.shots)]
    answered = sum(len(templates.stem(e)) + len(e.choices[e.answer]) for e in shown)
    lettered = sum(len(templates.stem(e)) + sum(map(len, e.choices)) for e in shown)
    total = 0
    if config.formats != "letter":
        total += stems + 2 * choices + 2 * answered
    if config.formats != "cloze":
        total += 2 * (stems + choices + lettered)
    return total


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
        for key, values in (("cloze", scored.logprobs), ("floor", alone.logprobs)):
            for form, lengths in (("", None), ("_per_char", record["num_chars"]), ("_per_token", scored.num_tokens)):
                each = values if lengths is None else [s / n for s, n in zip(values, lengths, strict=True)]
                record["correct"][key + form] = largest(each) == record["answer"]


def add_letter(records: Sequence[Record], letter: Sequence[Scored]) -> None:
    for record, scored in zip(records, letter, strict=True):
        record["letter_logprobs"] = scored.logprobs
        record["correct"]["letter"] = largest(scored.logprobs) == record["answer"]


def add_permuted(records: Sequence[Record], letter: Sequence[Scored], shifts: Sequence[int]) -> None:
    """`letter_permuted_logprobs` are in the order of the letters shown: choice i stood at letter i + shift."""
    for record, scored, by in zip(records, letter, shifts, strict=True):
        record |= {"letter_permuted_logprobs": scored.logprobs, "shift": by}
        right = (record["answer"] + by) % record["num_choices"]
        record["correct"]["letter_permuted"] = largest(scored.logprobs) == right


def largest(values: Sequence[float]) -> int:
    """The first index of the largest value; NaN never wins, and all NaN is -1, which is never right."""
    best = -1
    for index, value in enumerate(values):
        if value == value and (best < 0 or value > values[best]):
            best = index
    return best


def metrics(records: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    """Accuracy with Wilson interval and centred on chance, for each format; then by subject. Chance is the mean of 1/C."""
    measured = [name for name, (key, _) in ACCURACIES.items() if key in records[0]["correct"]]
    out = []
    for name in measured:
        row = accuracy(name, records)
        out += [row, centered(row)]
    subjects = by_subject(records)
    if len(subjects) > 1:
        for name in measured:
            rows = [accuracy(name, found, subject) for subject, found in subjects.items()]
            out += [macro(name, rows), *rows]
    return tuple(out)


def accuracy(name: str, records: Sequence[Mapping[str, Any]], subject: str | None = None) -> Metric:
    key, floor_key = ACCURACIES[name]
    n = len(records)
    right = sum(r["correct"][key] for r in records)
    chance = sum(1 / r["num_choices"] for r in records) / n
    floor = None if floor_key is None else sum(r["correct"][floor_key] for r in records) / n
    low, high = stats.wilson(right, n)
    if subject is not None:
        name += "_by_subject"
    return Metric(name, right / n, stats.proportion_stderr(right, n), n, low, high, chance, floor, subject=subject)


def centered(row: Metric) -> Metric:
    assert row.stderr is not None and row.low is not None and row.high is not None and row.chance is not None
    value, low, high = (stats.centered(x, row.chance) for x in (row.value, row.low, row.high))
    return Metric(row.metric + "_centred", value, row.stderr / (1 - row.chance), row.n, low, high)


def macro(name: str, rows: Sequence[Metric]) -> Metric:
    """The mean over subjects, each counted alike; the subjects are taken as given, so only questions are drawn."""
    counts = [(round(row.value * (row.n or 0)), row.n or 0) for row in rows]
    mean = stats.mean_of_means([row.value for row in rows], [stats.adjusted_stderr(right, n) for right, n in counts])
    low, high = max(0.0, mean.low), min(1.0, mean.high)
    chance = sum(row.chance or 0.0 for row in rows) / len(rows)
    floor = None if rows[0].floor is None else sum(row.floor or 0.0 for row in rows) / len(rows)
    return Metric(name + "_macro", mean.value, mean.stderr, sum(n for _, n in counts), low, high, chance, floor)


def by_subject(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        found.setdefault(record.get("subject", ""), []).append(record)
    return {subject: found[subject] for subject in sorted(found)}


def headline_metric(base: Mapping[str, Any]) -> tuple[str, dict[str, bool]]:
    """(the metric that a set is judged by, metric -> whether the BASE is above chance and floor in that format).

    The first of `HEADLINES` that the base knows; letter instead of cloze only where it is clearly the better, since
    letters can be gamed. Where the base knows none, the first that was measured. `base` is a stored result.
    """
    rows = {m["metric"]: m for m in base["metrics"] if m["metric"] in ACCURACIES}
    knows = {name: paired.base_knows(row) for name, row in rows.items()}
    known = [name for name in HEADLINES if knows.get(name)] or [name for name in HEADLINES if name in rows]
    first = known[0]
    if (
        first == "cloze_accuracy"
        and "letter_accuracy" in known
        and rows["letter_accuracy"]["low"] > rows[first]["high"]
    ):
        first = "letter_accuracy"
    return first, knows


def beside_base(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with `headline`, `base_knows` and, where `result` is not the base's own, the paired comparison."""
    headline, knows = headline_metric(base)
    subjects = {
        (row["metric"], row["subject"]): paired.base_knows(row)
        for row in base["metrics"]
        if row.get("subject") is not None
    }

    def marks(row: Mapping[str, Any]) -> dict[str, bool]:
        name, subject = row["metric"].removesuffix("_by_subject"), row.get("subject")
        if name not in knows:
            return {}
        if subject is not None:
            return {"base_knows": subjects[row["metric"], subject]}
        return {"headline": name == headline, "base_knows": knows[name]}

    return paired.with_changes(result, base, reading, marks)


def reading(metric: str) -> paired.Reading | None:
    name = metric.removesuffix("_by_subject").removesuffix("_macro")
    if name not in ACCURACIES:
        return None
    key, is_macro = ACCURACIES[name][0], metric.endswith("_macro")
    change = paired.macro_mcnemar if is_macro else paired.mcnemar
    return paired.Reading(lambda record: record["correct"].get(key), change, is_macro)
