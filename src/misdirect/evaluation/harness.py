"""Any task of lm-evaluation-harness, measured on a model in memory: the door to the field's other benchmarks.

The harness itself renders the prompts, asks the model and scores each document, so that the numbers are its own (Gao et
al., doi 10.5281/zenodo.12608602); the extra `eval` installs it. No chat template is used. The standard error of a mean
is the harness's, s / sqrt(n); the interval is Wilson's where every document scores 0 or 1, and else normal.

    task = read_task("mmlu_anatomy", "anatomy", EvaluateConfig(limit=50))   # anatomy/test.jsonl, anatomy/dev.jsonl
    result = harness(lm, task.name, task, EvaluateConfig(limit=50))
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from misdirect import stats
from misdirect.config import EvaluateConfig
from misdirect.data.tokens import appending_nothing
from misdirect.evaluation import harness_tasks, paired
from misdirect.evaluation.harness_tasks import HarnessTask, Leaf
from misdirect.model import rope
from misdirect.model.finite import check_finite, not_finite
from misdirect.model.hooks import hooked
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id, num_rows
from misdirect.progress import note
from misdirect.runs import Metric, Result
from misdirect.storage import fingerprint

MEASUREMENT = "harness"
HEADLINES = ("acc_norm", "acc")  # the first that a task has is what it is judged by, else its first metric
GUESSED = ("acc", "acc_norm", "acc_bytes")  # metrics of multiple choice for which guessing scores one over the choices
RESAMPLES = 200  # for the standard error of a metric that is not a mean
LARGEST_BATCH = 64  # rows; the harness keeps the logits of every position
BY_SUBJECT, MACRO = "_by_subject", "_macro"


def config_of(config: EvaluateConfig, task: HarnessTask) -> dict[str, Any]:
    """What determines the numbers: the task's version, and a hash of the documents and prompts that were drawn."""
    shots = {leaf.name: leaf.task.get_config("num_fewshot") or 0 for leaf in task.leaves}
    texts = (
        text
        for leaf in task.leaves
        for row, instances in harness_tasks.grouped(leaf).items()
        for text in (leaf.name, str(row), json.dumps(instances[0].doc, default=str), *(str(i.args) for i in instances))
    )
    same = set(shots.values())
    return {k: dataclasses.asdict(config)[k] for k in ("limit", "seed", "dtype")} | {
        "version": task.version,
        "shots": same.pop() if len(same) == 1 else shots,
        "documents": sum(len(leaf.documents) for leaf in task.leaves),
        "sha256": fingerprint(texts),
    }


def num_items(task: HarnessTask, config: EvaluateConfig) -> int:
    """How many requests `harness` advances by in all."""
    return sum(instance.repeats or 1 for instance in task.instances)


def num_chars(task: HarnessTask, config: EvaluateConfig) -> int:
    """Characters that the model reads in all, for an estimate of the time: the harness reads the context of a document
    once for all choices of one token, taken here to be those of one letter, and else once for each."""
    texts = {tuple(a for a in i.args if isinstance(a, str)) for i in task.instances}
    return sum(map(len, {t[0] if len(t) == 2 and len(t[1].strip()) == 1 else "".join(t) for t in texts}))


# ------------------------------------------------------------------------------------------------ measuring


