"""The plan against what really happens: sizes and token counts to the number, times and memory by their arithmetic."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from misdirect import api, planning, runs, storage
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.data.corpora import read_texts
from misdirect.data.questions import read_questions
from misdirect.evaluation import mcq, nll
from misdirect.model import memory
from misdirect.model.blocks import count_parameters
from misdirect.model.load import load_config, load_lm, truncated
from misdirect.planning import benchmark, cost, shape, stages, table, workload
from misdirect.planning.workload import padded_tokens
from misdirect.recipes import resolve
from misdirect.text import duration, size
from misdirect.unlearning import rmu
from misdirect.unlearning.schedule import Samples
from misdirect.unlearning.train import Prepared, first_updates, initial_state, train
from tiny import INNER, LAYERS, WIDTH, prepared, texts, tiny_config, tiny_folder, tiny_tokenizer

SETTINGS = UnlearnConfig(block=3, num_blocks=2, updates=5, batch_size=2, retain_batch_size=3, max_tokens=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for name, seed in (("forget", 1), ("retain", 2), ("held", 3)):
        rows = [{"text": text} for text in texts(12, 14, seed=seed)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = texts(80, 5, seed=4)
    rows = [
        {"question": words[i], "choices": words[i + 1 : i + 5], "answer": i % 4, "subject": f"s{i % 2}"}
        for i in range(14)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"))


def config_only(folder: Path, family: str, **overrides: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(tiny_config(family, **overrides).to_json_string())
    return folder


def planned(model: Path, data: Path, settings: UnlearnConfig = SETTINGS, **more: Any) -> table.Plan:
    return planning.plan(
        str(model), {"a": str(data / "forget.jsonl")}, {"b": str(data / "retain.jsonl")}, settings, **more
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "minicpm3"])
def test_parameters_are_those_that_are_loaded(tmp_path: Path, family: str) -> None:
    folder = tiny_folder(tmp_path, family)
    found = shape.shape_of(load_config(str(folder)), resolve(SETTINGS, LAYERS))
    assert found.num_prefix == count_parameters(load_lm(str(folder), 3).model)
    full = load_lm(str(folder))
    assert found.num_parameters == count_parameters(full.model)
    assert found.block == max(count_parameters(block) for block in full.blocks)
    assert found.outside == count_parameters(full.model) - sum(count_parameters(block) for block in full.blocks)
    assert found.loads_whole == (family == "minicpm3")


@pytest.mark.parametrize(
    ("numerics", "dtype"), [("clean", "float32"), ("clean", "bfloat16"), ("published", "bfloat16")]
)
def test_files_are_as_large_as_the_run_makes_them(
    tmp_path: Path, tiny: Path, data: Path, numerics: Any, dtype: Any
) -> None:
    retain_batch = None if numerics == "published" else 3
    settings = dataclasses.replace(SETTINGS, numerics=numerics, dtype=dtype, retain_batch_size=retain_batch)
    settings = dataclasses.replace(settings, checkpoint_every=2)
    made = planned(tiny, data, settings)
    folder = api.unlearn(
        str(tiny), {"a": str(data / "forget.jsonl")}, {"b": str(data / "retain.jsonl")}, tmp_path / "run", settings
    )
    files = {file.name: file for file in made.files}
    assert files["delta.safetensors"].bytes == (folder / runs.DELTA).stat().st_size
    config = storage.read_json(folder / runs.CONFIG)
    assert made.settings | {"lr": config["settings"]["lr"]} == config["settings"]
    assert list(made.trained) == config["chosen"]["trained"]
    assert not files["checkpoint"].kept
    each = 2 if numerics == "published" else 4
    assert files["checkpoint"].bytes == 3 * each * 2 * WIDTH * INNER


def test_no_checkpoint_is_planned_where_none_is_written(tiny: Path, data: Path) -> None:
    assert "checkpoint" not in {file.name for file in planned(tiny, data).files}
    settings = resolve(dataclasses.replace(SETTINGS, checkpoint_every=2), LAYERS)
    assert [cost.checkpoints(settings, updates) for updates in (1, 2, 3, 4, 5)] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("numerics", ["clean", "published"])
def test_tokens_are_those_that_batches_hold(
    tiny: Path, data: Path, numerics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in the run's own loop, through its one door to the model."""
    lm = load_lm(str(tiny), 3)
    retain_batch = None if numerics == "published" else 3
    settings = resolve(dataclasses.replace(SETTINGS, numerics=numerics, retain_batch_size=retain_batch), LAYERS)
    job = prepared(
        lm,
        {n: read_texts(str(data / f"{n}.jsonl")) for n in ("forget", "held")},
        [("b", read_texts(str(data / "retain.jsonl")), 1.0)],
        settings,
    )
    seen: list[int] = []  # of every update the forget batch, then the retain batch
    real = rmu.capture

    def counting(*args: Any, want_output: bool = True) -> Any:
        seen.append(args[4].numel())
        return real(*args, want_output=want_output)

    monkeypatch.setattr(rmu, "capture", counting)
    train(job, initial_state(job), lambda _, line: None)
    topics = [Topic(n, str(data / f"{n}.jsonl")) for n in ("forget", "held")]
    training, said = workload.training(tiny_tokenizer(), topics, [Corpus("b", str(data / "retain.jsonl"))], settings)
    tokens = workload.count_tokens(training, settings)
    assert said == []
    assert tokens.updates == len(job.updates)
    assert (tokens.forget, tokens.retain) == (sum(seen[::2]), sum(seen[1::2]))
    assert tokens.largest == max(seen[i] + seen[i + 1] for i in range(0, len(seen), 2))


