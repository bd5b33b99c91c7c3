"""The verbs as Python calls: check the input, load, call, save.

The command line only parses and prints.

Checks come before anything slow, so that a typing error costs no time, and nothing that was computed is computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misdirect import runs, storage
from misdirect.config import AuditConfig, Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.progress import note
from misdirect.recipes import DemoSettings, resolve
from misdirect.runs.collateral import say_doubtful
from misdirect.runs.seeds import over_seeds, seed_folder

if TYPE_CHECKING:
    from misdirect.exporting.settings import ExportConfig
    from misdirect.model.lm import LM
    from misdirect.planning.table import Plan


def unlearn(
    model: str | LM,
    forget: Mapping[str, str] | Sequence[Topic],
    retain: Mapping[str, str] | Sequence[Corpus],
    out: str | Path,
    config: UnlearnConfig | None = None,
    *,
    seeds: int = 1,
    method: str = "rmu",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """Unlearns topics from MODEL with RMU, or with another method on the same budget; returns the run directory.

    `forget`: topic name -> SOURCE, or `Topic`s with settings of their own; `retain` likewise, or `Corpus`es with weights.
    With `seeds` above 1 the run is repeated with the seeds that follow, into `out`/seeds/SEED. A killed run resumes when
    called again with the same settings; a finished one is not repeated. `model`: MODEL, or one in memory (`LM.of`).
    Raises ValueError for bad input, a folder that
    holds a run with other settings, and a loss that is not finite.
    """
    from misdirect.data.corpora import read_texts
    from misdirect.model.lm import source_of
    from misdirect.model.load import load_lm
    from misdirect.planning.stages import unlearn_line
    from misdirect.unlearning import run as running
    from misdirect.unlearning.methods import METHODS
    from misdirect.unlearning.order import Order

    topics = [Topic(n, s) for n, s in forget.items()] if isinstance(forget, Mapping) else list(forget)
    corpora = [Corpus(n, s) for n, s in retain.items()] if isinstance(retain, Mapping) else list(retain)
    refuse_repeats("--forget", [t.name for t in topics])
    refuse_repeats("--retain", [c.name for c in corpora])
    if seeds < 1:
        raise ValueError(f"--seeds {seeds} is too small; expected at least 1")
    if method not in METHODS:
        raise ValueError(f"no method is called {method!r}; expected one of {', '.join(METHODS)}")
    run = storage.writable(out)
    given = config or UnlearnConfig()
    raw = resolve(given).numerics == "published"  # only there are raw JSON lines text
    source = source_of(model)
    order = Order(
        source,
        method,
        topics,
        corpora,
        {t.name: read_texts(t.source, raw) for t in topics},
        [(c.name, read_texts(c.source, raw), c.weight) for c in corpora],
        trust_remote_code,
        allow_pickle,
    )

    @functools.cache
    def load(last: int | None) -> LM:  # once for all seeds
        return load_lm(source, last, given.device, given.dtype, trust_remote_code, allow_pickle)

    for seed in range(given.seed, given.seed + seeds):
        folder = run if seed == given.seed else storage.writable(seed_folder(run, seed))
        with runs.writing(folder):
            running.unlearn(order, dataclasses.replace(given, seed=seed), folder, load, unlearn_line)
    return run


def refuse_repeats(flag: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{flag} names {name!r} twice; expected a name of its own for each")


def evaluate(
    target: str | Path | LM,
    questions: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    prompts: Mapping[str, str] | None = None,
    config: EvaluateConfig | None = None,
    out: str | Path | None = None,
    *,
    examples: Mapping[str, str] | None = None,
    tasks: Sequence[str] = (),
    model: str | LM | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> list[dict[str, Any]]:
    """Measures a run (base and unlearned; results go into it) or one MODEL (`out` needed); returns `summary.json`'s rows.

    `questions`, `texts` and `prompts`: set name -> SOURCE; `examples`: a questions set -> SOURCE of its answered
    examples (`config.shots`); `tasks`: names of lm-evaluation-harness tasks, TASK or TASK=SOURCE; `model`: where a run's
    base lies now, if it has moved, or the base of an adapter or of a model without a tokenizer. What is stored already is
    not measured again. Raises ValueError for bad input, and where a stored result was measured with other settings.
    """
    from misdirect.evaluation import judge
    from misdirect.evaluation import run as running
    from misdirect.model.identity import check_same_base, files_of
    from misdirect.model.lm import source_of, with_dtype
    from misdirect.model.load import load_lm

    target, model = source_of(target), None if model is None else source_of(model)
    config = with_dtype(config or EvaluateConfig())
    if config.judge:
        judge.check(config)
    is_run = runs.is_run(Path(target).expanduser())
    folder = running.results_folder(target, model, out)
    wanted = running.make_tasks(questions or {}, texts or {}, prompts or {}, config, examples, tasks)
    if not wanted:
        raise ValueError(
            "nothing to measure; expected --questions NAME=SOURCE, --text NAME=SOURCE, --prompts NAME=SOURCE or --tasks NAME"
        )
    sides = running.sides_of(folder, is_run)
    with runs.writing(*dict.fromkeys(side.folder for side in sides)):
        stored = running.stored_results(sides, wanted)
        missing = running.missing_tasks(sides, wanted, stored)
        if is_run:
            say_doubtful(folder, [task.name for task in wanted if task.measurement != "generation"])
        if any(missing.values()) or running.unread(stored):
            source = (model or storage.read_json(folder / runs.CONFIG)["model"]) if is_run else str(target)
            base = None if is_run else model
            lm = load_lm(
                source, None, config.device, config.dtype, trust_remote_code, allow_pickle, base=base, dequantize=is_run
            )
            if is_run:
                check_same_base(lm, folder)
            else:
                own = {"model": source, "model_files": files_of(source)}
                storage.write_json(folder / runs.ENV, runs.environment() | own | ({"base": base} if base else {}))
            stored |= running.measure_all(lm, missing)
            stored |= running.read_answers(lm, running.unread(stored), config)
        stored |= running.score_answers(stored, config)
        running.compare_to_base(sides, wanted, stored)
        return runs.write_summary(folder, over_seeds(folder))


def audit(
    base: str | Path | LM,
    unlearned: str | Path | LM | None = None,
    questions: Mapping[str, str] | None = None,
    forget: Mapping[str, str] | None = None,
    retain: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    config: AuditConfig | None = None,
    out: str | Path | None = None,
    *,
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    controls: str | Path | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Attacks an unlearned model, with the base under the same attacks as control; returns the record (`audit.json`).

    `base` alone is a run directory, which holds both; otherwise `base` and `unlearned` are any two checkpoints (folders, hub
    ids, run directories, delta files) and `out` is needed. `questions`: set -> SOURCE; those named like a topic of
    `forget` are what was to be forgotten, the others the general ability. A run of the demo needs none of them. `only` and
    `skip` take families or names of attacks. `controls`: the folder of an audit of another model unlearned from the same base,
    whose results on the base are taken over. Finished attacks are not repeated. Raises ValueError for bad input.
    """
    from misdirect.auditing import inputs, pair
    from misdirect.auditing import run as running
    from misdirect.model.lm import source_of, with_dtype

    config = with_dtype(config or AuditConfig())
    folder, run, both = audited(source_of(base), None if unlearned is None else source_of(unlearned), out)
    questions, forget, retain, texts = (dict(x or {}) for x in (questions, forget, retain, texts))
    topics = list(forget)
    if run is not None:
        forgotten, kept = inputs.sources_of(run)
        topics = list(forgotten | forget)
        forget = forget or inputs.readable(forgotten, "forget")
        retain = retain or inputs.readable(kept, "retain")
        if runs.read_config(run).of_the_demo:
            settings = DemoSettings()
            questions, texts = questions or dict(settings.questions), texts or dict(settings.benign)
    found = inputs.read(questions, forget, retain, texts, topics, config)
    loading = pair.Loading(config.device, config.dtype, trust_remote_code, allow_pickle)
    side = pair.opened(both["base"], both["unlearned"], loading)
    with runs.writing(folder):
        other = None if controls is None else Path(controls).expanduser()
        record = running.execute(running.Job(folder, run, both, side, found, config, only, skip, other))
        runs.write_summary(folder, over_seeds(folder))
    report(folder)  # the page, and the card of a run
    return record


