"""Cloze questions a second: our scorer against lm-evaluation-harness at its best batch size, on one model in memory.

Both answer the same questions of the demo's two development sets with the same prompts, and both turn text into tokens
inside the measured time. The harness is asked for its log-probabilities alone, without its start-up, task files and
reports; ours makes no floor pass, since the harness makes none. Every batch size is tried on part of the questions, then
the fastest one and ours answer all of them in turn, and the better time of each counts.

    pip install 'misdirect[eval]'
    python benchmarks/harness.py [--limit 0] [--tries 48] [--repeat 2]

prints a JSON line with both speeds, their ratio, both accuracies and the largest difference of a log-probability.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from misdirect.data.questions import Question, read_questions
from misdirect.data.templates import cloze_prompt, sample

BATCH_SIZES = (1, 4, 8, 16, 32)
SETS = ("demo-science-dev", "demo-biology-dev")
Answers = list[list[float]]


def ours(lm: Any, questions: Sequence[Question], batch_tokens: int) -> Answers:
    from misdirect.model.score import encode, score

    items = [encode(lm.tokenizer, cloze_prompt(q.question), [" " + c for c in q.choices]) for q in questions]
    return [scored.logprobs for scored in score(lm, items, batch_tokens)]


def theirs(harness: Any, questions: Sequence[Question]) -> Answers:
    from lm_eval.api.instance import Instance

    requests = [
        Instance("loglikelihood", {}, (cloze_prompt(q.question), " " + c), i)
        for q in questions
        for i, c in enumerate(q.choices)
    ]
    values = iter(harness.loglikelihood(requests, disable_tqdm=True))
    return [[next(values)[0] for _ in q.choices] for q in questions]


def timed(answer: Callable[[], Answers]) -> tuple[float, Answers]:
    started = time.perf_counter()
    answers = answer()
    return time.perf_counter() - started, answers


def accuracy(questions: Sequence[Question], answers: Answers) -> float:
    right = sum(max(range(len(a)), key=a.__getitem__) == q.answer for q, a in zip(questions, answers, strict=True))
    return right / len(questions)


def compare(questions: Sequence[Question], tries: int, repeat: int, batch_tokens: int) -> dict[str, Any]:
    import torch
    from lm_eval.models.huggingface import HFLM

    from misdirect.model.load import load_lm

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = load_lm("demo", None, "cpu", "float32")
    by_size = {b: HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=b) for b in BATCH_SIZES}
    few = sample(questions, tries, seed=0)
    timed(lambda: theirs(by_size[8], few[:8]))  # both warm
    timed(lambda: ours(lm, few[:8], batch_tokens))
    tried = {b: len(few) / timed(lambda h=harness: theirs(h, few))[0] for b, harness in by_size.items()}  # type: ignore[misc]
    best = max(tried, key=tried.__getitem__)
    pairs = [
        (timed(lambda: ours(lm, questions, batch_tokens)), timed(lambda: theirs(by_size[best], questions)))
        for _ in range(repeat)
    ]
    (seconds, mine), (their_seconds, other) = min(p[0] for p in pairs), min(p[1] for p in pairs)
    differences = [abs(a - b) for x, y in zip(mine, other, strict=True) for a, b in zip(x, y, strict=True)]
    return {
        "questions": len(questions),
        "threads": torch.get_num_threads(),
        "questions_per_second": {"misdirect": len(questions) / seconds, "lm_eval": len(questions) / their_seconds},
        "ratio": their_seconds / seconds,
        "lm_eval_batch_size": best,
        "lm_eval_tried": tried,
        "accuracy": {"misdirect": accuracy(questions, mine), "lm_eval": accuracy(questions, other)},
        "largest_difference": max(differences),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=200, help="questions in all, drawn evenly; 0: every one")
    parser.add_argument("--tries", type=int, default=48, help="questions on which each batch size is tried")
    parser.add_argument("--repeat", type=int, default=2, help="how often both answer everything")
    parser.add_argument("--batch-tokens", type=int, default=4096, help="our scorer's batch")
    args = parser.parse_args()
    questions = [q for name in SETS for q in read_questions(name)]
    questions = sample(questions, args.limit or None, seed=0)
    print(json.dumps(compare(questions, args.tries, args.repeat, args.batch_tokens), indent=1))


if __name__ == "__main__":
    main()