@pytest.mark.parametrize("formats", ["all", "cloze", "letter"])
@pytest.mark.parametrize("shots", [0, 2])
def test_questions_are_those_that_mcq_scores(
    tiny: Path, data: Path, formats: Any, shots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(limit=5, formats=formats, shots=shots)
    questions = read_questions(str(data / "questions.jsonl"))
    scored: list[Any] = []
    real = mcq.score

    def noting(lm: Any, items: Any, *rest: Any) -> Any:
        scored.extend(items)
        return real(lm, items, *rest)

    monkeypatch.setattr(mcq, "score", noting)
    mcq.mcq(load_lm(str(tiny)), "x", questions, config)
    counted = [item for items in workload.encoded(tiny_tokenizer(), questions, config, []) for item in items]
    assert sorted(counted) == sorted(scored)
    assert len(counted) == mcq.num_items(questions, config)


def test_texts_are_those_that_nll_scores(tiny: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EvaluateConfig(text_limit=7, max_tokens=9)
    documents = read_texts(str(data / "held.jsonl"))
    scored: list[Any] = []
    real = nll.text_logprobs

    def noting(lm: Any, samples: Any, *rest: Any) -> Any:
        scored.extend(samples)
        return real(lm, samples, *rest)

    monkeypatch.setattr(nll, "text_logprobs", noting)
    nll.nll(load_lm(str(tiny)), "x", documents, config)
    source = {"x": str(data / "held.jsonl")}
    assert workload.evaluation(tiny_tokenizer(), {}, source, {}, config, {})[0].texts == [scored]


SHAPE = shape.Shape("X", 10, 5_000, 2_000, False, 400, 1_000, {"a": (10, 5), "b": (10, 5)}, 10, 100)
SPEED = benchmark.Speed(1.0, 1e-3, 2.0, 12.0, 10, 100)
TOKENS = workload.Tokens(4, 100, 300, 150, 50)


def test_seconds_of_updates_by_hand() -> None:
    settings = resolve(SETTINGS, 10)
    by_hand = 1.0 * (100 * 3 + 300 * 4) + benchmark.REPLAY * 400 * 2 + 4 * 1e-3 * 100
    assert cost.unlearn_seconds(SHAPE, settings, TOKENS, SPEED) == pytest.approx(by_hand)
    twice = TOKENS._replace(updates=8, forget=200, retain=600)
    assert cost.unlearn_seconds(SHAPE, settings, twice, SPEED) == pytest.approx(2 * by_hand)


def test_seconds_of_an_evaluation_by_hand() -> None:
    items = [[workload.Encoded([0] * 9, [[1], [1, 2]])] * 2]
    asked = workload.Asked(items, [[[0] * 10] * 3], [[0] * 6, [0] * 8], 2, 7)
    config = EvaluateConfig(new_tokens=5, samples=2)
    answered = 3 * 2 * 5 + cost.STEP * 5  # six answers are made together
    assert cost.evaluate_seconds(asked, config, SPEED) == pytest.approx(2.0 * (20 + 30 + 3 * 14 + answered))
    many = EvaluateConfig(new_tokens=5, samples=2 * cost.TOGETHER - 1)
    assert cost.evaluate_seconds(asked, many, SPEED) > cost.evaluate_seconds(asked, config, SPEED)


@pytest.mark.parametrize("itemsize", [2, 4])
def test_memory_by_hand(itemsize: int) -> None:
    settings = resolve(SETTINGS, 10)
    cast = 2 * 100 * itemsize if itemsize == 2 else 0
    by_hand = 7 + 2_000 * itemsize + 3 * 100 * 4 + max(12 * 150 * 2 + 100 * 4 + cast, 3 * 100 * 4)
    assert cost.unlearn_memory(7, SHAPE, settings, TOKENS.largest, itemsize, 12.0) == by_hand
    logits = 50 * 100 * (8 if itemsize == 4 else 10)
    assert cost.evaluate_memory(7, SHAPE, itemsize, 50) == 7 + 5_000 * itemsize + 100 * (4 + itemsize) + logits


def random_job(settings: UnlearnConfig, depth: int, length: int = 16) -> Prepared:
    lm = benchmark.random_lm(tiny_config("llama"), depth, 64, torch.device("cpu"), torch.float32)
    samples = [[i % 7] * length for i in range(20)]
    return benchmark.prepared_of(lm, Samples({"a": samples}, {"r": samples}, [1.0]), settings)


@pytest.mark.parametrize("length", [8, 16])
def test_saved_bytes_of_one_block_are_the_input_of_its_matrix(length: int) -> None:
    """Nothing before the trained matrix needs a gradient, and the matrix' gradient needs its input alone."""
    settings = resolve(dataclasses.replace(SETTINGS, num_blocks=1), LAYERS)
    kept = lambda job: first_updates(job)[1] / sum(padded_tokens(job.updates)[1])  # noqa: E731
    assert kept(random_job(settings, 4, length)) >= INNER * 4
    assert kept(random_job(settings, 4, length)) == pytest.approx((INNER + WIDTH) * 4, rel=0.2)  # and the loss' own
    two = resolve(SETTINGS, LAYERS)
    assert kept(random_job(two, 4, length)) > kept(random_job(settings, 4, length))


@pytest.mark.parametrize("depth", [1, 2, 4, LAYERS])
def test_a_measured_model_has_the_real_blocks(depth: int) -> None:
    lm = benchmark.random_lm(tiny_config("llama"), depth, 64, torch.device("cpu"), torch.bfloat16)
    found = shape.shape_of(tiny_config("llama"), resolve(SETTINGS, LAYERS))
    assert len(lm.blocks) == depth
    assert {count_parameters(block) for block in lm.blocks} == {found.block}
    assert all(torch.isfinite(p).all() and p.dtype == torch.bfloat16 for p in lm.model.parameters())
    job = random_job(resolve(SETTINGS, LAYERS), depth)
    blocks = sorted(int(name.split(".")[2]) for name in job.names)
    assert blocks == [i for i in (2, 3) if i < depth] or depth == 2 or depth == 1
    assert max(blocks) == min(3, depth - 1)


def test_measuring_leaves_the_work_as_it_is() -> None:
    samples = [[1] * 50 for _ in range(9)]
    training = Samples({"a": samples}, {"r": samples}, [1.0])
    settings = resolve(dataclasses.replace(SETTINGS, batch_size=4, retain_batch_size=8), LAYERS)
    assert benchmark.smaller(training, settings, 10_000) == (training, settings)
    short, few = benchmark.smaller(training, settings, 60)
    assert few.batch_size == 1
    assert few.retain_batch_size == 1
    assert len(short.retain["r"][0]) == 30
    assert samples == [[1] * 50 for _ in range(9)]


@pytest.mark.parametrize("tokens", [1, 30, 10_000])
def test_samples_are_spread(tokens: int) -> None:
    rows = benchmark.sampled([5] * 40, tokens)
    assert len(rows) == {1: 1, 30: 6, 10_000: 40}[tokens]
    assert sorted(set(rows)) == rows
    assert benchmark.sampled([], tokens) == []


@pytest.mark.parametrize("free", [1e4, 1e12])
def test_depth_to_measure(free: float) -> None:
    found = shape.shape_of(tiny_config("llama"), resolve(SETTINGS, LAYERS))
    depth, vocabulary = benchmark.depth_to_measure(found, 3, 4, int(free))
    assert (depth, vocabulary) == ((0, vocabulary) if free == 1e4 else (LAYERS, found.vocabulary))
    some = int(4 * 4 * (found.outside + 2.5 * found.block))  # a quarter holds all around the blocks, and two blocks
    large = dataclasses.replace(found, num_parameters=10**9)
    assert benchmark.depth_to_measure(large, 3, 4, some)[0] in (2, 3)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "phi3", "gpt_neox", "olmo2", "minicpm3"])
