"""One audit in a folder: both models as they are, then every attack on both, each stored as soon as it is done.

`audit.json` is the record: what is compared, how the questions were split, and each attack with its status. `done` and
`inconclusive` (it failed on the base, so it says nothing) are finished and never repeated; `not run` and `failed` say why,
and the next call tries them again. A killed audit loses the attack that was under way, save what a GCG search has
kept of itself.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misdirect import __version__, runs, storage
from misdirect.attacks import catalogue, scoring
from misdirect.attacks.interface import Attack, AttackInputs, Form
from misdirect.auditing import baseline, budget, removed, shares
from misdirect.auditing import record as records
from misdirect.auditing.inputs import AuditInputs
from misdirect.auditing.pair import MODELS, Checkpoint, Model, Side
from misdirect.config import AuditConfig, EvaluateConfig
from misdirect.evaluation import generation
from misdirect.evaluation import run as evaluating
from misdirect.model.identity import weights_hash
from misdirect.model.memory import free_bytes
from misdirect.progress import bar, note
from misdirect.runs.audit import DONE, FAILED, INCONCLUSIVE, NOT_RUN
from misdirect.text import duration

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Job:
    """An audit that was asked for. `run`: the run directory behind the unlearned model, where there is one."""

    folder: Path
    run: Path | None
    pair: Mapping[Model, Checkpoint]
    side: Side
    material: AuditInputs
    config: AuditConfig
    only: Sequence[str] = ()
    skip: Sequence[str] = ()
    controls: Path | None = None  # another audit, whose results on the base are taken over


def execute(job: Job) -> dict[str, Any]:
    """Runs what is missing and fits into the time; returns the record. Raises ValueError for other settings than stored."""
    clock = budget.Clock(job.config.minutes, time.perf_counter())
    for model in MODELS:  # whatever is wrong with one of them is said before anything is asked
        with job.side(model):
            pass
    record = records.read(job.folder)
    forms = baseline.evaluated(job.folder, job.side, job.material, job.config) | kept_forms(job, record)
    inputs = baseline.attack_inputs(job.folder, job.run, job.side, job.material, job.config, forms)
    wanted = catalogue.selected(catalogue.attacks(inputs, job.config), job.only, job.skip)
    asked = (catalogue.baseline_attack(), *wanted)
    records.refuse_other_settings(job.folder, record, inputs, asked)
    record |= {
        "misdirect": __version__,
        "base": {"source": job.pair["base"].source},
        "unlearned": {"source": job.pair["unlearned"].source, "delta": str(job.pair["unlearned"].delta or "")},
        "settings": dataclasses.asdict(job.config),
        "forms": dict(inputs.forms),
    }
    clock.earlier = record.get("seconds", 0.0)
    take_over_controls(job, inputs, asked, record)
    run_attack(job, inputs, asked[0], record)
    if why := (records.entry_of(record, asked[0].name) or {}).get("why"):  # without it no attack says anything
        raise ValueError(why)
    unattacked = {model: removed.baseline_answers(job.folder, inputs, model) for model in MODELS}
    record |= {"split": removed.split_of(job.folder, inputs), "removed": removed.removed(job.folder, inputs)}
    records.save(job.folder, record)
    for name, found in record["removed"].items():
        removed.say(name, found)
    if not any(found["attacked"] for found in record["removed"].values()):
        note("Nothing was removed, so there is nothing to bring back: no attack is run")
        return ended(job, record, clock)
    todo = planned(
        job, inputs, [a for a in wanted if not records.finished(records.entry_of(record, a.name))], record, clock
    )
    inputs, todo = with_mean_states(job, inputs, todo, record)
    spend(job, inputs, todo, record, unattacked, clock)
    return ended(job, record, clock)


def with_mean_states(
    job: Job, inputs: AttackInputs, todo: list[tuple[Attack, float]], record: dict[str, Any]
) -> tuple[AttackInputs, list[tuple[Attack, float]]]:
    """The inputs with both models' states, where an attack needs them; a model without is attacked in the other ways."""
    if not any(attack.needs_mean_states for attack, _ in todo):
        return inputs, todo
    try:
        with bar("Reading both models' states", 2) as advance:
            return dataclasses.replace(inputs, **baseline.activations(job.side, inputs, advance)), todo
    except ValueError as error:
        for attack in (attack for attack, _ in todo if attack.needs_mean_states):
            records.note_status(record, attack, NOT_RUN, f"needs the models' states: {error}")
        note(f"Attacks that start from the models' states are left out: {error}")
        return inputs, [(attack, seconds) for attack, seconds in todo if not attack.needs_mean_states]