def harness(
    lm: LM, name: str, task: HarnessTask, config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> Result:
    """Asks the model; rows as the harness names them (`acc`, `acc_norm`, `exact_match_strict_match`, ..).

    A group or tag has the micro average over all documents, `.._macro` over its tasks, and `.._by_subject` for each task.
    The model, the tokenizer and the generators of random numbers are left as they were.
    """
    started = time.perf_counter()
    cuda = [lm.device] if lm.device.type == "cuda" else []
    with harness_tasks.one_line(name, None), harness_tasks.quiet(), torch.random.fork_rng(cuda):
        torch.manual_seed(config.seed)
        answer(lm, task, config, advance or (lambda _: None))
        scored = [score_leaf(leaf) for leaf in task.leaves]
    records = [record for leaf in scored for record in leaf.records]
    for record in records:
        if len(task.leaves) == 1:
            del record["subject"]
    rows = metrics(scored, config.seed)
    return Result(MEASUREMENT, name, config_of(config, task), rows, tuple(records), time.perf_counter() - started)


def answer(lm: LM, task: HarnessTask, config: EvaluateConfig, advance: Callable[[int], None]) -> None:
    """Puts the model's answer into every request. The harness tells its cache of each; that is what advances."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = appending_nothing(lm.tokenizer)  # a copy: the harness may give it a padding token
    longest = harness_tasks.longest_request(tokenizer, task)
    rows = max(1, min(LARGEST_BATCH, config.batch_tokens // max(1, longest)))
    if longest + harness_tasks.longest_answer(task) > rope.reach(
        lm.model
    ):  # the harness pads: a text's value would hang on others
        rows = 1
    model = HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=rows)
    harness_tasks.check_requests(lm, task, model.prefix_token_id)
    if tokenizer.pad_token_id >= num_rows(lm.model):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(fill_id(lm))
    model.set_cache_hook(SimpleNamespace(add_partial=lambda kind, request, response: advance(1)))
    if longest > model.max_length:
        note(
            f"{task.name}: {longest} tokens in a prompt, the model takes {model.max_length}: the harness cuts the start off"
        )
    by_kind: dict[str, list[Any]] = defaultdict(list)
    for instance in task.instances:
        instance.resps.clear()
        instance.filtered_resps.clear()
        by_kind[instance.request_type] += [instance] * (instance.repeats or 1)
    for kind, asked in by_kind.items():
        generates = kind == "generate_until"
        with hooked([lambda: lm.model.register_forward_hook(refuse_nan(lm, len(asked)))] if generates else []):  # noqa: B023
            responses = getattr(model, kind)(asked, disable_tqdm=True)
        if not generates:
            check_finite(lm, [[r[0] if isinstance(r, tuple) else r] for r in responses], "requests")
        for instance, response in zip(asked, responses, strict=True):
            instance.resps.append(response)


def refuse_nan(lm: LM, count: int) -> Callable[..., None]:
    """A hook that raises NotFinite where the next token of an answer would be taken from logits that are not numbers."""

    def look(_module: Any, _args: Any, output: Any) -> None:
        if not output.logits[:, -1].amax(-1).isfinite().all():
            raise not_finite(lm, f"an answer to one of {count} requests at least")

    return look


class Column(NamedTuple):
    """A metric's value of each document, how the harness sums them up, and what guessing gets."""

    values: list[Any]
    aggregate: Callable[[list[Any]], Any]
    chance: float | None


class Scored(NamedTuple):
    """A task's documents scored."""

    subject: str
    records: list[dict[str, Any]]
    columns: dict[str, Column]


def score_leaf(leaf: Leaf) -> Scored:
    """Lets the harness score each document; a filter other than `none` stands behind the metric's name."""
    from lm_eval.api.metrics import mean

    leaf.task.apply_filters()
    documents = harness_tasks.grouped(leaf)
    records = [start_record(leaf, row, instances) for row, instances in documents.items()]
    chance = chance_of(records)
    columns: dict[str, Column] = {}
    for record, instances in zip(records, documents.values(), strict=True):
        for key in instances[0].filtered_resps:
            scores = leaf.task.process_results(instances[0].doc, [i.filtered_resps[key] for i in instances])
            for metric, value in scores.items():
                name = metric if key == "none" else "".join(c if c.isalnum() else "_" for c in f"{metric}_{key}")
                aggregate = leaf.task.aggregation().get(metric, mean)
                columns.setdefault(name, Column([], aggregate, chance if name in GUESSED else None))
                columns[name].values.append(value)
                record["values"][name] = plain(value)
    shares = [name for name, column in columns.items() if is_share(column)]
    for record in records:
        record["correct"] = {name: bool(record["values"].pop(name)) for name in shares if name in record["values"]}
    return Scored(leaf.subject, records, columns)


def start_record(leaf: Leaf, row: int, instances: Sequence[Any]) -> dict[str, Any]:
    """What the model said to one document: log-probabilities of its choices (or of its text), or the answer's text."""
    record: dict[str, Any] = {"id": f"{leaf.name}/{row}", "subject": leaf.subject}
    if found := harness_tasks.choices_and_answer(leaf.task, instances[0].doc):
        record |= {"num_choices": found[0], "answer": found[1]}
    said = [response for instance in instances for response in instance.resps]
    if instances[0].request_type == "generate_until":
        record["texts"] = said
    else:
        record["logprobs"] = [float(s[0] if isinstance(s, tuple) else s) for s in said]
    return record | {"correct": {}, "values": {}}


def chance_of(records: Sequence[Mapping[str, Any]]) -> float | None:
    """The accuracy of guessing, where each document has one right choice."""
    counts = [record["num_choices"] for record in records if record.get("answer") is not None]
    return sum(1 / n for n in counts) / len(records) if len(counts) == len(records) else None


def plain(value: Any) -> Any:
    """JSON data: NumPy's numbers and arrays are not."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    return value if isinstance(value, str | int | float | None) else str(value)


def is_binary(values: Sequence[Any]) -> bool:
    return all(isinstance(plain(v), bool | int | float) and v in (0, 1) for v in values)


def is_mean(aggregate: Callable[[list[Any]], Any]) -> bool:
    from lm_eval.api.metrics import mean

    return aggregate is mean


def is_share(column: Column) -> bool:
    """Whether it is the share of documents that score 1, all others 0."""
    return is_mean(column.aggregate) and is_binary(column.values)


# ------------------------------------------------------------------------------------------------ metrics


def metrics(leaves: Sequence[Scored], seed: int) -> tuple[Metric, ...]:
    """The rows of a result, one of them the headline. Raises ValueError where there is none."""
    found: list[Metric | None] = []
    for name in dict.fromkeys(name for leaf in leaves for name in leaf.columns):
        having = [(leaf.subject, leaf.columns[name]) for leaf in leaves if name in leaf.columns]
        if whole := pooled([column for _, column in having]):
            found.append(row_of(name, whole, seed))
        if len(leaves) > 1:
            own = [row_of(name + BY_SUBJECT, column, seed, subject) for subject, column in having]
            found += [macro(name + MACRO, [row for row in own if row]), *own]
    rows = [row for row in found if row]
    if not rows:
        raise ValueError("the task has no metric that is a number; expected another task")
    names = [row.metric for row in rows]
    headline = next((names.index(name) for name in HEADLINES if name in names), 0)
    rows[headline] = dataclasses.replace(rows[headline], headline=True)
    return tuple(rows)


def pooled(columns: Sequence[Column]) -> Column | None:
    """All documents together; None where the tasks sum theirs up in different ways."""
    if len({column.aggregate for column in columns}) > 1:
        return None
    values = [value for column in columns for value in column.values]
    chances = [column.chance * len(column.values) for column in columns if column.chance is not None]
    chance = sum(chances) / len(values) if len(chances) == len(columns) else None
    return Column(values, columns[0].aggregate, chance)


def row_of(name: str, column: Column, seed: int, subject: str | None = None) -> Metric | None:
    """None where the harness's aggregate is not a number."""
    value, n = as_number(column.aggregate, column.values), len(column.values)
    if value is None:
        return None
    stderr = standard_error(column, seed)
    low = high = None
    if is_share(column):
        low, high = stats.wilson(round(sum(column.values)), n)
    elif stderr is not None:
        low, high = value - stats.Z95 * stderr, value + stats.Z95 * stderr
    return Metric(name, value, stderr, n, low, high, column.chance, subject=subject)


def as_number(aggregate: Callable[[list[Any]], Any], values: list[Any]) -> float | None:
    """The aggregate; None where it is not a number, or not to be had from these values (a draw with one class only)."""
    try:
        value = plain(aggregate(values))
    except (ArithmeticError, ValueError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def standard_error(column: Column, seed: int) -> float | None:
    """s / sqrt(n) of a mean; of other metrics by drawing the documents anew, `RESAMPLES` times. None for one document."""
    values, n = column.values, len(column.values)
    if n < 2:
        return None
    if is_mean(column.aggregate):
        return statistics.stdev(map(float, values)) / math.sqrt(n)
    draw = random.Random(seed)
    drawn = [v for _ in range(RESAMPLES) if (v := as_number(column.aggregate, draw.choices(values, k=n))) is not None]
    return statistics.stdev(drawn) if len(drawn) > 1 else None


def macro(name: str, rows: Sequence[Metric]) -> Metric | None:
    """The plain mean of the tasks' values, each with its own standard error."""
    if not rows:
        return None
    value = sum(row.value for row in rows) / len(rows)
    errors = [row.stderr for row in rows if row.stderr is not None]
    chances = [row.chance for row in rows if row.chance is not None]
    stderr = math.hypot(*errors) / len(rows) if len(errors) == len(rows) else None
    low, high = (None, None) if stderr is None else (value - stats.Z95 * stderr, value + stats.Z95 * stderr)
    chance = sum(chances) / len(rows) if len(chances) == len(rows) else None
    return Metric(name, value, stderr, sum(row.n or 0 for row in rows), low, high, chance)


# ------------------------------------------------------------------------------------------------ beside the base


def beside_base(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with `base_knows` where chance is known and, where it is not the base's own, paired comparisons.

    McNemar's test where every document scores 0 or 1, else the mean; none where some document has no number.
    """
    knows = {
        (row["metric"], row.get("subject")): paired.base_knows(row)
        for row in base["metrics"]
        if row.get("chance") is not None and row.get("low") is not None
    }

    def marks(row: Mapping[str, Any]) -> dict[str, bool]:
        place = row["metric"], row.get("subject")
        return {"base_knows": knows[place]} if place in knows else {}

    return paired.with_changes(result, base, reading, marks)


def reading(metric: str) -> paired.Reading:
    name, is_macro = metric.removesuffix(BY_SUBJECT).removesuffix(MACRO), metric.endswith(MACRO)

    def value(record: Mapping[str, Any]) -> Any:
        scores = {**record["values"], **record["correct"]}
        return math.nan if name in scores and scores[name] is None else scores.get(name)  # null: NaN as it is stored

    def change(groups: paired.Groups) -> paired.Change | None:
        values = [value for pairs in groups.values() for pair in pairs for value in pair]
        if not all(isinstance(value, int | float) and value == value for value in values):
            return None
        binary = all(value in (0, 1) for value in values) and not is_macro
        return paired.mcnemar(groups) if binary else paired.normal_mean(groups)

    return paired.Reading(value, change, is_macro)
