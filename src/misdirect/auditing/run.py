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
from misdirect.attacks.interface import Attack, Case, Form
from misdirect.auditing import baseline, budget, recovery, removed
from misdirect.auditing import record as records
from misdirect.auditing.inputs import Material
from misdirect.auditing.pair import MODELS, Checkpoint, Model, Side
from misdirect.config import AuditConfig, EvaluateConfig, as_dict
from misdirect.evaluation import generation
from misdirect.evaluation import run as evaluating
from misdirect.model.identity import weights_hash
from misdirect.model.memory import free_bytes
from misdirect.progress import bar, note
from misdirect.text import duration

UNFINISHED = ".unfinished"


@dataclass(frozen=True)
class Job:
    """An audit that was asked for. `run`: the run directory behind the unlearned model, where there is one."""

    folder: Path
    run: Path | None
    pair: Mapping[Model, Checkpoint]
    side: Side
    material: Material
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
    case = baseline.case_of(job.folder, job.run, job.side, job.material, job.config, forms)
    wanted = catalogue.selected(catalogue.attacks(case, job.config), job.only, job.skip)
    asked = (catalogue.unattacked(case), *wanted)
    records.refuse_other_settings(job.folder, record, case, asked)
    record |= {
        "misdirect": __version__,
        "base": {"source": job.pair["base"].source},
        "unlearned": {"source": job.pair["unlearned"].source, "delta": str(job.pair["unlearned"].delta or "")},
        "settings": as_dict(job.config),
        "forms": dict(case.forms),
    }
    clock.earlier = record.get("seconds", 0.0)
    take_over_controls(job, case, asked, record)
    run_attack(job, case, asked[0], record)
    if why := (records.entry_of(record, asked[0].name) or {}).get("why"):  # without it no attack says anything
        raise ValueError(why)
    plain = {model: removed.plain_answers(job.folder, case, model) for model in MODELS}
    record |= {"split": removed.split_of(job.folder, case), "removed": removed.removed(job.folder, case)}
    records.save(job.folder, record)
    for name, found in record["removed"].items():
        removed.say(name, found)
    if not any(found["attacked"] for found in record["removed"].values()):
        note("Nothing was removed, so there is nothing to bring back: no attack is run")
        return ended(job, record, clock)
    todo = planned(job, [a for a in wanted if not records.finished(record, a)], record, clock)
    if any(attack.needs_means for attack, _ in todo):
        try:
            with bar("Reading both models' states", 2) as advance:
                case = dataclasses.replace(case, **baseline.activations(job.side, case, advance))
        except ValueError as error:  # a model that gives no states is attacked in the other ways
            for attack in (attack for attack, _ in todo if attack.needs_means):
                records.note_status(record, attack, "not run", f"needs the models' states: {error}")
            note(f"Attacks that start from the models' states are left out: {error}")
            todo = [(attack, seconds) for attack, seconds in todo if not attack.needs_means]
    spend(job, case, todo, record, plain, clock)
    recover(job.folder, case, record)
    return ended(job, record, clock)


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


def take_over_controls(job: Job, case: Case, wanted: Sequence[Attack], record: dict[str, Any]) -> None:
    """What another audit of the same base has measured on it is not measured again."""
    if job.controls is None:
        return
    there, taken = records.entries(job.controls), 0
    for attack in wanted:
        config = storage.json_form(scoring.config_of(case, attack))
        found = there.get(attack.name)
        if (
            found is None
            or not attack.base_alone
            or records.seconds_on(record, attack)
            or not records.same(found, config)
        ):
            continue
        records.take_over(job.controls, job.folder, attack.name, config)
        entry = records.note_status(
            record, attack, "not run", "interrupted", settings=config, control_from=job.controls.name
        )
        entry["seconds"]["base"] = found["seconds"]["base"]
        taken += 1
    note(f"The base under {taken} of {len(wanted)} attacks is taken over from {job.controls}")
    records.save(job.folder, record)


