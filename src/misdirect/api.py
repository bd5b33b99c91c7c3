"""The verbs as Python calls. Each is: check the input, load, call, save; the command line only parses and prints.

Checks come before anything slow, so that a typing error costs no time, and nothing that was computed is computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misdirect import runs
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.progress import bar, note
from misdirect.recipes import resolve
from misdirect.reproduce import unlearn_command

if TYPE_CHECKING:
    from misdirect.model.load import LM

Advance = Callable[[int], None]
CHARS_PER_TOKEN = 4.0  # English, roughly: for estimates of time alone
ESTIMATE_FROM = 30.0  # seconds from which on an estimate is printed beforehand


def unlearn(
    model: str,
    forget: Mapping[str, str] | Sequence[Topic],
    retain: Mapping[str, str] | Sequence[Corpus],
    out: str | Path,
    config: UnlearnConfig | None = None,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Unlearns topics from MODEL with RMU; returns the run directory.

    `forget`: topic name -> SOURCE, or `Topic`s with settings of their own; `retain` likewise, or `Corpus`es with weights.
    A killed run goes on when called again with the same settings; a finished one is not repeated. Raises ValueError for
    bad input, a folder that holds a run with other settings, and a loss that is not finite.
    """
    from misdirect.data.corpora import read_texts
    from misdirect.model.load import load_config, load_lm, resolve_source
    from misdirect.unlearning import rmu
    from misdirect.unlearning import run as running

    topics = [Topic(n, s) for n, s in forget.items()] if isinstance(forget, Mapping) else list(forget)
    corpora = [Corpus(n, s) for n, s in retain.items()] if isinstance(retain, Mapping) else list(retain)
    refuse_repeats("--forget", [t.name for t in topics])
    refuse_repeats("--retain", [c.name for c in corpora])
    run = writable(out)
    config = resolve(config or UnlearnConfig())
    forget_texts = {t.name: read_texts(t.source) for t in topics}
    retain_texts = [(c.name, read_texts(c.source), c.weight) for c in corpora]
    depth = load_config(resolve_source(model), trust_remote_code).get_text_config(decoder=True).num_hidden_layers
    config = resolve(config, depth)
    lm = load_lm(model, config.block, config.device, config.dtype, trust_remote_code, allow_pickle)
    job = rmu.prepare(lm, forget_texts, retain_texts, config, topics)
    asked = running.describe(
        job, running.model_hash(lm, config.block or 0), topics, forget_texts, corpora, retain_texts
    )
    asked["command"] = unlearn_command(model, topics, corpora, config, str(out))
    running.refuse_other_run(run, asked)
    if running.finished(run) is not None:
        note(f"{run} is finished already; nothing to do")
        return run
    for topic in job.topics:
        multiple = topic.steering_coefficient / topic.median_norm
        note(
            f"{topic.name}: steering to {topic.steering_coefficient:.4g} at block {config.block} "
            f"({multiple:.3g}x the median token norm {topic.median_norm:.4g}), alpha {topic.retain_weight:g}"
        )
    if config.updates and job.updates < config.updates:
        note(f"{job.updates} updates instead of {config.updates}: the shortest corpus has no more batches")
    estimate = job.updates * rmu.seconds_per_update(job)
    if estimate > ESTIMATE_FROM:
        note(f"About {estimate / 60:.1f} minutes for {job.updates} updates")
    with bar(f"Unlearning {', '.join(t.name for t in topics)}", job.updates) as advance:
        running.execute(job, run, asked, advance)
    return run


def writable(out: str | Path) -> Path:
    """The output folder, made if need be. Raises ValueError where it cannot be one."""
    path = Path(out).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out} cannot be a folder: {error.strerror}; expected a folder to write to") from None
    return path


