"""Texts scored on a CPU: passes of `CPU_TEXT_TOKENS` tokens against passes of the 4,096 that `--batch-tokens` allows.

    python benchmarks/texts.py [--repeat 3]

prints a JSON line with both times, in turn in one run (the best of each counts), and their ratio.
"""

from __future__ import annotations

import argparse
import json
import time


def main() -> None:
    from misdirect.data.batches import tokenize
    from misdirect.data.corpora import read_texts
    from misdirect.model import score
    from misdirect.model.load import load_lm

    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    lm = load_lm("demo", device="cpu")
    texts = tokenize(lm.tokenizer, read_texts("demo-text-biology")[:40], 128)
    sizes = (4096, score.CPU_TEXT_TOKENS)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(args.repeat):
        for size in sizes:
            score.CPU_TEXT_TOKENS = size
            started = time.perf_counter()
            score.text_logprobs(lm, texts, 4096)
            seconds[size].append(time.perf_counter() - started)
    large, small = (min(seconds[size]) for size in sizes)
    print(
        json.dumps({"tokens": sum(map(len, texts)), str(sizes[0]): large, str(sizes[1]): small, "ratio": large / small})
    )


if __name__ == "__main__":
    main()
