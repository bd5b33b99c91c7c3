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
from misdirect.config import EvaluateConfig, as_dict
from misdirect.data.tokens import appending_nothing, token_ids
from misdirect.evaluation import paired
from misdirect.evaluation.harness_tasks import (
    HarnessTask,
    Leaf,
    choices_and_answer,
    grouped,
    one_line,
    parse_tasks,
    quiet,
    read_task,
)
from misdirect.model import rope
from misdirect.model.finite import check_finite, not_finite
from misdirect.model.hooks import hooked
from misdirect.model.load import LM
from misdirect.model.rows import check_rows, fill_id, num_rows, rowless
from misdirect.progress import note
from misdirect.runs import Metric, Result
from misdirect.storage import fingerprint

__all__ = ["MEASUREMENT", "beside_base", "config_of", "harness", "num_chars", "num_items", "parse_tasks", "read_task"]
MEASUREMENT = "harness"
HEADLINES = ("acc_norm", "acc")  # the first that a task has is what it is judged by, else its first metric
GUESSED = ("acc", "acc_norm", "acc_bytes")  # metrics of multiple choice for which guessing scores one over the choices
RESAMPLES = 200  # for the standard error of a metric that is no mean
LARGEST_BATCH = 64  # rows; the harness keeps the logits of every position
BY_SUBJECT, MACRO = "_by_subject", "_macro"


