"""A task of lm-evaluation-harness, its documents read and its prompts rendered: what `evaluation.harness` measures.

A task is named as the harness names it (`hellaswag`, a group such as `mmlu`, a tag), or is a YAML file of that form.
NAME=SOURCE keeps the task's prompts and metrics and takes its documents from local files (`harness_documents`).

    task = read_task("mmlu_anatomy", "anatomy", EvaluateConfig(limit=50))
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib.util
import io
import logging
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from misdirect.config import EvaluateConfig
from misdirect.data.tokens import token_ids
from misdirect.evaluation.harness_documents import as_datasets, group_splits, local_splits
from misdirect.model.lm import LM
from misdirect.model.rows import check_rows, num_rows, rowless
from misdirect.progress import note, working
from misdirect.text import first_line


@dataclass(frozen=True)
class Leaf:
    """One task of the harness, its requests made: `task` is the harness's object, `documents` the rows that are asked."""

    name: str
    subject: str
    task: Any
    documents: tuple[int, ...]


@dataclass(frozen=True)
class HarnessTask:
    """What the user named: one task, or a group or tag of several."""

    name: str
    version: str
    leaves: tuple[Leaf, ...]

    @property
    def instances(self) -> list[Any]:
        """Every request to the model, as the harness made it."""
        return [instance for leaf in self.leaves for instance in leaf.task.instances]


# ------------------------------------------------------------------------------------------------ reading a task


def parse_tasks(texts: Sequence[str]) -> dict[str, str | None]:
    """`["mmlu,hellaswag", "wmdp_bio=FILE"]` -> task -> SOURCE, None where the harness fetches its documents.

    Raises ValueError for an empty name and for one that comes twice.
    """
    out: dict[str, str | None] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, given, source = part.partition("=")
        if not name or (given and not source):
            raise ValueError(f"--tasks holds {part!r}; expected TASK or TASK=SOURCE, with commas between them")
        if name in out:
            raise ValueError(f"--tasks names {name!r} twice; expected each task once")
        out[name] = source or None
    return out


def read_task(name: str, source: str | None, config: EvaluateConfig) -> HarnessTask:
    """Finds a task, reads its documents and renders its prompts, before any model is loaded.

    `limit` documents are drawn with the seed, of a group's tasks together (the harness itself takes the first of each).
    `shots` 0 keeps each task's own number of examples. Raises ValueError, one line each: the harness is not installed,
    no such task, no data, a task that runs the model's code or reads images, a number of shots that cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("--tasks needs lm-evaluation-harness, which is not installed: pip install 'misdirect[eval]'")
    with one_line(name, source), quiet():
        if name.endswith((".yaml", ".yml")):
            name, tasks = yaml_tasks(Path(name).expanduser(), source)
        else:
            leaves = known(name)
            tasks = local_tasks(name, leaves, source) if source else dict(task_manager().load([name])["tasks"])
        for task in tasks.values():
            check_task(task)
            set_shots(task, config, bool(source))
        return HarnessTask(name, version_of(name, tasks), make_requests(tasks, config))


def version_of(name: str, tasks: Mapping[str, Any]) -> str:
    """A group's own version, or that of its tasks."""
    entry = task_manager().task_index.get(name)
    if len(tasks) > 1 and entry and (said := (entry.cfg or {}).get("metadata")):
        return str(said.get("version"))
    return ", ".join(sorted({str(task.VERSION) for task in tasks.values()}))


@contextlib.contextmanager
def one_line(name: str, source: str | None) -> Iterator[None]:
    """The harness and `datasets` raise dozens of kinds: each becomes a ValueError that says what to type."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"--tasks {name}: {first_line(error)}") from None
    except ImportError as error:
        raise ValueError(f"--tasks {name} needs another package: {first_line(error)}; expected it installed") from None
    except OSError as error:  # no network, no such data set, a gated one
        where = (
            f"another file in {source}"
            if source
            else f"a network, or local files: --tasks {name}=FOLDER (test.jsonl, ..)"
        )
        raise ValueError(f"--tasks {name}: its data cannot be had: {first_line(error)}; expected {where}") from None
    except Exception as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        if source:
            what += f"; expected rows in {source} with the columns of the task's own data"
        raise ValueError(f"--tasks {name} failed: {what}") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the harness: logging, progress bars of its own, prints, and warnings that are not about our code."""
    import datasets
    import lm_eval.api.task
    import lm_eval.models.huggingface

    places: Sequence[Any] = (lm_eval.api.task, lm_eval.models.huggingface)
    level, bars = logging.root.manager.disable, datasets.are_progress_bars_disabled()
    with contextlib.ExitStack() as undo, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        undo.callback(logging.disable, level)
        undo.callback(datasets.disable_progress_bars if bars else datasets.enable_progress_bars)
        for place in places:
            undo.callback(setattr, place, "tqdm", place.tqdm)
            place.tqdm = functools.partial(place.tqdm, disable=True)
        logging.disable(logging.CRITICAL)
        datasets.disable_progress_bars()
        warnings.simplefilter("ignore")
        yield


