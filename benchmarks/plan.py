"""`misdirect plan` against what happens: time and peak memory of the demo, predicted and measured, as ratios.

The plan is made in a process of its own before the run and again after it, and the mean of both counts, so that a machine
whose speed drifts is not taken for an error of the plan. Then the demo's unlearning and evaluation are run for real.
Both get the same number of updates and questions, which may be fewer than the demo's.

    python benchmarks/plan.py [--updates 240] [--limit 300] [--texts 40]

prints a JSON line: predicted, measured, and predicted / measured for every stage and for the whole.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

Numbers = dict[str, float]


def settings(args: argparse.Namespace) -> tuple[Any, Any, dict[str, dict[str, str]]]:
    """(of the unlearning, of the evaluation, the sets): the demo's, as large as asked."""
    from misdirect.config import EvaluateConfig, UnlearnConfig
    from misdirect.recipes import DemoSettings

    demo = DemoSettings()
    evaluate = EvaluateConfig(limit=args.limit, text_limit=args.texts, max_tokens=128, formats="cloze")
    sets = {"questions": dict(demo.questions), "texts": dict(demo.texts), "prompts": {"answers": "demo-prompts"}}
    return UnlearnConfig(recipe="demo", updates=args.updates), evaluate, sets


def predicted(args: argparse.Namespace) -> Numbers:
    from misdirect.config import Topic
    from misdirect.planning import plan
    from misdirect.recipes import DemoSettings

    unlearn, evaluate, sets = settings(args)
    topics = [Topic("biology", "demo-forget")]
    made = plan("demo", topics, DemoSettings().retain, unlearn, evaluate=evaluate, **sets)
    return {
        "updates": made.stage("unlearn").seconds,
        "evaluation": made.stage("evaluate base").seconds + made.stage("evaluate unlearned").seconds,
        "all": made.seconds,
        "unlearning_mib": made.stage("unlearn").memory / 2**20,
        "mib": made.memory / 2**20,
    }


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(args: argparse.Namespace) -> Numbers:
    """The demo in this process, into a folder that is removed."""
    started = time.perf_counter()
    from misdirect import api, recipes, runs
    from misdirect.config import Topic

    unlearn, evaluate, sets = settings(args)
    with tempfile.TemporaryDirectory() as folder:
        run = api.unlearn(
            "demo", [Topic("biology", "demo-forget")], recipes.DemoSettings().retain, Path(folder, "run"), unlearn
        )
        unlearning = peak_mib()
        api.evaluate(run, **sets, config=evaluate)
        api.report(run)
        return {
            "updates": sum(line["seconds"] for line in runs.read_log(run)),
            "evaluation": sum(result["seconds"] for result in runs.load_results(run)),
            "all": time.perf_counter() - started,
            "unlearning_mib": unlearning,
            "mib": peak_mib(),
        }


PARTS = {"plan": predicted, "demo": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=240)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--texts", type=int, default=40)
    parser.add_argument("--part", choices=PARTS, help="run one part in this process")
    args = parser.parse_args()
    if args.part:
        print(json.dumps(PARTS[args.part](args)))
        return
    sizes = [f"--updates={args.updates}", f"--limit={args.limit}", f"--texts={args.texts}"]

    def part(name: str) -> Numbers:
        command = [sys.executable, __file__, "--part", name, *sizes]
        found: Numbers = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        return found

    before, real, after = part("plan"), part("demo"), part("plan")
    mean = {key: (before[key] + after[key]) / 2 for key in real}
    ratios = {key: mean[key] / real[key] for key in real}
    print(json.dumps({"before": before, "after": after, "measured": real, "predicted / measured": ratios}, indent=1))


if __name__ == "__main__":
    main()
