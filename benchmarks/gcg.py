"""Candidates a second of the GCG search: with the shared prefix, and as plain full forward passes.

One question with 100 tokens before the adversarial text, 12 adversarial tokens, a target of about 6 tokens; 64 single
swaps a pass. The plain form runs each candidate's whole prompt, with logits at the target's positions alone in both forms.
Each form is tried with several batch sizes, in turn, and its best one counts.

    python benchmarks/gcg.py [--candidates 64] [--repeats 2] [--model demo]

prints a JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from misdirect.attacks.gcg.loss import Form, Ids, Job, PromptSlot, gradient, job_of, losses
from misdirect.attacks.gcg.search import PromptTemplate, allowed_tokens, prompt_slots, retokenizes, swapped
from misdirect.model.lm import LM
from misdirect.model.load import load_lm

TEXT = (
    "The water of a river carries sand and small stones from the hills to the sea. Where it slows down, the heavier grains "
    "sink first and the finer ones later, so that layers of different grain lie one above the other. After many years the "
    "layers are pressed together and become rock, and a reader of such rock can tell where the river once ran. "
)
PREFIX, SUFFIX_TOKENS = 100, 12
BATCHES: dict[Form, tuple[int, ...]] = {"plain": (1024, 4096), "cached": (512, 2048), "tree": (256, 512, 2048)}


def prompt(lm: LM) -> tuple[list[PromptSlot], Ids]:
    """The text cut so that 100 tokens stand before the adversarial ones."""
    words = (TEXT + TEXT).split()
    for count in range(len(words), 0, -1):
        template = PromptTemplate(
            f"Question: {' '.join(words[:count])}", "\nAnswer:", " a layer of sedimentary rock near"
        )
        if len(lm.tokenizer(template.before)["input_ids"]) <= PREFIX:
            return prompt_slots(lm.tokenizer, [template], SUFFIX_TOKENS)
    raise AssertionError("no text")


def candidates_of(lm: LM, slots: list[PromptSlot], ids: Ids, count: int) -> list[Ids]:
    draw = torch.Generator().manual_seed(0)
    tokens = allowed_tokens(lm).nonzero().flatten()
    picks = tokens[torch.randint(len(tokens), (4 * count,), generator=draw)].tolist()
    made = [swapped(ids, [(i % len(ids), token)]) for i, token in enumerate(picks)]
    return [c for c, good in zip(made, retokenizes(lm.tokenizer, slots, made), strict=True) if good][:count]


def seconds_of(job: Job, candidates: list[Ids], ids: Ids) -> float:
    started = time.perf_counter()
    losses(job, [0], candidates, ids)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    lm = load_lm(options.model)
    slots, ids = prompt(lm)
    candidates = candidates_of(lm, slots, ids, options.candidates)
    jobs = {(form, size): job_of(lm, slots, ids, size, form) for form, sizes in BATCHES.items() for size in sizes}
    best: dict[str, tuple[float, int]] = {}
    for _ in range(options.repeats):
        for (form, size), job in jobs.items():
            best[form] = min(best.get(form, (float("inf"), 0)), (seconds_of(job, candidates, ids), size))
    started = time.perf_counter()
    gradient(jobs["tree", 2048], [0], ids)
    slope_seconds = time.perf_counter() - started
    plain = losses(jobs["plain", 1024], [0], candidates, ids)
    apart = max((losses(jobs[f, 2048], [0], candidates, ids) - plain).abs().max().item() for f in ("tree", "cached"))
    rates = {form: round(len(candidates) / seconds, 1) for form, (seconds, _) in best.items()}
    print(json.dumps({
        "before": len(slots[0].before), "suffix": len(ids), "after": len(slots[0].after), "target": len(slots[0].target),
        "candidates": len(candidates), "threads": torch.get_num_threads(), "candidates_per_second": rates,
        "best_batch": {form: size for form, (_, size) in best.items()},
        "cached_over_plain": round(rates["cached"] / rates["plain"], 2),
        "tree_over_plain": round(rates["tree"] / rates["plain"], 2),
        "gradient_seconds": round(slope_seconds, 3), "largest_difference": apart,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