def test_a_config_is_enough(tmp_path: Path, data: Path, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights are there, and none are looked for."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a plan opened weights")

    monkeypatch.setattr(safetensors, "safe_open", refuse)
    made = planned(
        config_only(tmp_path / family, family),
        data,
        questions={"q": str(data / "questions.jsonl")},
        texts={"t": str(data / "held.jsonl")},
        evaluate=EvaluateConfig(limit=4),
    )
    assert made.num_blocks == LAYERS
    assert all(stage.seconds > 0 and stage.memory > 0 for stage in made.stages if stage.name != "load")
    assert not any("does not run" in text for text in made.assumptions)
    assert any("4 characters a token" in text for text in made.assumptions)
    assert made.problems == ()


@pytest.mark.parametrize(
    ("family", "matrix"),
    [
        ("mixtral", "mlp.experts.down_proj"),
        ("mixtral", "mlp.experts.down_proj[1]"),
        ("qwen2_moe", "mlp.shared_expert.down_proj"),
    ],
)
def test_experts_are_refused_or_named(tmp_path: Path, data: Path, family: str, matrix: str) -> None:
    folder = config_only(tmp_path / family, family)
    with pytest.raises(ValueError, match="--matrix"):
        planned(folder, data)
    made = planned(folder, data, dataclasses.replace(SETTINGS, matrix=matrix))
    assert all(matrix in name for name in made.trained)
    assert len(made.trained) == 2


