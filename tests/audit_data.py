"""Audits made up for the tests of the page: one with all that an audit can have, and ones that lack this or that."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from misdirect import runs, stats, storage
from misdirect.attacks.scoring import accuracies
from misdirect.runs import Metric, Result
from report_data import small_run

TESTED, KNOWN = 80, 50  # questions of biology that are asked; the first ones are known to the base
AFTER = 12  # of the known ones that the unlearned model still answers right
KEPT = 60
RATES = ("2e-05", "0.0001")
TEXTS = {
    "facts": "other facts of the topic",
    "forget": "the forget corpus",
    "benign": "benign text",
    "retain": "the retain text",
}


class Made(NamedTuple):
    """An attack made up: right answers among the known questions at each point, for base and unlearned."""

    name: str
    family: str
    title: str
    access: str
    points: Sequence[tuple[Mapping[str, float], int, int]]  # ({"step": 5}, base, unlearned)
    tokens: float = 0.0
    seconds: float = 60.0
    recovers: bool = True
    control: float | None = None
    settings: Mapping[str, Any] = {}
    kept: int = 30  # right among the questions to be kept, after the attack
    degenerate: float = 0.0
    text: str = ""  # what the attack found


def steps(*right: int, base: int = KNOWN) -> list[tuple[dict[str, float], int, int]]:
    return [
        ({"step": s}, base - (i > 3), r) for i, (s, r) in enumerate(zip((0, 5, 10, 20, 50, 100), right, strict=False))
    ]


def everything() -> list[Made]:
    made = []
    for (text, title), best in zip(TEXTS.items(), (36, 46, 25, 18), strict=True):
        for method, factor in (("full", 1.0), ("lora", 0.7)):
            for rate in RATES[: 2 if text in ("facts", "forget") else 1]:
                gain = (best - AFTER) * factor * (0.8 if rate == RATES[0] else 1.0)
                curve = steps(*(round(AFTER + gain * share) for share in (0, 0.2, 0.4, 0.6, 0.9, 1.0)))
                how = "Finetuning" if method == "full" else "LoRA finetuning"
                settings = {
                    "lr": float(rate),
                    "texts_that_state_a_tested_fact": 31 if text == "forget" else 0,
                    "texts_sha256": "ab" * 32,
                }
                name = f"relearn-{text}-{method}-lr{rate}-steps100"
                made.append(Made(name, "relearn", f"{how} on {title}, lr {rate}, 100 steps", "weights", curve, 51200, 210.0,
                                 settings=settings))  # fmt: skip
    one: dict[str, float] = {}
    made += [
        Made("direction-control-all", "direction", "Control vector taken out of every block", "weights", [(one, 49, 21)], 0, 9.0),
        Made("quantise-int4", "quantise", "Quantised to int4", "weights", [({"budget": 4.0}, 45, 13)], 0, 4.0, kept=27),
        Made("prune", "prune", "Smallest weights pruned", "weights",
             [({"budget": x}, 50 - i, 12 + i) for i, x in enumerate((0.1, 0.2, 0.3, 0.4, 0.5))], 0, 30.0),
        Made("soft-prompt", "soft-prompt", "Soft prompt of 10 vectors", "gradients", steps(12, 14, 19, 24, 26), 88000, 160.0,
             control=1.0, degenerate=0.25),
        Made("gcg-suffix-universal", "gcg", "GCG, one suffix for all questions", "gradients", [(one, 50, 12)], 2.5e6, 900.0,
             control=0.0, text="WORKING SUFFIX !! describing"),
        Made("prompt-few-shot", "prompt", "Five examples of the topic before the question", "prompt",
             [({"budget": float(x)}, 50, 12 + x) for x in (0, 1, 2, 5)], 0, 12.0,
             settings={"shots": [0, 1, 2, 5]}),
        Made("prompt-paraphrase", "prompt", "Other wordings", "prompt",
             [({"budget": float(i)}, 50, 13 - i) for i in range(3)], 0, 12.0, settings={"variants": ["quiz", "book", "bare"]}),
    ]  # fmt: skip
    return made


DIAGNOSTICS = [
    {"name": "lens", "family": "lens", "title": "Logit lens", "access": "weights", "recovers": False, "status": "done"},
    {"name": "probe-true-false", "family": "probe", "title": "Linear probe, true or false", "access": "weights",
     "recovers": False, "status": "done"},
    {"name": "probe-choice", "family": "probe", "title": "Linear probe, which of four", "access": "weights", "recovers": False,
     "status": "not run", "why": "needs 40 questions; --limit 80 would do"},
    {"name": "brittleness", "family": "prompt", "title": "Forget words before retained questions", "access": "prompt",
     "recovers": False, "status": "done", "settings": {"words": [0, 3]}},
    {"name": "gcg-suffix-single", "family": "gcg", "title": "A text for one question", "access": "gradients",
     "recovers": False, "status": "done"},
]  # fmt: skip
UNDONE = [
    {"name": "quantise-nf4", "family": "quantise", "title": "Quantised to nf4", "access": "weights", "recovers": True,
     "status": "not run", "why": "needs misdirect[quantise]"},
    {"name": "gcg-single", "family": "gcg", "title": "GCG, a suffix a question", "access": "gradients", "recovers": True,
     "status": "not run", "why": "needs 12 minutes; --minutes 60 would do"},
    {"name": "noise", "family": "noise", "title": "Noise on the weights", "access": "weights", "recovers": True,
     "status": "failed", "why": "the loss is not a number at step 3"},
]  # fmt: skip


# ------------------------------------------------------------------------------------------------ writing


def answers(right: int, known: bool = True) -> list[bool]:
    """`right` of the known questions, and chance among the others."""
    draw = random.Random(right)
    chosen = set(draw.sample(range(KNOWN), right))
    return [i in chosen if i < KNOWN else known and i % 5 == 0 for i in range(TESTED)]


def save_plain(run: Path, name: str, right: Mapping[str, Sequence[bool]]) -> None:
    for model, found in right.items():
        low, high = stats.wilson(sum(found), len(found))
        row = Metric(
            "cloze_accuracy",
            sum(found) / len(found),
            0.05,
            len(found),
            low,
            high,
            0.25,
            0.3,
            headline=True,
            base_knows=True,
        )
        records = tuple({"id": f"{name}-{i}", "correct": {"cloze": x}} for i, x in enumerate(found))
        runs.save_result(run, model, Result("mcq", name, {"sha256": "a1"}, (row,), records))


def save_mcq(run: Path, attack: str, model: str, name: str, points: Sequence[tuple[Mapping[str, float], Sequence[bool]]],
             extra: Sequence[Metric] = (), text: str = "") -> None:  # fmt: skip
    found = {"text": text} if text else {}
    records = []
    for i in range(len(points[0][1])):
        at = [dict(spot) | {"correct": right[i], "logprobs": [0.0] * 4} for spot, right in points]
        records.append({"id": f"{name}-{i}", "num_choices": 4, "answer": 0, "fold": i % 2, "points": at} | found)
    metrics = (*accuracies(records, "cloze"), *extra)
    runs.save_result(run, model, Result("mcq", name, {"attack": attack}, metrics, tuple(records)), attack)


def save_recovered(
    run: Path, attack: str, name: str, points: Sequence[tuple[Mapping[str, float], float]], config: Any = None
) -> None:
    rows = []
    for at, share in points:
        rows.append(Metric("recovered_share", share, 0.08, KNOWN, share - 0.16, share + 0.14, **at))
    best = max(share for _, share in points) - 0.02
    rows.append(Metric("recovered_share", best, 0.08, KNOWN, best - 0.16, best + 0.14, headline=True))
    rows.append(Metric("recovered_share_all", best - 0.05, 0.08, TESTED, best - 0.2, best + 0.1, headline=True))
    runs.save_result(run, "unlearned", Result("recovered", name, config or {}, tuple(rows), ()), attack)


def save_attack(
    run: Path, made: Made, name: str = "biology", kept: str = "physics", models: Sequence[str] = ("base", "unlearned")
) -> None:
    cost = [Metric("attack_tokens", float(made.tokens)), Metric("attack_seconds", float(made.seconds))]
    for index, model in enumerate(("base", "unlearned")):
        if model not in models:
            continue
        extra = [*cost, Metric("positive_control", made.control)] if made.control is not None else cost
        save_mcq(run, made.name, model, name, [(p[0], answers(p[1 + index])) for p in made.points], extra, made.text)
        save_mcq(run, made.name, model, kept, [(p[0], [i < made.kept for i in range(KEPT)]) for p in made.points])
        row = Metric("degenerate_share", made.degenerate if index else 0.0, n=8)
        record = {"id": "0", "prompt": "PROMPT TEXT", "text": "ANSWER TEXT"}
        runs.save_result(run, model, Result("generation", "answers", {}, (row,), (record,)), made.name)
    if "unlearned" in models:
        shares = [(p[0], (p[2] - AFTER) / (KNOWN - AFTER)) for p in made.points]
        save_recovered(run, made.name, name, shares)


def save_probes(run: Path, blocks: int = 12, name: str = "biology") -> None:
    for model in ("base", "unlearned"):
        rows = []
        for block in range(blocks):
            value = 0.55 + 0.025 * block - (0.12 if model == "unlearned" and block >= 7 else 0.0)
            found = (("probe_accuracy", value), ("probe_shuffled_accuracy", 0.5 + 0.01 * (block % 3)),
                     ("selectivity", value - 0.5))  # fmt: skip
            floors = {"probe_accuracy": 0.52}
            rows += [
                Metric(metric, x, 0.03, 160, x - 0.06, x + 0.06, 0.5, floors.get(metric), block=block)
                for metric, x in found
            ]
        for measured in (name, "physics"):
            runs.save_result(run, model, Result("probe", measured, {}, tuple(rows), ()), "probe-true-false")
        right = [round(18 + 2.6 * b * (0.3 if model == "unlearned" else 1.0)) for b in range(blocks)]
        save_mcq(run, "lens", model, name, [({"block": b}, answers(r)) for b, r in enumerate(right)])
        correct = [i < (28 if model == "base" else 16) for i in range(KEPT)]
        save_mcq(run, "brittleness", model, "physics", [({"budget": 0.0}, [True] * KEPT), ({"budget": 3.0}, correct)])
        single = (
            Metric("right_said", 0.5 if model == "base" else 0.25, n=4),
            Metric("easier_after", 1.234, 0.5, 4, headline=True),
        )
        record = {"id": "biology-0", "text": "WORKING SUFFIX single"}
        runs.save_result(run, model, Result("gcg", name, {}, single, (record,)), "gcg-suffix-single")


def about(attacks: Sequence[Mapping[str, Any]], name: str = "biology", removed: bool = True) -> dict[str, Any]:
    value = (KNOWN - AFTER) / TESTED if removed else 0.01
    none = {
        "name": "none",
        "family": "none",
        "title": "No attack",
        "access": "prompt",
        "recovers": False,
        "status": "done",
    }
    return {
        "misdirect": "0.1.0",
        "base": {"source": "demo"},
        "unlearned": {"source": "/home/somebody/secret/runs/demo"},
        "settings": {"minutes": 240.0, "steps": 100, "lr": "2e-5,1e-4", "limit": None},
        "split": {name: {"asked": 200, "attacked": 100, "tested": TESTED, "known": KNOWN + 6}},
        "forms": {name: "cloze", "physics": "cloze"},
        "removed": {name: {"value": value, "low": value - 0.1, "high": value + 0.1, "removed": removed}},
        "speed": {"forward_tokens": 1000.0},
        "attacks": [none, *attacks],
        "seconds": 5400.0,
    }


def entry(made: Made, status: str = "done", why: str = "") -> dict[str, Any]:
    keys = ("name", "family", "title", "access", "recovers")
    seconds = {"base": made.seconds, "unlearned": made.seconds}
    return {key: getattr(made, key) for key in keys} | {
        "status": status, "why": why, "seconds": seconds, "settings": dict(made.settings)}  # fmt: skip


def save_strongest(run: Path, chosen: Sequence[Any], share: float = 0.61, name: str = "biology") -> None:
    rows = (Metric("recovered_share", share, 0.08, KNOWN, share - 0.14, share + 0.12, headline=True),)
    runs.save_result(
        run,
        "unlearned",
        Result(
            "recovered",
            name,
            {"chosen": list(chosen), "unknown": {"n": 24, "unlearned_right": 5, "attacked_right": 7}},
            rows,
            (),
        ),
        "strongest",
    )


def save_none(run: Path) -> None:
    for index, model in enumerate(("base", "unlearned")):
        save_mcq(run, "none", model, "biology", [({}, answers((KNOWN, AFTER)[index]))])
        save_mcq(run, "none", model, "physics", [({}, [i < 32 - index for i in range(KEPT)])])


def unattacked(run: Path) -> None:
    base = [x or i % 5 == 0 for i, x in enumerate(answers(KNOWN))]
    save_plain(run, "biology", {"base": base, "unlearned": answers(AFTER)})
    save_plain(run, "physics", {m: [i < 31 + (m == "base") for i in range(KEPT)] for m in ("base", "unlearned")})


def full_audit(folder: Path) -> Path:
    """A run with an audit that has everything: done, not run, inconclusive, failed, probes, brittleness."""
    small_run(folder)
    unattacked(folder)
    made = everything()
    for each in made:
        save_attack(folder, each)
    save_probes(folder)
    save_none(folder)
    best = "relearn-forget-full-lr0.0001-steps100"
    save_strongest(folder, [[best, {"step": 100}], ["relearn-facts-full-lr0.0001-steps100", {"step": 50}]])
    listed = [*(entry(each, "inconclusive" if each.control == 0.0 else "done") for each in made), *DIAGNOSTICS, *UNDONE]
    storage.write_json(folder / "audit.json", about(listed))
    return folder


def pair_audit(folder: Path, removed: bool = True) -> Path:
    """The folder of `audit BASE UNLEARNED`: no config.json, one attack."""
    folder.mkdir()
    unattacked(folder)
    made = everything()[0]
    save_attack(folder, made)
    save_none(folder)
    if removed:
        save_strongest(folder, [[made.name, {"step": 100}], [made.name, {"step": 100}]])
    storage.write_json(folder / "audit.json", about([entry(made), *UNDONE], removed=removed))
    return folder