# ------------------------------------------------------------------------------------------------ finding a task


@functools.cache
def task_manager() -> Any:
    """The harness's index of its tasks. It reads 14,000 files: 5 s here, half a minute from a cold disk; once a process."""
    from lm_eval.tasks import TaskManager

    with working("Reading the list of tasks of lm-evaluation-harness"):
        return TaskManager()


def known(name: str) -> list[dict[str, Any]]:
    """The tasks that a name of the harness stands for. Raises ValueError with the nearest names where there is none."""
    index = task_manager().task_index
    if name not in index:
        near = difflib.get_close_matches(name, index, 3)
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"lm-evaluation-harness has no such task, group or tag{meant}")
    leaves = members(index, name)
    for leaf in leaves:
        if settings(leaf).get("unsafe_code"):
            raise ValueError(f"{leaf['task']} runs code that the model wrote, which is refused; expected another task")
    return leaves


def settings(leaf: Mapping[str, Any]) -> dict[str, Any]:
    """What the harness's YAML says of a task, and what the group that holds it changes."""
    entry = task_manager().task_index.get(leaf["task"])
    return ((entry.cfg or {}) if entry else {}) | dict(leaf)


def yaml_tasks(path: Path, source: str | None) -> tuple[str, dict[str, Any]]:
    """(the name that a YAML file gives, its tasks)."""
    if source:
        raise ValueError(f"a YAML file says itself where its data is (dataset_path); expected it without ={source}")
    if not path.is_file():
        raise ValueError("no such file; expected a task of lm-evaluation-harness, or a YAML file that defines one")
    found = task_manager().load([str(path)])
    return next(iter(found.get("groups") or found["tasks"])), dict(found["tasks"])


def members(index: Mapping[str, Any], item: Any) -> list[dict[str, Any]]:
    """The tasks below a name, or below an entry of a group's list, each with what that entry sets."""
    spec: dict[str, Any] = {"task": item} if isinstance(item, str) else dict(item)
    inner = spec.pop("task", None)
    if not isinstance(inner, list):
        name = inner or spec["group"]
        entry = index.get(name)
        if entry is None or entry.kind.name not in ("TAG", "GROUP"):
            return [{"task": name} | spec]
        inner = sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg.get("task") or []
    spec.pop("group", None)
    listed = [inner] if isinstance(inner, str) else inner
    return [leaf | spec for member in listed for leaf in members(index, member)]


# ------------------------------------------------------------------------------------------------ local documents


def local_tasks(name: str, leaves: Sequence[Mapping[str, Any]], source: str) -> dict[str, Any]:
    """The harness's tasks, each with its documents out of SOURCE instead of the hub."""
    given = []
    for leaf in leaves:
        said = settings(leaf)
        if "class" in said:
            raise ValueError(f"{leaf['task']} reads its data in its own code; expected the task without =SOURCE")
        splits = group_splits(source, leaf["task"], said) if len(leaves) > 1 else local_splits(source, said)
        if splits:
            data = as_datasets(splits, said, source)
            given.append({**leaf, "custom_dataset": functools.partial(give, data), "dataset_kwargs": None})
    if not given:
        wanted = f"{leaves[0]['task']}/ or {settings(leaves[0]).get('dataset_name')}/"
        raise ValueError(f"{source} holds none of its tasks; expected folders such as {wanted}, or a column `subject`")
    if len(given) < len(leaves):
        note(f"{name}: {source} holds {len(given)} of its {len(leaves)} tasks; the others are left out")
    return dict(task_manager().load([{"group": f"local {name}", "task": given}])["tasks"])


def give(data: Any, **_: Any) -> Any:
    return data


# ------------------------------------------------------------------------------------------------ requests