def test_damaged_weights_do_not_matter(tmp_path: Path, data: Path) -> None:
    folder = config_only(tmp_path / "m", "llama")
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert planned(folder, data).seconds > 0


def test_without_text_every_sample_is_full(tmp_path: Path) -> None:
    made = planning.plan(str(config_only(tmp_path / "m", "llama")), config=SETTINGS)
    tokens = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) tokens each", made.stage("unlearn").basis)]
    assert tokens == [5 * 16]
    assert sum("no text was named" in text for text in made.assumptions) == 2
    assert "--forget TOPIC=FILE --retain KEPT=FILE" in made.command
    assert any("no evaluation" in text for text in made.assumptions)


def test_hub_text_is_not_fetched(tmp_path: Path) -> None:
    made = planning.plan(
        str(config_only(tmp_path / "m", "llama")),
        {"a": "hub:some/dataset"},
        {"b": "hub:some/other"},
        SETTINGS,
        questions={"q": "hub:cais/wmdp:wmdp-bio:test"},
        texts={"t": "hub:some/text"},
        prompts={"p": "hub:some/prompts"},
        evaluate=EvaluateConfig(limit=3, text_limit=2, new_tokens=2, max_tokens=8),
    )
    assert sum("not fetched" in text for text in made.assumptions) == 5
    assert "3 questions" in made.stage("evaluate base").basis