def planned(
    job: Job, todo: Sequence[Attack], record: dict[str, Any], clock: budget.Clock
) -> list[tuple[Attack, float]]:
    """The attacks that can be run here with their estimated seconds, those that are announced as fitting first."""
    if not todo:
        note("Every attack that was asked for is finished already")
        return []
    with job.side("base") as lm:
        free = float(free_bytes(lm.device))
        full = [a for a in todo if a.settings.get("method") == "full" and not a.missing]
        trains = any(not budget.too_large(a, free) for a in full)
        update = (job.config.batch_size, job.config.max_tokens)
        speed = budget.measured(lm, update if trains else None)
    record["speed"] = {"forward_tokens_per_second": speed.forward, "train_tokens_per_second": speed.train}
    blocked = {attack.name: attack.missing or budget.too_large(attack, free) for attack in todo}
    able = [
        (a, sum(model not in records.seconds_on(record, a) for model in MODELS) * budget.seconds_of(a.cost, speed))
        for a in todo
        if not blocked[a.name]
    ]
    fits = budget.first_fit([seconds for _, seconds in able], clock.left)
    say_plan(job.config.minutes, able, fits, {a.title: blocked[a.name] for a in todo if blocked[a.name]})
    for attack in todo:
        if blocked[attack.name]:
            records.note_status(record, attack, "not run", blocked[attack.name])
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
    case: Case,
    todo: Sequence[tuple[Attack, float]],
    record: dict[str, Any],
    plain: Mapping[Model, scoring.Sat],
    clock: budget.Clock,
) -> None:
    """Always the first attack that still fits, by the estimates as the attacks before have corrected them."""
    waiting = list(todo)
    while found := next((pair for pair in waiting if not clock.why_not(pair[1])), None):
        waiting.remove(found)
        attack, seconds = found
        about = duration(clock.factor * seconds)
        note(f"[{len(todo) - len(waiting)} of {len(todo)}] {attack.title}: about {about}; {duration(clock.left)} left")
        started, resumed = time.perf_counter(), bool(unfinished_of(job.folder, attack))
        run_attack(job, case, attack, record, plain)
        if records.finished(record, attack) and not resumed:  # or the estimates would be measured by a part of one
            clock.ran(seconds, time.perf_counter() - started)
        recover(job.folder, case, record, attack.name)
        record["seconds"] = clock.spent
        records.save(job.folder, record)
    for attack, seconds in waiting:
        records.note_status(record, attack, "not run", clock.why_not(seconds))


def run_attack(
    job: Job, case: Case, attack: Attack, record: dict[str, Any], plain: Mapping[Model, scoring.Sat] | None = None
) -> None:
    """The base, then the unlearned model; each one's results are stored before the record says so."""
    entry = records.note_status(
        record, attack, "not run", "interrupted", settings=storage.json_form(scoring.config_of(case, attack))
    )
    for model in MODELS:
        if model in entry["seconds"]:
            continue
        started = time.perf_counter()
        kept = runs.attack_folder(job.folder, attack.name) / f"{model}{UNFINISHED}"
        try:
            with job.side(model) as lm, bar(f"  {model}", attack.num_steps) as advance:
                at = dataclasses.replace(case, plain=plain[model] if plain else None, unfinished=kept)
                found = attack.run(lm, at, attack, advance)
                same = weights_hash(lm) == case.identity["models_sha256"][model]
                assert same, f"{attack.name} left the {model} model changed"
        except (
            ValueError,
            MemoryError,
            RuntimeError,  # torch says so when memory ends or a matrix is singular
            ImportError,  # an extra that is there and does not work
        ) as error:
            why = " ".join(str(error).split())[:300] or "out of memory"
            note(f"{attack.title} failed on the {model} model: {why}")
            records.note_status(record, attack, "failed", f"{model}: {why}")
            records.save(job.folder, record)
            return
        for one in found:
            runs.save_result(job.folder, model, one, attack.name)
        del lm  # or two models would be held while the next is loaded
        kept.unlink(missing_ok=True)
        entry["seconds"][model] = round(time.perf_counter() - started, 3)
        records.save(job.folder, record)
    controlled = all(recovery.controlled(result) for result in records.results_of(job.folder, attack.name, "base"))
    if controlled:
        records.note_status(record, attack, "done")
    else:
        records.note_status(record, attack, "inconclusive", "it did not do on the base what it is meant to do")
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


def recover(folder: Path, case: Case, record: Mapping[str, Any], fresh: str | None = None) -> None:
    """Writes the recovered share of every finished attack, and of the strongest, on every set that lost something.

    `fresh`: of the attacks' own shares only this one's, the others standing as they are.
    """
    for name in case.forgotten:
        if not record["removed"][name]["attacked"]:
            continue
        of, found = removed.tested(folder, case, name), []
        for entry in record["attacks"]:
            if not counts(folder, entry):
                continue
            base, unlearned = (records.answers_of(folder, entry["name"], model, name) for model in MODELS)
            points = recovery.candidates(entry["name"], unlearned, of, base)
            if fresh in (None, entry["name"]):
                runs.save_result(
                    folder, "unlearned", recovery.recovered(name, of, entry["name"], points), entry["name"]
                )
            if not teaches(entry):
                found += points
        if found:
            best = recovery.recovered(name, of, recovery.STRONGEST, found)
            runs.save_result(folder, "unlearned", best, recovery.STRONGEST)
        else:  # nor may one stand that came from results which no longer count
            runs.result_path(folder, "unlearned", recovery.MEASUREMENT, name, recovery.STRONGEST).unlink(
                missing_ok=True
            )


def counts(folder: Path, entry: Mapping[str, Any]) -> bool:
    """Whether an attack is finished on both models, could bring knowledge back, and did on the base what it should."""
    if not entry.get("recovers") or not all(model in entry.get("seconds", {}) for model in MODELS):
        return False
    return all(recovery.controlled(result) for result in records.results_of(folder, entry["name"], "base"))


def teaches(entry: Mapping[str, Any]) -> bool:
    """Whether its text states tested facts: what it brings back may have been taught, so it is never the headline."""
    return bool(entry.get("settings", {}).get("texts_that_state_a_tested_fact"))
