"""Updates of a full finetuning with and without `keep_freed_memory`, each in a process of its own, by turns.

python benchmarks/allocator.py --rounds 3
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

WARM, TIMED = 3, 5  # updates: the first ones make the optimizer's state and fill the heap


def updates(keep: bool) -> float:
    """Seconds of an update."""
    if keep:
        from misdirect.cli.entry import keep_freed_memory

        assert keep_freed_memory(), "needs Linux with glibc, and no MALLOC_ variables"
    from misdirect.attacks import finetune
    from misdirect.model.load import load_lm

    lm = load_lm("demo")
    samples = [[(7 * i) % 100 + 1 for i in range(128)]] * 4
    with finetune.trained(lm, "full") as parameters:
        steps = finetune.train(lm, parameters, samples, WARM + TIMED, 1e-9, 4, 0)
        for _ in range(WARM):
            next(steps)
        started = time.perf_counter()
        for _ in range(TIMED):
            next(steps)
        return (time.perf_counter() - started) / TIMED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=["kept", "given-back"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(updates(asked.one == "kept"))
        return
    found: dict[str, list[float]] = {"given-back": [], "kept": []}
    for _ in range(asked.rounds):
        for how, seconds in found.items():
            made = subprocess.run([sys.executable, __file__, "--one", how], capture_output=True, text=True, check=True)
            seconds.append(float(made.stdout.split()[-1]))
            print(f"{how:>10}  {seconds[-1]:.2f} s an update", flush=True)
    ratio = statistics.median(found["given-back"]) / statistics.median(found["kept"])
    print(f"ratio of the medians: {ratio:.2f}")


if __name__ == "__main__":
    main()
