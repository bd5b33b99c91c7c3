"""Our log-probabilities and prompts against lm-evaluation-harness's own, item by item, on the real model."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from misdirect.config import EvaluateConfig
from misdirect.data.demo.fetch import arrow_rows
from misdirect.data.questions import Question, read_questions
from misdirect.data.templates import letter_prompt
from misdirect.evaluation.mcq import mcq
from misdirect.model.lm import LM
from misdirect.model.load import load_lm

pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]
lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is absent: pip install 'misdirect[eval]'")
TASKS = Path(lm_eval.__file__).parent / "tasks"
CLOZE = {
    "task": "cloze",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
}
MMLU = ("anatomy", "high_school_european_history", "college_mathematics")


@pytest.fixture(scope="module")
def lm() -> LM:
    return load_lm("demo", device="cpu", dtype="float32")


def as_rows(questions: Sequence[Question]) -> list[dict[str, Any]]:
    return [{"question": q.question, "choices": list(q.choices), "answer": q.answer} for q in questions]


def local(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """The part of a task's config that takes its documents from one JSON file."""
    folder.mkdir(exist_ok=True)
    file = folder / "rows.json"
    file.write_text(json.dumps(rows))
    files = {"data_files": {"test": str(file)}, "cache_dir": str(folder / "cache")}
    return {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": files, "test_split": "test"}


def their_logprobs(lm: LM, task: Any) -> list[list[float]]:
    """What lm-evaluation-harness computes for every choice of every document."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=8)
    samples = evaluate(harness, {"tasks": {task.config.task: task}}, bootstrap_iters=0)["samples"]
    return [[logprob for logprob, _ in item["filtered_resps"]] for item in samples[task.config.task]]


def yaml_task(yaml: Path, rows: Sequence[dict[str, Any]], folder: Path) -> Any:
    """One of the harness's own task files, on local rows."""
    from lm_eval.tasks import TaskManager

    changes = local(rows, folder) | {"include": str(yaml), "fewshot_split": "test"}
    (folder / "task.yaml").write_text(json.dumps(changes))  # JSON is YAML
    loaded = TaskManager(include_defaults=False).load([str(folder / "task.yaml")])["tasks"]
    (task,) = loaded.values()
    task.set_fewshot_seed(0)
    return task


def differences(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> list[float]:
    assert [len(a) for a in ours] == [len(b) for b in theirs]
    return [abs(a - b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True)]


def mixed_lengths(questions: Sequence[Question], count: int) -> list[Question]:
    """The shortest and the longest question, and others evenly between them."""
    order = sorted(questions, key=lambda q: len(q.question) + sum(map(len, q.choices)))
    return [order[i * (len(order) - 1) // (count - 1)] for i in range(count)]


def mmlu(subject: str, count: int = 6) -> list[Question]:
    rows = arrow_rows(f"hails/mmlu_no_train/{subject}/test/data-00000-of-00001.arrow")
    made = [Question(str(i), r["question"], tuple(r["choices"]), int(r["answer"]), subject) for i, r in enumerate(rows)]
    return mixed_lengths(made, count)


@pytest.mark.parametrize(("dtype", "count", "allowed"), [("float32", 6, 1e-4), ("float64", 3, 1e-6)])
def test_cloze_logprobs_are_the_harness_s(lm: LM, tmp_path: Path, dtype: str, count: int, allowed: float) -> None:
    """Per token: in fp32 a forward pass is itself off by some 2e-5 a token, which float64 shows to be all of it."""
    from lm_eval.tasks import TaskManager

    asked = mixed_lengths(read_questions("demo-science-dev") + read_questions("demo-biology-dev"), count)
    task = TaskManager(include_defaults=False).load([CLOZE | local(as_rows(asked), tmp_path)])["tasks"]["cloze"]
    model = lm if dtype == "float32" else dataclasses.replace(lm, model=copy.deepcopy(lm.model).double())
    records = mcq(model, "cloze", asked, EvaluateConfig(formats="cloze")).records
    lengths = [n for record in records for n in record["num_tokens"]]
    assert min(lengths) == 1 and max(lengths) >= 10
    found = differences([r["cloze_logprobs"] for r in records], their_logprobs(model, task))
    assert max(d / n for d, n in zip(found, lengths, strict=True)) < allowed
    assert max(d for d, n in zip(found, lengths, strict=True) if n <= 4) < allowed


def test_letter_logprobs_are_the_harness_s(lm: LM, tmp_path: Path) -> None:
    subject = MMLU[0]
    asked = mmlu(subject, 12)
    records = mcq(lm, subject, asked, EvaluateConfig(formats="letter", prompt="current")).records
    theirs = their_logprobs(lm, yaml_task(TASKS / f"mmlu/default/mmlu_{subject}.yaml", as_rows(asked), tmp_path))
    assert max(differences([r["letter_logprobs"] for r in records], theirs)) < 1e-4


def their_prompts(task: Any, shots: int = 0) -> list[str]:
    return [task.fewshot_context(doc, shots) for doc in task.test_docs()]


@pytest.mark.parametrize("subject", MMLU)
def test_mmlu_prompts_are_the_harness_s(subject: str, tmp_path: Path) -> None:
    asked = mmlu(subject)
    task = yaml_task(TASKS / f"mmlu/default/mmlu_{subject}.yaml", as_rows(asked), tmp_path)
    ours = [letter_prompt(q, "current") for q in asked]
    assert ours == their_prompts(task)
    assert [letter_prompt(q, "paper") for q in asked] == [text.replace(".\n\n", ".\n", 1) for text in ours]


def test_few_shot_prompts_are_the_harness_s(tmp_path: Path) -> None:
    """MMLU's examples are the first of its dev split; here dev is the test split, less the document that is asked."""
    examples, asked = mmlu("anatomy", 8)[:5], mmlu("anatomy", 8)[5:]
    task = yaml_task(TASKS / "mmlu/default/mmlu_anatomy.yaml", as_rows([*examples, *asked]), tmp_path)
    assert [letter_prompt(q, "current", examples) for q in asked] == their_prompts(task, 5)[5:]


@pytest.mark.parametrize(("task", "subject"), [("bio", "biology"), ("cyber", "cybersecurity"), ("chem", "chemistry")])
def test_wmdp_prompts_are_the_harness_s(task: str, subject: str, tmp_path: Path) -> None:
    """On questions about geography and general science: WMDP's own stay where they are."""
    asked = [Question(q.id, q.question, q.choices, q.answer, subject) for q in mmlu("high_school_geography")]
    rendered = their_prompts(yaml_task(TASKS / f"wmdp/wmdp_{task}.yaml", as_rows(asked), tmp_path))
    assert [letter_prompt(q, "current") for q in asked] == rendered


def test_every_mmlu_description_is_the_harness_s() -> None:
    import yaml

    files = sorted((TASKS / "mmlu/default").glob("mmlu_*.yaml"))
    assert len(files) == 57
    for file in files:
        said = yaml.safe_load(file.read_text())
        asked = Question("1", "Q", ("a", "b"), 0, said["dataset_name"])
        assert letter_prompt(asked, "current").removesuffix("Q\nA. a\nB. b\nAnswer:") == said["description"]
