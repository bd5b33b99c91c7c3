"""Probes of every block at once against scikit-learn, block by block, on real states: seconds and their ratio, in one run.

The states are the demo model's (its embedding and 30 blocks, 576 wide) at the last token of question + choice, 800 texts
of the demo's development sets, standardised for both outside the measured time. Both solve the same problems to the same
precision: one set of labels, and the six that an audit fits (the true one and five shuffles), at our regularisation and
at a weaker one; with one thread, and with the whole machine, where scikit-learn gets its blocks spread over processes that
are warm already.

    pip install scikit-learn
    python benchmarks/probes.py [--texts 800] [--repeat 2]

prints a JSON line a setting. A ratio above 1 means that ours is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Any

SETS = ("demo-biology-dev", "demo-science-dev")
SHUFFLES = 5
TOLERANCE = 1e-5  # scikit-learn's; with its default of 1e-4 decisions are off by up to 4e-3


def read(num_texts: int) -> tuple[Any, Any]:
    """(states, standardised; one column of labels for the truth and for each shuffle)."""
    import torch

    from misdirect.attacks.probe_fit import moments, standardised
    from misdirect.data.questions import read_questions
    from misdirect.data.templates import cloze_prompt
    from misdirect.model.load import load_lm
    from misdirect.model.score import encode
    from misdirect.model.states import last_states

    lm = load_lm("demo", None, "cpu", "float32")
    asked = [q for name in SETS for q in read_questions(name)][: num_texts // 3]
    items = [encode(lm.tokenizer, cloze_prompt(q.question), [f" {c}" for c in q.choices]) for q in asked]
    states = last_states(lm, items)[:, :num_texts]
    true = torch.tensor([float(i == q.answer) for q in asked for i in range(len(q.choices))])[:num_texts]
    draw = torch.Generator().manual_seed(0)
    columns = [true, *(true[torch.randperm(num_texts, generator=draw)] for _ in range(SHUFFLES))]
    return standardised(states, *moments(states)).float(), torch.stack(columns, 1)


def best(action: Callable[[], Any], repeat: int) -> tuple[float, Any]:
    seconds, value = [], None
    for _ in range(repeat):
        started = time.perf_counter()
        value = action()
        seconds.append(time.perf_counter() - started)
    return min(seconds), value


def one_block(block: Any, labels: Any, strength: float) -> list[Any]:
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        fits = [LogisticRegression(C=strength, tol=TOLERANCE, max_iter=10_000).fit(block, y) for y in labels.T]
    return [fit.decision_function(block) for fit in fits]


def compare(states: Any, labels: Any, strength: float, threads: int, repeat: int) -> dict[str, Any]:
    import numpy as np
    import torch
    from joblib import Parallel, delayed

    from misdirect.attacks.probe_fit import decide, fit

    torch.set_num_threads(threads)
    ours, fitted = best(lambda: fit(states, labels.unsqueeze(-1), strength), repeat)
    blocks, columns = [block.double().numpy() for block in states], labels.numpy()
    if threads == 1:
        theirs, decisions = best(lambda: [one_block(b, columns, strength) for b in blocks], repeat)
    else:
        with Parallel(n_jobs=threads) as pool:
            pool(delayed(one_block)(b[:20], columns[:20], strength) for b in blocks[:threads])  # both warm
            theirs, decisions = best(lambda: pool(delayed(one_block)(b, columns, strength) for b in blocks), repeat)
    mine = decide(fitted, states)[..., 0].numpy()  # (B, N, T)
    other = np.array(decisions).transpose(0, 2, 1)
    return {
        "shape": list(states.shape),
        "labels": labels.shape[1],
        "strength": strength,
        "threads": threads,
        "seconds": {"misdirect": round(ours, 3), "scikit_learn": round(theirs, 3)},
        "ratio": round(theirs / ours, 2),
        "steps": fitted.num_steps,
        "largest_difference": float(np.abs(mine - other).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=800, help="texts to learn from")
    parser.add_argument("--repeat", type=int, default=2, help="how often both fit everything; the better time counts")
    args = parser.parse_args()
    states, labels = read(args.texts)
    width = states.shape[-1]
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        for strength in (1 / width, 10 / width):
            for count in (1, labels.shape[1]):
                print(json.dumps(compare(states, labels[:, :count], strength, threads, args.repeat)), flush=True)


if __name__ == "__main__":
    main()