def audited(base: str, unlearned: str | None, out: str | Path | None) -> tuple[Path, Path | None, dict[Any, Any]]:
    """(the audit's folder, the run directory that made the unlearned model or None, both checkpoints)."""
    from misdirect.auditing.pair import Checkpoint, checkpoint, refuse_changed_base

    path = Path(base).expanduser()
    if unlearned is None:
        if not runs.is_run(path):
            raise ValueError(f"{base} is not a run; expected a run directory, or BASE and UNLEARNED")
        if out is not None:
            raise ValueError(f"{base} is a run, so its audit goes into it; expected no --out")
        runs.require_run(path)
        source = storage.read_json(path / runs.CONFIG)["model"]
        return path, path, {"base": Checkpoint(source), "unlearned": Checkpoint(source, path / runs.DELTA)}
    if out is None:
        raise ValueError(f"{base} and {unlearned} are two checkpoints; expected --out FOLDER for their audit")
    folder = storage.writable(out)
    if runs.is_run(folder):
        raise ValueError(f"{folder} holds a run; expected a folder of its own for --out")
    first = checkpoint(base)
    second = checkpoint(unlearned, first.source)
    refuse_changed_base(base, first, unlearned)
    made_by = Path(unlearned).expanduser()
    return folder, made_by if runs.is_run(made_by) else None, {"base": first, "unlearned": second}