def check_task(task: Any) -> None:
    """Raises ValueError for what is never run here."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"{task.task_name} runs code that the model wrote, which is refused; expected another task")
    if getattr(task, "MULTIMODAL", False):
        raise ValueError(f"{task.task_name} shows images or sound; expected a task of text")


def set_shots(task: Any, config: EvaluateConfig, is_local: bool) -> None:
    """The number of answered examples; the seed draws them. Raises ValueError where it cannot be had."""
    own = task.get_config("num_fewshot")
    if config.shots and own == 0:
        raise ValueError(f"{task.task_name} is defined without examples; expected no --shots, in a call of its own")
    shots = config.shots or own or 0
    task.set_config("num_fewshot", shots)
    task.set_fewshot_seed(config.seed)
    if is_local and shots and len(list(task.fewshot_docs() or ())) < shots:
        said = dataclasses.asdict(task.config) | {"fewshot_split": task.fewshot_cfg.split}
        split = said["fewshot_split"] or said["training_split"] or said["validation_split"]
        raise ValueError(
            f"{task.task_name} takes {shots} examples from its split {split!r}; expected {split}.jsonl too"
        )


def make_requests(tasks: Mapping[str, Any], config: EvaluateConfig) -> tuple[Leaf, ...]:
    """Draws the documents and lets the harness render their prompts."""
    sizes = {name: len(task.eval_docs) for name, task in tasks.items()}
    places = [(name, row) for name, size in sizes.items() for row in range(size)]
    if config.limit is not None and config.limit < len(places):
        places = [places[i] for i in sorted(random.Random(config.seed).sample(range(len(places)), config.limit))]
    chosen: dict[str, list[int]] = defaultdict(list)
    for name, row in places:
        chosen[name].append(row)
    aliases = [task.get_config("task_alias") or name for name, task in tasks.items()]
    subjects = aliases if len(set(aliases)) == len(aliases) else list(tasks)
    leaves = []
    for (name, task), subject in zip(tasks.items(), subjects, strict=True):
        if rows := chosen.get(name):
            task.build_all_requests(samples=None if len(rows) == sizes[name] else rows)
            leaves.append(Leaf(name, str(subject).lstrip("- "), task, tuple(rows)))
            check_answers(leaves[-1])
    if not leaves:
        raise ValueError("it has no documents; expected at least one")
    return tuple(leaves)


def grouped(leaf: Leaf) -> dict[int, list[Any]]:
    """Document -> its requests in order; one a choice where there are choices."""
    out: dict[int, list[Any]] = defaultdict(list)
    for instance in leaf.task.instances:
        out[leaf.documents[instance.doc_id]].append(instance)
    return {row: sorted(instances, key=lambda i: i.idx) for row, instances in out.items()}


def choices_and_answer(task: Any, doc: Any) -> tuple[int, int | None] | None:
    """(number of choices, index of the right one or None where it is none or several), of plain multiple choice alone."""
    if getattr(task, "OUTPUT_TYPE", "") != "multiple_choice" or task.get_config("process_results") is not None:
        return None
    choices = task.doc_to_choice(doc)
    answer = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(answer, str):
        answer = choices.index(answer) if answer in choices else -1
    return len(choices), answer if isinstance(answer, int) and 0 <= answer < len(choices) else None


def check_answers(leaf: Leaf) -> None:
    """Raises ValueError for an answer that is none of the choices: the harness would count it as wrong."""
    for row, instances in grouped(leaf).items():
        doc = instances[0].doc
        found = choices_and_answer(leaf.task, doc)
        if found and found[1] is None and not leaf.task.multiple_target:
            answer = leaf.task.doc_to_target(doc)
            raise ValueError(f"{leaf.name}, row {row + 1}: the answer {answer!r} is none of its {found[0]} choices")


def longest_answer(task: HarnessTask) -> int:
    """Tokens that the longest answer may have; 256 is the harness's own where a task sets none."""
    asked = (i.args[1] for i in task.instances if i.request_type == "generate_until")
    return max((int(settings.get("max_gen_toks", 256)) for settings in asked), default=0)


def longest_request(tokenizer: Any, task: HarnessTask, looked_at: int = 8) -> int:
    """Tokens of the longest request: of those with the most characters, since to tokenise all would take its time."""
    texts = ["".join(a for a in i.args if isinstance(a, str)) for i in task.instances]
    longest = sorted(set(texts), key=len, reverse=True)[:looked_at]
    return max(map(len, token_ids(tokenizer, longest)))


def check_requests(lm: LM, task: HarnessTask, start: int | None) -> None:
    """Raises ValueError where a request holds a token that the model has no embedding for. `start`: what the harness puts
    before a text without a context."""
    if rowless(lm.tokenizer, num_rows(lm.model)):  # else no text can
        asked = [[a for a in i.args if isinstance(a, str)] for i in task.instances]
        bare = [[start]] if start is not None and any(len(a) == 1 or not a[0] for a in asked) else []
        ids = token_ids(lm.tokenizer, sorted({"".join(a) for a in asked}))
        check_rows(lm, [*bare, *ids], f"a request of {task.name}")