def ended(job: Job, record: dict[str, Any], clock: budget.Clock) -> dict[str, Any]:
    read_answers(job, record)
    record["seconds"] = clock.spent
    records.save(job.folder, record)
    return record


def kept_forms(job: Job, record: Mapping[str, Any]) -> dict[str, Form]:
    """The formats by which an audit in this folder judges already, so that a later evaluation of the base changes none."""
    allowed = "" if job.config.formats == "all" else job.config.formats
    stored: Mapping[str, Form] = record.get("forms", {})
    return {name: form for name, form in stored.items() if name in job.material.questions and form.startswith(allowed)}


def take_over_controls(job: Job, inputs: AttackInputs, wanted: Sequence[Attack], record: dict[str, Any]) -> None:
    """What another audit of the same base has measured on it is not measured again."""
    if job.controls is None:
        return
    there, taken = records.entries(job.controls), 0
    for attack in wanted:
        config = storage.json_form(scoring.config_of(inputs, attack))
        found = there.get(attack.name)
        if (
            found is None
            or not attack.base_independent
            or records.seconds_on(record, attack)
            or not records.same(found, config)
        ):
            continue
        records.take_over(job.controls, job.folder, attack.name, config)
        entry = records.note_status(
            record, attack, NOT_RUN, "interrupted", settings=config, control_from=job.controls.name
        )
        entry["seconds"]["base"] = found["seconds"]["base"]
        taken += 1
    note(f"The base under {taken} of {len(wanted)} attacks is taken over from {job.controls}")
    records.save(job.folder, record)


def planned(
    job: Job, inputs: AttackInputs, todo: Sequence[Attack], record: dict[str, Any], clock: budget.Clock
) -> list[tuple[Attack, float]]:
    """The attacks that can be run here with their estimated seconds, those that are announced as fitting first."""
    if not todo:
        note("Every attack that was asked for is finished already")
        return []
    with job.side("base") as lm:
        free = float(free_bytes(lm.device))
        work = {a.name: budget.work_of(inputs, a.cost) for a in todo}
        blocked = {a.name: a.unavailable or budget.too_large(a, work[a.name].memory, free) for a in todo}
        trains = any(a.cost.trains == "weights" and not blocked[a.name] for a in todo)
        update = (job.config.batch_size, job.config.max_tokens)
        speed = budget.measured(lm, update if trains else None)
    record["speed"] = {"forward_tokens_per_second": speed.forward, "train_tokens_per_second": speed.train}
    able = [
        (
            a,
            sum(model not in records.seconds_on(record, a) for model in MODELS)
            * budget.seconds_of(work[a.name], speed),
        )
        for a in todo
        if not blocked[a.name]
    ]
    fits = budget.first_fit([seconds for _, seconds in able], clock.left)
    say_plan(job.config.minutes, able, fits, {a.title: blocked[a.name] for a in todo if blocked[a.name]})
    for attack in todo:
        if blocked[attack.name]:
            records.note_status(record, attack, NOT_RUN, blocked[attack.name])
    records.save(job.folder, record)
    return budget.fitting_first(able, fits)


def say_plan(
    minutes: float, able: Sequence[tuple[Attack, float]], fits: Sequence[bool], blocked: Mapping[str, str]
) -> None:
    total = sum(seconds for (_, seconds), fit in zip(able, fits, strict=True) if fit)
    note(f"{sum(fits)} of {len(able)} attacks fit into {minutes:g} minutes by estimate, on both models each: about "
         f"{duration(total)}")  # fmt: skip
    waiting: dict[str, list[float]] = {}  # by family: there may be dozens
    for (attack, seconds), fit in zip(able, fits, strict=True):
        if fit:
            note(f"{duration(seconds):>9}  {attack.title}")
        else:
            waiting.setdefault(attack.family, []).append(seconds)
    if waiting:
        families = [f"{len(found)} of {family} ({duration(sum(found))})" for family, found in waiting.items()]
        note(f"Only if time is left: {', '.join(families)}")
    for title, why in blocked.items():
        note(f"  not run  {title} ({why})")


