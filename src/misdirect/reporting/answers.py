"""What the models said, prompt by prompt: base beside unlearned, the greedy answer and sampled ones, turn by turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from misdirect.reporting import wording
from misdirect.reporting.reading import Run, mapping, mappings, number

MAX_PROMPTS = 40  # of one set
MAX_SAMPLES = 4  # answers of one model to one prompt, the greedy one among them
SAID = ("repetition", "distinct", "score")  # numbers of an answer that are shown beside it


class Turn(NamedTuple):
    prompt: str
    text: str


class Answer(NamedTuple):
    """One answer of one model; several turns where the prompt has several."""

    label: str
    turns: list[Turn]
    degenerate: bool
    numbers: str


def answer_groups(run: Run) -> list[dict[str, Any]]:
    """Set by set the prompts, each with both models' answers, matched by the record's id."""
    found: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for result in run.results:
        if result.get("measurement") == "generation":
            for record in mappings(result.get("records")):
                prompts = found.setdefault(str(result.get("set")), {})
                prompts.setdefault(str(record.get("id")), {}).setdefault(result["model"], []).append(record)
    return [
        {
            "set": name,
            "prompts": [prompt_view(models) for models in list(prompts.values())[:MAX_PROMPTS]],
            "left_out": max(0, len(prompts) - MAX_PROMPTS),
        }
        for name, prompts in sorted(found.items())
    ]


def prompt_view(models: Mapping[str, list[Mapping[str, Any]]]) -> dict[str, Any]:
    """A prompt (its first turn), and for each model its answers."""
    first = next(record for records in models.values() for record in records)
    answers = {name: [answer(record) for record in models.get(name, [])] for name in ("base", "unlearned")}
    return {
        "prompt": turns(first)[0].prompt,
        "models": [(name, made[:MAX_SAMPLES], max(0, len(made) - MAX_SAMPLES)) for name, made in answers.items()],
    }


def answer(record: Mapping[str, Any]) -> Answer:
    sample = record.get("sample")
    label = "greedy" if sample in (None, 0, "greedy") else f"sample {sample}"
    values = [(key, number(record, key)) for key in SAID]
    said = ", ".join(f"{key} {wording.plain_number(x)}" for key, x in values if x is not None)
    return Answer(label, turns(record), record.get("degenerate") is True, said)


def turns(record: Mapping[str, Any]) -> list[Turn]:
    """A record holds `prompt` and `text`, or lists of them, or `turns` of such pairs."""
    if nested := mappings(record.get("turns")):
        return [Turn(as_text(turn.get("prompt")), as_text(turn.get("text"))) for turn in nested]
    prompts, texts = as_texts(record.get("prompt")), as_texts(record.get("text"))
    size = max(1, len(prompts), len(texts))
    prompts, texts = prompts + [""] * (size - len(prompts)), texts + [""] * (size - len(texts))
    return [Turn(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]


def as_texts(data: Any) -> list[str]:
    return [as_text(part) for part in data] if isinstance(data, list) else [as_text(data)]


def as_text(data: Any) -> str:
    data = mapping(data).get("content", data)
    return "" if data is None else str(data)
