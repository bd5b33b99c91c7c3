"""Measurements of one run or model: what is still to make, making it, and what shows only beside the base.

Every measurement is a `Task`. A result is stored as soon as it is made, so a killed evaluation loses one set at most.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from misdirect import runs, storage
from misdirect.config import EvaluateConfig
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.corpora import read_documents
from misdirect.data.prompts import read_prompts
from misdirect.data.questions import read_questions
from misdirect.data.splits import EXAMPLES as EXAMPLE_SPLITS
from misdirect.evaluation import generation, judge, mcq, nll
from misdirect.model.delta import load_delta, swapped_in
from misdirect.model.finite import about
from misdirect.model.identity import changed_files
from misdirect.model.lm import LM
from misdirect.model.score import tokens_per_second
from misdirect.model.sources import takes_base
from misdirect.progress import bar, note
from misdirect.runs.seeds import seed_runs

Advance = Callable[[int], None]
# Where the answered examples of a built-in set come from: its own development split.
EXAMPLES = {"mmlu": "mmlu-dev", "demo-mmlu": "demo-mmlu-dev"}
ESTIMATE_FROM = 30.0  # seconds from which on an estimate is printed beforehand


def results_folder(target: str, base: str | None, out: str | Path | None) -> Path:
    """The folder for results: a run's own, else `out`. Raises ValueError for what cannot be measured, or not there."""
    path = Path(target).expanduser()
    if runs.is_run(path):
        runs.require_run(path)
        if out is not None:
            raise ValueError(f"{target} is a run, so its results go into it; expected no --out")
        return path
    if out is None:
        raise ValueError(f"{target} is a model, not a run; expected --out FOLDER for its results")
    if base is not None and not takes_base(target):
        raise ValueError(
            f"--model names the base of a run, of an adapter or of a model without a tokenizer, and {target} is none of "
            "these; expected it left out"
        )
    folder = storage.writable(out)
    refuse_other_model(folder, target, base)
    return folder


def refuse_other_model(folder: Path, model: str, base: str | None = None) -> None:
    """Raises ValueError where the folder for a model's results holds a run, a model, or another model's results."""
    if (folder / runs.CONFIG).exists():
        what = "a run" if runs.is_run(folder) else "a model"
        raise ValueError(f"{folder} holds {what}; expected a folder of its own for --out")
    env = runs.read_env(folder)
    stored, named = env.get("model", model), env.get("base") if env else base
    if stored != model:
        raise ValueError(f"{folder} holds the results of {stored}, not of {model}; expected another --out")
    if changed := changed_files(env.get("model_files"), model):
        raise ValueError(
            f"{folder} holds the results of {model} as it was: {changed[0]} has been written since; expected another --out"
        )
    if named != base:
        on = [f"with --model {name}" if name else "without --model" for name in (named, base)]
        raise ValueError(f"{folder} holds the results of {model} {on[0]}, not {on[1]}; expected another --out")


@dataclass(frozen=True)
class Task:
    """One measurement still to make or already stored: how to make it, what it depends on, how long it is."""

    measurement: str
    name: str
    config: Mapping[str, Any]
    num_items: int
    num_chars: int
    measure: Callable[[LM, Advance], runs.Result]
    beside_base: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


class Side(NamedTuple):
    """Where one model's results are kept: the base, the unlearned model, or that of a further seed."""

    folder: Path
    model: str  # base or unlearned
    label: str


def sides_of(folder: Path, is_run: bool) -> list[Side]:
    """The base first, then the unlearned model, then that of every further seed that is finished."""
    if not is_run:
        return [Side(folder, "base", "base")]
    further = [Side(path, "unlearned", f"seed {path.name}") for path in seed_runs(folder)]
    return [Side(folder, "base", "base"), Side(folder, "unlearned", "unlearned"), *further]


def make_tasks(
    questions: Mapping[str, str],
    texts: Mapping[str, str],
    prompts: Mapping[str, str],
    config: EvaluateConfig,
    examples: Mapping[str, str] | None = None,
    named: Sequence[str] = (),
) -> list[Task]:
    """Reads every set, so that bad input is found before a model is loaded. `named`: lm-evaluation-harness tasks."""
    unknown = (examples or {}).keys() - questions.keys()
    if unknown:
        raise ValueError(f"--examples names {sorted(unknown)[0]!r}; expected the name of a --questions set")
    if examples and not config.shots:
        raise ValueError("--examples has no effect without --shots; expected --shots N")
    own = {name: pool for name, source in questions.items() if config.shots and (pool := examples_of(source))}
    pools = {name: read_questions(source, EXAMPLE_SPLITS) for name, source in {**own, **(examples or {})}.items()}
    asked = {name: read_questions(source) for name, source in questions.items()}
    documents = {name: read_documents(source) for name, source in texts.items()}
    said = {name: read_prompts(source) for name, source in prompts.items()}
    return [
        *(task_of(mcq, mcq.mcq, name, items, config, pools.get(name, ())) for name, items in asked.items()),
        *(task_of(nll, nll.nll, name, found.texts, config, found.whole) for name, found in documents.items()),
        *(task_of(generation, generation.generation, name, items, config) for name, items in said.items()),
        *harness_tasks(named, config),
    ]