def spend(
    job: Job,
    inputs: AttackInputs,
    todo: Sequence[tuple[Attack, float]],
    record: dict[str, Any],
    unattacked: Mapping[Model, scoring.ChoiceLogprobs],
    clock: budget.Clock,
) -> None:
    """Always the first attack that still fits, by the estimates as the attacks before have corrected them."""
    points = shares.read(job.folder, inputs, record)
    waiting = list(todo)
    while found := next((pair for pair in waiting if not clock.why_not(pair[1])), None):
        waiting.remove(found)
        attack, seconds = found
        about = duration(clock.factor * seconds)
        note(f"[{len(todo) - len(waiting)} of {len(todo)}] {attack.title}: about {about}; {duration(clock.left)} left")
        started, resumed = time.perf_counter(), bool(unfinished_of(job.folder, attack))
        run_attack(job, inputs, attack, record, unattacked)
        entry = records.entry_of(record, attack.name)
        if entry and records.finished(entry):
            if not resumed:  # or the estimates would be measured by a part of one
                clock.ran(seconds, time.perf_counter() - started)
            shares.add(job.folder, record, points, entry)
        record["seconds"] = clock.spent
        records.save(job.folder, record)
    for attack, seconds in waiting:
        records.note_status(record, attack, NOT_RUN, clock.why_not(seconds))


def run_attack(
    job: Job,
    inputs: AttackInputs,
    attack: Attack,
    record: dict[str, Any],
    unattacked: Mapping[Model, scoring.ChoiceLogprobs] | None = None,
) -> None:
    """The base, then the unlearned model; each one's results are stored before the record says so."""
    entry = records.note_status(
        record, attack, NOT_RUN, "interrupted", settings=storage.json_form(scoring.config_of(inputs, attack))
    )
    for model in MODELS:
        if model in entry["seconds"]:
            continue
        started = time.perf_counter()
        progress = runs.attack_folder(job.folder, attack.name) / f"{model}{UNFINISHED}"
        try:
            with job.side(model) as lm, bar(f"  {model}", attack.num_steps) as advance:
                at = dataclasses.replace(
                    inputs, plain=unattacked[model] if unattacked else None, progress_file=progress
                )
                found = attack.run(lm, at, attack, advance)
                same = weights_hash(lm) == inputs.identity["models_sha256"][model]
                assert same, f"{attack.name} left the {model} model changed"
        except (
            ValueError,
            MemoryError,
            RuntimeError,  # torch says so when memory ends or a matrix is singular
            ImportError,  # an extra that is there and does not work
        ) as error:
            why = " ".join(str(error).split())[:300] or "out of memory"
            note(f"{attack.title} failed on the {model} model: {why}")
            records.note_status(record, attack, FAILED, f"{model}: {why}")
            records.save(job.folder, record)
            return
        for one in found:
            runs.save_result(job.folder, model, one, attack.name)
        del lm  # or two models would be held while the next is loaded
        progress.unlink(missing_ok=True)
        entry["seconds"][model] = round(time.perf_counter() - started, 3)
        records.save(job.folder, record)
    if records.controlled(job.folder, attack.name):
        records.note_status(record, attack, DONE)
    else:
        records.note_status(record, attack, INCONCLUSIVE, "it did not do on the base what it is meant to do")
    records.save(job.folder, record)


def unfinished_of(folder: Path, attack: Attack) -> list[Path]:
    """What a killed call has kept of an attack."""
    return list(runs.attack_folder(folder, attack.name).glob(f"*{UNFINISHED}"))


def read_answers(job: Job, record: Mapping[str, Any]) -> None:
    """The base reads what both models said under the attacks: only so is salad told from language."""
    places = [(entry["name"], model) for entry in record["attacks"] for model in MODELS]
    paths = [runs.result_path(job.folder, m, generation.MEASUREMENT, scoring.SPOKEN, attack) for attack, m in places]
    left = evaluating.unread_at([path for path in paths if path.exists()])
    if not left:
        return
    try:
        with job.side("base") as lm:
            evaluating.read_answers(lm, left, EvaluateConfig(batch_tokens=job.config.batch_tokens))
    except (ValueError, RuntimeError) as error:  # an answer too long to be read again: the numbers stand without it
        note(f"What was said under attack could not be read by the base, and is not judged: {error}")