def export(
    run: str | Path,
    out: str | Path,
    config: ExportConfig | None = None,
    *,
    model: str | LM | None = None,
    questions: Mapping[str, str] | None = None,
    push: str | None = None,
    public: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
) -> list[str]:
    """Writes a run as a folder that other tools read: a whole checkpoint, a LoRA adapter, or what may be published of it.

    `out` must be new, and is there only once it has been read back. `model`: where the base lies now, if it has moved.
    `questions`: sets by which an adapter is compared with the change. `push`: OWNER/NAME on the hub, private unless `public`.
    Returns what is to be said of it, a line each. Raises ValueError for bad input and a base that has changed.
    """
    from misdirect.exporting import hub
    from misdirect.exporting import run as running
    from misdirect.exporting.settings import ExportConfig
    from misdirect.model.lm import source_of

    folder = Path(run).expanduser()
    runs.require_run(folder)
    if push is not None:
        hub.check(push)
    source = source_of(model) if model is not None else str(runs.read_config(folder).model)
    flags = {"trust_remote_code": trust_remote_code, "allow_pickle": allow_pickle}
    path = Path(out).expanduser()
    lines = running.export(folder, path, config or ExportConfig(), source, questions or {}, flags)
    return lines if push is None else [*lines, hub.push(path, push, public)]


def report(
    *targets: str | Path, out: str | Path | None = None, figures: bool = False, show_text: bool | None = None
) -> Path:
    """One self-contained HTML page and a model card from a run directory (or from the folder of an evaluation).

    Several targets are compared on one page, `out`, by default `comparison.html` in the first. `show_text` None shows
    questions, prompts and answers for the demo alone. Returns the page's path.
    """
    from misdirect import reporting
    from misdirect.reporting.card import card

    if not targets:
        raise ValueError("no run was given; expected at least one folder that misdirect wrote")
    paths = [Path(target).expanduser() for target in targets]
    for path in paths:
        if not (runs.is_run(path) or (path / "results").is_dir()):
            raise ValueError(
                f"{path} is not a run (no {runs.CONFIG}, no results); expected a folder that misdirect wrote"
            )
    if len(paths) == 1 and out is not None:
        raise ValueError("--out has no effect on one run, whose page goes into its folder; expected it left out")
    with runs.writing(*paths):
        for path in paths if figures else ():
            reporting.write_figures(path)
        if len(paths) > 1:
            return reporting.compare(paths, Path(out) if out else paths[0] / "comparison.html")
        if runs.is_run(paths[0]):
            say_doubtful(paths[0])
            card(paths[0])
        return reporting.report(paths[0], show_text)


def plan(
    model: str,
    forget: Mapping[str, str] | Sequence[Topic] = (),
    retain: Mapping[str, str] | Sequence[Corpus] = (),
    config: UnlearnConfig | None = None,
    **rest: Any,
) -> Plan:
    """What unlearning, and an evaluation where its sets are named, will take on this machine: `misdirect.planning`."""
    from misdirect import planning

    return planning.plan(model, forget, retain, config, **rest)


def demo(
    out: str | Path = "runs/demo",
    model: str = "demo",
    limit: int | None = 300,
    seed: int = 0,
    device: Any = "auto",
    seeds: int = 1,
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
        seeds=seeds,
    )
    note(f"Unlearned in {time.perf_counter() - started:.0f} s, model and text loaded")
    config = EvaluateConfig(limit=limit, text_limit=40, max_tokens=128, formats="cloze", device=device)
    evaluate(run, dict(settings.questions), dict(settings.texts), {"answers": "demo-prompts"}, config)
    return report(run).parent