def examples_of(source: str) -> str | None:
    """`mmlu` and `mmlu-SUBJECT` have the same development split."""
    return next((pool for name, pool in EXAMPLES.items() if source == name or source.startswith(name + "-")), None)


def task_of(
    module: Any, measure: Callable[..., runs.Result], name: str, items: Any, config: EvaluateConfig, *more: Any
) -> Task:
    """A measurement module's task: each has `MEASUREMENT`, `config_of`, `num_items`, `num_chars` and `beside_base`."""
    return Task(
        module.MEASUREMENT,
        name,
        module.config_of(config, items, *more),
        module.num_items(items, config, *more),
        module.num_chars(items, config, *more),
        lambda lm, step: measure(lm, name, items, config, step, *more),
        module.beside_base,
    )


def harness_tasks(named: Sequence[str], config: EvaluateConfig) -> list[Task]:
    """Tasks of lm-evaluation-harness, which is not imported unless there are any."""
    if not named:
        return []
    from misdirect.evaluation import harness
    from misdirect.evaluation.harness_tasks import parse_tasks, read_task

    found = [read_task(name, source, config) for name, source in parse_tasks(named).items()]
    return [task_of(harness, harness.harness, task.name, task, config) for task in found]


Stored = dict[Path, dict[str, Any]]  # the file of a result -> what it holds: read once, and handed on as it grows


def path_of(side: Side, task: Task) -> Path:
    return runs.result_path(side.folder, side.model, task.measurement, task.name)


def stored_results(sides: Sequence[Side], tasks: Sequence[Task]) -> Stored:
    """What is there already. Raises ValueError where it was measured with other settings."""
    found = {
        path_of(side, t): runs.load_result(side.folder, side.model, t.measurement, t.name, t.config)
        for side in sides
        for t in tasks
    }
    return {path: result for path, result in found.items() if result is not None}


def missing_tasks(sides: Sequence[Side], tasks: Sequence[Task], stored: Stored) -> dict[Side, list[Task]]:
    """What each side still lacks."""
    return {side: [task for task in tasks if path_of(side, task) not in stored] for side in sides}


def measure_all(lm: LM, missing: Mapping[Side, Sequence[Task]]) -> Stored:
    """Makes and stores every missing measurement, one model after the other over one set of weights."""
    made: Stored = {}
    tokens = sum(t.num_chars for tasks in missing.values() for t in tasks) / CHARS_PER_TOKEN
    speed = tokens_per_second(lm)
    if tokens / speed > ESTIMATE_FROM:
        note(f"About {tokens / speed / 60:.1f} minutes: {tokens:,.0f} tokens at {speed:,.0f} a second")
    with bar("Evaluating", sum(t.num_items for tasks in missing.values() for t in tasks)) as advance:
        for side, tasks in missing.items():
            change: Any = contextlib.nullcontext()
            if side.model == "unlearned" and tasks:
                change = swapped_in(load_delta(side.folder / runs.DELTA), lm.model)
            with change:
                for task in tasks:
                    step = lambda k, text=f"{side.label}: {task.name}": advance(k, text)  # noqa: E731
                    with about(f"{side.label}, {task.name}"):
                        result = task.measure(lm, step)
                    made[path_of(side, task)] = runs.save_result(side.folder, side.model, result)
    return made


def answers(stored: Stored) -> Stored:
    """The results that hold answers to prompts."""
    return {path: result for path, result in stored.items() if result["measurement"] == generation.MEASUREMENT}


def unread(stored: Stored) -> Stored:
    """The answers that the base has not read yet."""
    return {path: result for path, result in answers(stored).items() if generation.unread(result)}


def unread_at(paths: Sequence[Path]) -> Stored:
    return unread({path: runs.read_result(path) for path in paths})


def read_answers(lm: LM, left: Stored, config: EvaluateConfig) -> Stored:
    """The base, `lm`, reads stored answers that it has not read yet: what it finds incomprehensible is not language."""
    read: Stored = {}
    if not left:
        return read
    with bar(
        "Reading the answers", sum(len(generation.turns(r)) for x in left.values() for r in x["records"])
    ) as advance:
        for path, stored in left.items():
            with about(f"base, the answers of {path.stem.partition('.')[2]}"):
                read[path] = generation.read_by_base(lm, stored, config, advance)
            storage.write_json(path, read[path])
    return read


def score_answers(stored: Stored, config: EvaluateConfig) -> Stored:
    """The judge, where one is named, scores every answer that it has not scored yet."""
    left = {path: num for path, result in answers(stored).items() if (num := judge.unscored(result, config))}
    scored: Stored = {}
    if not left:
        return scored
    with bar("Judging the answers", sum(left.values())) as advance:
        for path in left:
            scored[path] = judge.scored(stored[path], config, advance)
            storage.write_json(path, scored[path])
    return scored


def compare_to_base(sides: Sequence[Side], tasks: Sequence[Task], stored: Stored) -> None:
    """Adds to every stored result what only shows beside the base: headline format, what the base knows, pairs."""
    for task in tasks:
        base_path = path_of(sides[0], task)
        for side in sides:
            path = path_of(side, task)
            with runs.as_damaged(path, base_path):
                beside = task.beside_base(stored[path], stored[base_path])
            if beside != stored[path]:
                storage.write_json(path, beside)