def config_of(config: EvaluateConfig, task: HarnessTask) -> dict[str, Any]:
    """What determines the numbers: the task's version, and a hash of the documents and prompts that were drawn."""
    shots = {leaf.name: leaf.task.get_config("num_fewshot") or 0 for leaf in task.leaves}
    texts = (
        text
        for leaf in task.leaves
        for row, instances in grouped(leaf).items()
        for text in (leaf.name, str(row), json.dumps(instances[0].doc, default=str), *(str(i.args) for i in instances))
    )
    same = set(shots.values())
    return {k: as_dict(config)[k] for k in ("limit", "seed", "dtype")} | {
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
    with one_line(name, None), quiet(), torch.random.fork_rng(cuda):
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
    longest = longest_request(tokenizer, task)
    rows = max(1, min(LARGEST_BATCH, config.batch_tokens // max(1, longest)))
    if longest + longest_answer(task) > rope.reach(lm.model):  # the harness pads: a text's value would hang on others
        rows = 1
    model = HFLM(pretrained=lm.model, tokenizer=tokenizer, batch_size=rows)
    check_requests(lm, task, model.prefix_token_id)
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
    """A hook that raises NotFinite where the next token of an answer would be taken from logits that are no numbers."""

    def look(_module: Any, _args: Any, output: Any) -> None:
        if not output.logits[:, -1].amax(-1).isfinite().all():
            raise not_finite(lm, f"an answer to one of {count} requests at least")

    return look


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


class Scored(NamedTuple):
    """A task's documents scored: metric -> the harness's value of each document, and how it sums those up."""

    subject: str
    records: list[dict[str, Any]]
    values: Mapping[str, list[Any]]
    aggregations: Mapping[str, Callable[[list[Any]], Any]]
    chance: float | None  # of guessing, where each document has one right choice


def score_leaf(leaf: Leaf) -> Scored:
    """Lets the harness score each document; a filter other than `none` stands behind the metric's name."""
    from lm_eval.api.metrics import mean

    leaf.task.apply_filters()
    values: dict[str, list[Any]] = defaultdict(list)
    aggregations, records, found = {}, [], []
    for row, instances in grouped(leaf).items():
        doc, scores = instances[0].doc, {}
        for key in instances[0].filtered_resps:
            for metric, value in leaf.task.process_results(doc, [i.filtered_resps[key] for i in instances]).items():
                name = metric if key == "none" else "".join(c if c.isalnum() else "_" for c in f"{metric}_{key}")
                aggregations[name] = leaf.task.aggregation().get(metric, mean)
                values[name].append(value)
                scores[name] = plain(value)
        records.append(start_record(leaf, row, instances))
        found.append(scores)
    binary = {name for name, column in values.items() if aggregations[name] is mean and is_binary(column)}
    for record, scores in zip(records, found, strict=True):
        record["correct"] = {name: bool(score) for name, score in scores.items() if name in binary}
        record["values"] = {name: score for name, score in scores.items() if name not in binary}
    counts = [r["num_choices"] for r in records if r.get("answer") is not None]
    chance = sum(1 / n for n in counts) / len(records) if len(counts) == len(records) else None
    return Scored(leaf.subject, records, values, aggregations, chance)


def start_record(leaf: Leaf, row: int, instances: Sequence[Any]) -> dict[str, Any]:
    """What the model said to one document: log-probabilities of its choices (or of its text), or the answer's text."""
    record: dict[str, Any] = {"id": f"{leaf.name}/{row}", "subject": leaf.subject}
    if found := choices_and_answer(leaf.task, instances[0].doc):
        record |= {"num_choices": found[0], "answer": found[1]}
    said = [response for instance in instances for response in instance.resps]
    if instances[0].request_type == "generate_until":
        record["texts"] = said
    else:
        record["logprobs"] = [float(s[0] if isinstance(s, tuple) else s) for s in said]
    return record


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


# ------------------------------------------------------------------------------------------------ metrics


def metrics(leaves: Sequence[Scored], seed: int) -> tuple[Metric, ...]:
    """The rows of a result, one of them the headline. Raises ValueError where there is none."""
    rows: list[Metric] = []
    for name in dict.fromkeys(name for leaf in leaves for name in leaf.values):
        having = [leaf for leaf in leaves if name in leaf.values]
        aggregations = {leaf.aggregations[name] for leaf in having}
        chances = [c if (c := leaf.chance) is not None and name in GUESSED else None for leaf in having]
        if len(aggregations) == 1:  # else there is no one way to sum all documents up
            everything = [value for leaf in having for value in leaf.values[name]]
            rows += row_of(name, everything, having[0].aggregations[name], mean_of(chances, having), seed)
        if len(leaves) > 1:
            own = [
                row_of(name + BY_SUBJECT, leaf.values[name], leaf.aggregations[name], chance, seed, leaf.subject)
                for leaf, chance in zip(having, chances, strict=True)
            ]
            found = [row for listed in own for row in listed]
            rows += ([macro(name + MACRO, found)] if found else []) + found
    if not rows:
        raise ValueError("the task has no metric that is a number; expected another task")
    names = [row.metric for row in rows]
    headline = next((names.index(name) for name in HEADLINES if name in names), 0)
    rows[headline] = dataclasses.replace(rows[headline], headline=True)
    return tuple(rows)


def mean_of(chances: Sequence[float | None], leaves: Sequence[Scored]) -> float | None:
    """Chance over all documents."""
    total = sum(len(leaf.records) for leaf in leaves)
    if any(c is None for c in chances):
        return None
    return sum((c or 0.0) * len(leaf.records) for c, leaf in zip(chances, leaves, strict=True)) / total


def row_of(
    name: str,
    values: list[Any],
    aggregate: Callable[[list[Any]], Any],
    chance: float | None,
    seed: int,
    subject: str | None = None,
) -> list[Metric]:
    """One row, or none where the harness's aggregate is no number."""
    value = as_number(aggregate, values)
    if value is None:
        return []
    n = len(values)
    stderr = standard_error(values, aggregate, seed)
    low = high = None
    if is_mean(aggregate) and is_binary(values):
        low, high = stats.wilson(round(sum(values)), n)
    elif stderr is not None:
        low, high = value - stats.Z95 * stderr, value + stats.Z95 * stderr
    return [Metric(name, value, stderr, n, low, high, chance, subject=subject)]


def is_mean(aggregate: Callable[[list[Any]], Any]) -> bool:
    from lm_eval.api.metrics import mean

    return aggregate is mean


def as_number(aggregate: Callable[[list[Any]], Any], values: list[Any]) -> float | None:
    """The aggregate; None where it is no number, or not to be had from these values (a draw with one class only)."""
    try:
        value = plain(aggregate(values))
    except (ArithmeticError, ValueError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def standard_error(values: list[Any], aggregate: Callable[[list[Any]], Any], seed: int) -> float | None:
    """s / sqrt(n) of a mean; of other metrics by drawing the documents anew, `RESAMPLES` times. None for one document."""
    n = len(values)
    if n < 2:
        return None
    if is_mean(aggregate):
        return statistics.stdev(map(float, values)) / math.sqrt(n)
    draw = random.Random(seed)
    drawn = [v for _ in range(RESAMPLES) if (v := as_number(aggregate, draw.choices(values, k=n))) is not None]
    return statistics.stdev(drawn) if len(drawn) > 1 else None


def macro(name: str, rows: Sequence[Metric]) -> Metric:
    """The plain mean of the tasks' values, each with its own standard error."""
    value = sum(row.value for row in rows) / len(rows)
    errors = [row.stderr for row in rows if row.stderr is not None]
    chances = [row.chance for row in rows if row.chance is not None]
    stderr = math.hypot(*errors) / len(rows) if len(errors) == len(rows) else None
    low, high = (None, None) if stderr is None else (value - stats.Z95 * stderr, value + stats.Z95 * stderr)
    chance = sum(chances) / len(rows) if len(chances) == len(rows) else None
    return Metric(name, value, stderr, sum(row.n or 0 for row in rows), low, high, chance)


# ------------------------------------------------------------------------------------------------ beside the base


def beside_base(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with `base_knows` where chance is known and, where it is not the base's own, paired comparisons."""
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

    return paired.Reading(value, macro_change if is_macro else change, is_macro)


def change(groups: paired.Groups) -> dict[str, Any] | None:
    """McNemar's test where every document scores 0 or 1, the mean else; None where some values are no numbers."""
    if is_binary(values_of(groups)):
        return paired.mcnemar({s: [(bool(a), bool(b)) for a, b in pairs] for s, pairs in groups.items()})
    return macro_change(groups)


def macro_change(groups: paired.Groups) -> dict[str, Any] | None:
    return paired.normal_mean(groups) if all(map(is_number, values_of(groups))) else None


def values_of(groups: paired.Groups) -> list[Any]:
    return [value for pairs in groups.values() for pair in pairs for value in pair]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and value == value
