"""Several seeds of one run: RUN is the first, RUN/seeds/SEED a full run directory for each further one.

Another seed draws another control vector and another order of samples, so it is another unlearned model: the spread over
seeds is what the interval of one run, which is over questions, does not show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from misdirect import runs, stats

SEEDS = "seeds"


def seed_folder(run: Path, seed: int) -> Path:
    return run / SEEDS / str(seed)


def seed_runs(run: Path) -> list[Path]:
    """The finished runs of further seeds, by seed."""
    found = [path for path in (run / SEEDS).glob("*") if path.name.isdigit() and (path / runs.DELTA).is_file()]
    return sorted(found, key=lambda path: int(path.name))


def over_seeds(folder: Path) -> list[dict[str, Any]]:
    """The spread of every headline number over the seeds of a run: mean, Student's interval, smallest and largest.

    Empty for a run of one seed. Only sets that every finished seed has been measured on are given.
    """
    further = seed_runs(folder)
    if not further:
        return []
    rows = [
        {(r["measurement"], r["set"], r["metric"]): r for r in runs.summary_rows(runs.load_results(path))
         if r["model"] == "unlearned" and r["attack"] is None and r.get("headline")}
        for path in [folder, *further]
    ]  # fmt: skip
    out = []
    for key in rows[0]:
        values = [found[key]["value"] for found in rows if key in found]
        if len(values) < len(rows) or None in values:
            continue
        mean = stats.sample_mean(values)
        low, high = (max(0.0, mean.low), min(1.0, mean.high)) if "accuracy" in key[2] else (mean.low, mean.high)
        metric = runs.Metric(f"{key[2]}_over_seeds", mean.value, mean.stderr, len(values), low, high)
        row = {"model": "unlearned", "attack": None, "measurement": key[0], "set": key[1]}
        out.append(row | runs.row_of(metric) | {"smallest": min(values), "largest": max(values)})
    return out