def refuse_repeats(flag: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{flag} names {name!r} twice; expected a name of its own for each")


@dataclass(frozen=True)
class Task:
    """One measurement still to make or already stored: how to make it, what it depends on, how long it is."""

    measurement: str
    name: str
    config: Mapping[str, Any]
    num_items: int
    num_chars: int
    measure: Callable[[LM, Advance], runs.Result]
    judged: Callable[[Mapping[str, Any], Mapping[str, Any]], Mapping[str, Any]]


def evaluate(
    target: str | Path,
    questions: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    prompts: Mapping[str, str] | None = None,
    config: EvaluateConfig | None = None,
    out: str | Path | None = None,
    *,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> list[dict[str, Any]]:
    """Measures a run (base and unlearned; results go into it) or one MODEL (`out` needed); returns `summary.json`'s rows.

    `questions`, `texts` and `prompts`: set name -> SOURCE. What is stored already is not measured again. Raises
    ValueError for bad input, and where a stored result was measured with other settings.
    """
    from misdirect.model.load import load_lm, pick_device, pick_dtype

    config = config or EvaluateConfig()
    dtype: Any = str(pick_dtype(config.dtype, pick_device(config.device))).removeprefix("torch.")
    config = dataclasses.replace(config, dtype=dtype)  # `auto` is not the same everywhere; a result says which it was
    path = Path(target).expanduser()
    is_run = runs.is_run(path)
    if is_run:
        runs.require_run(path)
    if is_run and out is not None:
        raise ValueError(f"{target} is a run, so its results go into it; expected no --out")
    if not is_run and out is None:
        raise ValueError(f"{target} is a model, not a run; expected --out FOLDER for its results")
    folder = path if is_run else writable(out or "")
    if not is_run:
        refuse_other_model(folder, str(target))
    tasks = make_tasks(questions or {}, texts or {}, prompts or {}, config)
    if not tasks:
        raise ValueError(
            "nothing to measure; expected --questions NAME=SOURCE, --text NAME=SOURCE or --prompts NAME=SOURCE"
        )
    models = ("base", "unlearned") if is_run else ("base",)
    missing = {
        m: [t for t in tasks if runs.load_result(folder, m, t.measurement, t.name, t.config) is None] for m in models
    }
    if any(missing.values()):
        source = runs.read_json(folder / runs.CONFIG)["model"] if is_run else str(target)
        lm = load_lm(source, None, config.device, config.dtype, trust_remote_code, allow_pickle)
        if is_run:
            refuse_other_base(lm, folder)
        else:
            runs.write_json(folder / runs.ENV, runs.environment() | {"model": source})
        measure_all(lm, folder, missing)
    judge(folder, tasks, models)
    return runs.write_summary(folder)


def refuse_other_model(folder: Path, model: str) -> None:
    """Raises ValueError where the folder for a model's results holds a run, a model, or another model's results."""
    if (folder / runs.CONFIG).exists():
        what = "a run" if runs.is_run(folder) else "a model"
        raise ValueError(f"{folder} holds {what}; expected a folder of its own for --out")
    stored = runs.read_json(folder / runs.ENV).get("model") if (folder / runs.ENV).is_file() else model
    if stored != model:
        raise ValueError(f"{folder} holds the results of {stored}, not of {model}; expected another --out")


def refuse_other_base(lm: LM, run: Path) -> None:
    """Raises ValueError where the weights behind the run's MODEL are no longer those that it was made from."""
    from misdirect.unlearning.run import model_hash

    config = runs.read_json(run / runs.CONFIG)
    if str(next(lm.model.parameters()).dtype) != config["data"].get("dtype"):
        return  # other bits, the same model: the hash says nothing
    if model_hash(lm, config["chosen"]["block"]) != config["data"]["model_sha256"]:
        raise ValueError(f"{config['model']} has other weights than {run} was made from; expected the same model")


def make_tasks(
    questions: Mapping[str, str], texts: Mapping[str, str], prompts: Mapping[str, str], config: EvaluateConfig
) -> list[Task]:
    """Reads every set, so that bad input is found before a model is loaded."""
    from misdirect.data.corpora import read_texts
    from misdirect.data.questions import read_questions
    from misdirect.evaluation import generation, mcq, nll

    tasks = []
    for name, source in questions.items():
        items = read_questions(source)
        measure = lambda lm, step, n=name, i=items: mcq.mcq(lm, n, i, config, step)  # noqa: E731
        size = mcq.num_items(items, config), mcq.num_chars(items, config)
        tasks.append(Task(mcq.MEASUREMENT, name, mcq.config_of(config, items), *size, measure, mcq.judged))
    for name, source in texts.items():
        documents = read_texts(source)
        measure = lambda lm, step, n=name, d=documents: nll.nll(lm, n, d, config, step)  # noqa: E731
        size = nll.num_items(documents, config), nll.num_chars(documents, config)
        tasks.append(Task(nll.MEASUREMENT, name, nll.config_of(config, documents), *size, measure, nll.judged))
    for name, source in prompts.items():
        asked = read_texts(source)
        measure = lambda lm, step, n=name, a=asked: generation.generation(lm, n, a, config, step)  # noqa: E731
        made = generation.config_of(config, asked)
        size = len(asked), 0
        tasks.append(Task(generation.MEASUREMENT, name, made, *size, measure, lambda result, base: result))
    return tasks


def measure_all(lm: LM, folder: Path, missing: Mapping[str, Sequence[Task]]) -> None:
    """Makes and stores every missing measurement, one model after the other over one set of weights."""
    from misdirect.model.delta import load_delta, swapped_in
    from misdirect.model.score import tokens_per_second

    tokens = sum(t.num_chars for tasks in missing.values() for t in tasks) / CHARS_PER_TOKEN
    speed = tokens_per_second(lm)
    if tokens / speed > ESTIMATE_FROM:
        note(f"About {tokens / speed / 60:.1f} minutes: {tokens:,.0f} tokens at {speed:,.0f} a second")
    with bar("Evaluating", sum(t.num_items for tasks in missing.values() for t in tasks)) as advance:
        for model, tasks in missing.items():
            change: Any = contextlib.nullcontext()
            if model == "unlearned" and tasks:
                change = swapped_in(load_delta(folder / runs.DELTA), lm.model)
            with change:
                for task in tasks:
                    step = lambda k, text=f"{model}: {task.name}": advance(k, text)  # noqa: E731
                    runs.save_result(folder, model, task.measure(lm, step))


def judge(folder: Path, tasks: Sequence[Task], models: Sequence[str]) -> None:
    """Adds to every stored result what only shows beside the base: headline format, what the base knows, pairs."""
    for task in tasks:
        base = runs.read_json(runs.result_path(folder, "base", task.measurement, task.name))
        for model in models:
            path = runs.result_path(folder, model, task.measurement, task.name)
            stored = runs.read_json(path)
            runs.write_json(path, task.judged(stored, base))


def report(*targets: str | Path) -> Path:
    """One self-contained HTML page from a run directory (or from the folder of an evaluation); returns its path."""
    from misdirect.reporting import report as write

    path = Path(targets[0]).expanduser()
    if not (runs.is_run(path) or (path / "results").is_dir()):
        raise ValueError(f"{path} is no run (no {runs.CONFIG}, no results); expected a folder that misdirect wrote")
    return write(path)


@dataclass(frozen=True)
class DemoSettings:
    """What `demo` does, in one place."""

    retain: tuple[Corpus, ...] = (
        Corpus("science", "demo-retain-science", 4.0),
        Corpus("questions", "demo-retain-questions", 4.0),
        Corpus("exams", "demo-retain-exams", 2.0),
        Corpus("wikipedia", "demo-retain-wikipedia", 2.0),
        Corpus("unsure", "demo-retain-unsure", 1.0),
    )
    questions: tuple[tuple[str, str], ...] = (("biology", "demo-biology"), ("other-science", "demo-science"))
    texts: tuple[tuple[str, str], ...] = (
        ("biology-text", "demo-text-biology"),
        ("physics-chemistry", "demo-text-science"),
        ("economics", "demo-text-economics"),
        ("history", "demo-text-history"),
        ("wikipedia", "demo-text-wikipedia"),
    )


def demo(
    out: str | Path = "runs/demo", model: str = "demo", limit: int | None = 300, seed: int = 0, device: Any = "auto"
) -> Path:
    """Forgets biology in SmolLM2-135M-Instruct, measures base and unlearned, writes the page; returns the run directory.

    `limit` questions a side are asked (None: all, 856 and 1,108), and the sample is part of the record.
    """
    started = time.perf_counter()
    settings = DemoSettings()
    run = unlearn(
        model,
        [Topic("biology", "demo-forget")],
        settings.retain,
        out,
        UnlearnConfig(recipe="demo", seed=seed, device=device),
    )
    note(f"Unlearned in {time.perf_counter() - started:.0f} s, model and text loaded")
    config = EvaluateConfig(limit=limit, text_limit=40, max_tokens=128, formats="cloze", device=device)
    evaluate(run, dict(settings.questions), dict(settings.texts), {"answers": "demo-prompts"}, config)
    return report(run).parent
