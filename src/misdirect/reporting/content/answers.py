"""What the models said, prompt by prompt and turn by turn: base beside unlearned, the greedy answer and sampled ones.

Without leave to show text, what is left is each prompt's id with the verdicts and scores of its answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from misdirect.reporting import wording
from misdirect.reporting.content import metrics
from misdirect.reporting.content.form import Table, in_line
from misdirect.reporting.load.run import Run
from misdirect.runs.stored import typed

MODELS = ("base", "unlearned")
MAX_PROMPTS = 40  # of one set
SUMMED = ("degenerate_share", "degenerate_share_sampled", "judge_score", "judge_score_sampled")


class Score(msgspec.Struct, frozen=True):
    """A judge's."""

    score: float | None = None


class Answer(msgspec.Struct, frozen=True):
    """A model's answer to one turn."""

    text: str = ""
    degenerate: bool = False
    why: str | None = None
    repetition: float | None = None
    judge: Score = Score()


class Answers(msgspec.Struct, frozen=True):
    """The answers to all turns of a prompt."""

    turns: list[Answer] = []


class Record(msgspec.Struct, frozen=True):
    """A prompt's record. One of a single turn, as older versions stored it, holds its answer itself."""

    id: str
    category: str | None = None
    prompt: str = ""
    turns: list[str] = []
    answers: list[Answers] = []


class Said(NamedTuple):
    """One model's answer to one turn."""

    text: str
    flag: str  # why it is degenerate, if it is
    about: str  # its other numbers


class Turn(NamedTuple):
    """What the user says, and what each model answers; None where it was not asked."""

    prompt: str
    said: list[tuple[str, Said | None]]


def answer_groups(run: Run) -> list[dict[str, Any]]:
    """Set by set: what its metrics say in words, and its prompts."""
    groups = []
    for name, prompts in sorted(by_set(run).items()):
        listed = list(prompts.items())
        shown = [prompt_view(models) for _, models in listed[:MAX_PROMPTS]]
        left_out = len(listed) - len(shown)
        groups.append(
            {"set": name, "summary": in_words(run, name), "prompts": shown, "left_out": left_out,
             "scores": scores_table(listed)}
        )  # fmt: skip
    return groups


def by_set(run: Run) -> dict[str, dict[str, dict[str, Record]]]:
    """Set -> prompt's id -> model -> its record."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for result in run.results:
        if result.measurement == "generation":
            for stored in result.records:
                record = typed(stored if "answers" in stored else stored | {"answers": [{"turns": [stored]}]}, Record)
                found.setdefault(result.set, {}).setdefault(record.id, {})[result.model] = record
    return found


def prompt_view(models: Mapping[str, Record]) -> dict[str, Any]:
    """The greedy conversation turn by turn, and each sampled one."""
    answers = {model: [a.turns for a in record.answers] for model, record in models.items()}
    count = max(len(made) for made in answers.values())
    conversations = [conversation(models, answers, index) for index in range(count)]
    return {"greedy": conversations[0], "sampled": conversations[1:]}


def conversation(models: Mapping[str, Record], answers: Mapping[str, list[list[Answer]]], index: int) -> list[Turn]:
    first = next(iter(models.values()))
    prompts = first.turns or [first.prompt]
    made = {name: answers[name][index] if index < len(answers.get(name, [])) else [] for name in MODELS}
    return [
        Turn(prompt, [(name, said(turns[i]) if i < len(turns) else None) for name, turns in made.items()])
        for i, prompt in enumerate(prompts)
    ]


def said(turn: Answer) -> Said:
    return Said(turn.text.strip(), flag(turn), ", ".join(numbers(turn)))


def flag(turn: Answer) -> str:
    return turn.why or "degenerate" if turn.degenerate else ""


def numbers(turn: Answer) -> list[str]:
    made = [f"judge {wording.plain_number(turn.judge.score)} of 10"] if turn.judge.score is not None else []
    return [*made, f"repetition {wording.plain_number(turn.repetition)}"] if turn.repetition else made


def in_words(run: Run, name: str) -> list[str]:
    """`degenerate share: 0.0 → 50.0 % (18.8 to 81.2 %)`."""
    lines = []
    for pair in run.pairs:
        if (pair.measurement, pair.set) == ("generation", name) and pair.metric in SUMMED:
            values = [f"{model} {in_line(x)}" for model, x in metrics.measured(pair).items()]
            lines.append(f"{wording.metric_label(pair.metric)}, n = {metrics.count_of(pair)}: {', '.join(values)}.")
    return lines


def scores_table(prompts: Sequence[tuple[str, Mapping[str, Record]]]) -> Table:
    """Ids and verdicts, no text."""
    rows = []
    for key, models in prompts:
        category = next(iter(models.values())).category or wording.NONE
        rows.append((key, category, *(verdicts(models.get(name)) for name in MODELS)))
    return Table(("Prompt", "Category", *(name.capitalize() for name in MODELS)), rows)


def verdicts(record: Record | None) -> str:
    """`2 of 3 answers degenerate (loop, salad), judge 9 of 10`."""
    if record is None:
        return "not measured"
    answers = [answer.turns for answer in record.answers]
    reasons = [[why for turn in turns if (why := flag(turn))] for turns in answers]
    bad = sum(bool(why) for why in reasons)
    named = ", ".join(dict.fromkeys(why for found in reasons for why in found))
    text = f"{bad} of {wording.counted(len(answers), 'answer')} degenerate" + (f" ({named})" if named else "")
    judged = [turn.judge.score for turns in answers for turn in turns if turn.judge.score is not None]
    return text + (f", judge {wording.plain_number(sum(judged) / len(judged))} of 10" if judged else "")