def test_bad_input_is_found_as_unlearn_finds_it(tmp_path: Path, data: Path, tiny: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist; expected a file"):
        planning.plan(str(tiny), {"a": str(data / "none.jsonl")}, {"b": str(data / "retain.jsonl")}, SETTINGS)
    with pytest.raises(ValueError, match="past the model"):
        planned(tiny, data, UnlearnConfig(block=20))
    with pytest.raises(ValueError, match=r"no config\.json"):
        planned(data, data)


@pytest.mark.parametrize(
    ("free", "advice"),
    [(3_000_000, "--batch-size"), (500_000, "larger machine")],
)
def test_what_does_not_fit_is_said_with_what_would(
    tmp_path: Path, data: Path, free: int, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with little memory, which is all that is pretended here."""
    folder = config_only(tmp_path / "m", "llama", intermediate_size=512)
    settings = dataclasses.replace(SETTINGS, max_tokens=64, batch_size=64, retain_batch_size=64)
    for module in (benchmark, memory):
        monkeypatch.setattr(module, "free_bytes", lambda device: free)
    made = planned(folder, data, settings, texts={"t": str(data / "held.jsonl")})
    (problem, *_) = made.problems
    assert "unlearn needs" in problem
    assert advice in problem
    assert table.lines(made)[0].startswith("Does not fit: unlearn needs")


def test_advice_fits() -> None:
    """The advice is the largest batch, then dtype, that the arithmetic lets in."""
    settings = resolve(dataclasses.replace(SETTINGS, batch_size=8), 10)
    case = stages.Case(
        "m",
        True,
        [],
        [],
        SETTINGS,
        settings,
        EvaluateConfig(),
        1,
        SHAPE,
        TOKENS._replace(largest=8_000),
        workload.Asked([], [], [], 0, 0),
        5_000,
        SPEED,
        table.Machine("cpu", "float32", 1, 0, 0),
        0,
        0.0,
        0.0,
        None,
    )

    def advice(limit: int, of: Any = stages.unlearn_advice) -> str:
        return of(case._replace(machine=table.Machine("cpu", "float32", 1, limit, 0)))

    need = [cost.unlearn_memory(0, SHAPE, settings, n, 4, 12.0) for n in (8_000, 4_000, 1_000)]
    assert advice(need[1]) == "--batch-size 4 --retain-batch-size 1 would fit"
    assert advice(need[2]) == "--batch-size 1 --retain-batch-size 1 would fit"
    assert advice(need[2] - 1).startswith("--dtype bfloat16 --batch-size")
    assert "larger machine" in advice(1_000)
    quarter = cost.evaluate_memory(0, SHAPE, 4, 1_250)
    assert advice(quarter, stages.evaluate_advice) == "evaluate with --batch-tokens 1024 would fit"
    assert advice(1_000, stages.evaluate_advice).startswith("with --dtype bfloat16 the weights alone need")


def test_a_plan_is_data_and_words(tiny: Path, data: Path) -> None:
    made = planned(
        tiny, data, questions={"q": str(data / "questions.jsonl")}, evaluate=EvaluateConfig(limit=4), seeds=2
    )
    again = json.loads(json.dumps(made.as_dict()))
    assert again["seconds"] == pytest.approx(sum(stage["seconds"] for stage in again["stages"]))
    assert again["memory"] == max(stage["memory"] for stage in again["stages"])
    rows = planning.table_rows(made)
    assert [row[0] for row in rows] == [stage.name for stage in made.stages] + ["all"]
    assert all(len(row) == len(planning.COLUMNS) and all(row) for row in rows)
    assert all("\n" not in line for line in [planning.heading(made), *planning.lines(made)])
    assert made.stage("evaluate unlearned").seconds == pytest.approx(2 * made.stage("evaluate base").seconds)
    assert made.command.endswith("--max-tokens 16 --seeds 2 --out runs/mine")


def test_the_line_before_a_run(tiny: Path, data: Path) -> None:
    settings = resolve(SETTINGS, LAYERS)
    lm = load_lm(str(tiny), 3)
    forget, retain = (read_texts(str(data / f"{n}.jsonl")) for n in ("forget", "retain"))
    line = stages.unlearn_line(prepared(lm, {"a": forget}, [("b", retain, 1.0)], settings))
    assert re.fullmatch(
        r"About [\d.]+ s for 5 updates \([\d.]+ s each\); [\d,.]+ [MG]B of memory and 20 kB of disk at most, "
        r"20 kB of it kept",
        line,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (12.2, "12 s"),
        (179, "179 s"),
        (252, "4.2 min"),
        (3600 * 5, "5.0 h"),
        (2e6, "23.1 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(12, "12 bytes"), (999_600, "1.0 MB"), (1.4e9, "1.4 GB"), (2.8e11, "280 GB"), (32_000, "32 kB")],
)
def test_sizes(number: float, text: str) -> None:
    assert size(number) == text


def test_a_truncated_config_is_as_deep_as_it_says() -> None:
    short = shape.shortened(tiny_config("llama"), 2, 50)
    assert short.num_hidden_layers == truncated(tiny_config("llama"), 2).num_hidden_layers == 2
    assert short.vocab_size == 50
    assert math.prod(
        shape.shape_of(short, resolve(UnlearnConfig(block=1), 2)).sizes["model.layers.1.mlp.down_proj.weight"]
    )


def test_logits_are_those_of_the_largest_set() -> None:
    """Sets are scored one after the other, so that two of them need no more memory than the larger one."""
    texts_ = [[[0] * 9] * 3, [[0] * 5] * 4]
    assert workload.largest_pass(workload.Asked([], texts_, [], 0, 0), 4096, 100) == 27
    assert workload.largest_pass(workload.Asked([], texts_, [], 0, 0), 20, 100) == 18
    items = [[workload.Encoded([0] * 5, [[1], [1, 2]])] * 4, [workload.Encoded([0], [[1]])]]
    assert workload.largest_pass(workload.Asked(items, [], [], 0, 0), 4096, 100) == 12


def test_every_turn_of_a_prompt_is_answered(tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text(json.dumps({"turns": ["one", "two three"]}) + "\n" + json.dumps({"prompt": "four"}) + "\n")
    asked, _ = workload.evaluation(None, {}, {}, {"p": str(source)}, EvaluateConfig(), {})
    assert [len(ids) for ids in asked.prompts] == [1, 4, 1]
