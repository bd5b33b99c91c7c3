"""The loop and its parts against slow code, torch, and identities; resume after a kill; what stops a run."""

from __future__ import annotations

import copy
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from misdirect import api, runs, storage
from misdirect.config import Corpus, Topic, UnlearnConfig
from misdirect.data.batches import mixture_schedule, pad, sample_schedule
from misdirect.model.delta import load_delta, load_tensors
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.recipes import resolve
from misdirect.unlearning import run as running
from misdirect.unlearning import steering
from misdirect.unlearning.arithmetic import CLEAN, PUBLISHED
from misdirect.unlearning.loss import mean_cosine, squared_distance
from misdirect.unlearning.methods import unlearn
from misdirect.unlearning.optimizer import adamw_step, clip, learning_rate
from misdirect.unlearning.published import distance
from misdirect.unlearning.train import Divergence, Prepared, initial_state, train
from tiny import LAYERS, prepared, texts, tiny_folder, tiny_model

BLOCK = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def lm(folder: Path) -> LM:
    return load_lm(str(folder), BLOCK)


def settings(**given: Any) -> UnlearnConfig:
    return resolve(UnlearnConfig(**({"block": BLOCK, "batch_size": 2, "max_tokens": 24, "lr": 3e-3} | given)), LAYERS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- losses ---


def slow_loss(states: Tensor, target: Tensor, counts: Tensor) -> float:
    """The formula, number by number, in Python's own floats."""
    total, tokens = 0.0, 0
    for b in range(states.shape[0]):
        for t in range(states.shape[1]):
            if counts[b, t]:
                wanted = target if target.dim() == 1 else target[b, t]
                total += sum((states[b, t, d].item() - wanted[d].item()) ** 2 for d in range(states.shape[2]))
                tokens += 1
    return total / tokens / states.shape[2]


@pytest.mark.parametrize("shape", [(5,), (2, 4, 5)])
def test_squared_distance_is_the_formula(shape: tuple[int, ...]) -> None:
    states, target = drawn(2, 4, 5), drawn(*shape, seed=1)
    counts = torch.tensor([[False, True, True, True], [False, True, False, False]])
    assert squared_distance(states, target, counts).item() == pytest.approx(slow_loss(states, target, counts), rel=1e-6)
    half = squared_distance(states.bfloat16(), target, counts)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(slow_loss(states.bfloat16(), target, counts), rel=1e-6)


def test_squared_distance_without_a_counted_token_is_zero() -> None:
    assert squared_distance(drawn(1, 2, 3), drawn(3), torch.zeros(1, 2, dtype=torch.bool)).item() == 0


def test_the_distance_is_over_every_position() -> None:
    states, target = drawn(2, 4, 5), drawn(1, 1, 5, seed=1)
    everything = torch.ones(2, 4, dtype=torch.bool)
    expected = slow_loss(states, target.flatten(), everything)
    assert distance(states, target).item() == pytest.approx(expected, rel=1e-6)
    assert distance(states.bfloat16(), target.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("left", [False, True])
def test_padding_and_first_tokens_do_not_count(left: bool) -> None:
    batch = pad([[5, 6, 7, 8], [5, 6], [9, 5, 6]], 0, left=left)
    states, target = drawn(3, 4, 5), drawn(3, 4, 5, seed=1)
    first = 0 if not left else 2  # where the second row's two tokens begin
    spoilt = states.clone()
    spoilt[0, 0] = 1e6
    spoilt[1, [t for t in range(4) if t != first + 1]] = float("nan")  # its padding and its first token
    clean = squared_distance(states, target, batch.loss_mask)
    assert torch.equal(squared_distance(spoilt, target, batch.loss_mask), clean)
    spoilt[1, first + 1] += 1
    assert not torch.equal(squared_distance(spoilt, target, batch.loss_mask), clean)


def test_padding_gives_no_gradient() -> None:
    states = drawn(2, 4, 5).requires_grad_()
    batch = pad([[5, 6, 7, 8], [5, 6]], 0)
    squared_distance(states, drawn(5, seed=1), batch.loss_mask).backward()
    assert states.grad is not None
    assert torch.equal(states.grad.abs().sum(-1) > 0, batch.loss_mask)


def test_mean_cosine_is_the_formula() -> None:
    states, direction, counts = (
        drawn(2, 3, 5),
        drawn(5, seed=1),
        torch.tensor([[False, True, True], [False, True, False]]),
    )
    cosines = [
        (states[b, t] @ direction / states[b, t].norm() / direction.norm()).item() for b, t in ((0, 1), (0, 2), (1, 1))
    ]
    assert mean_cosine(states, direction, counts).item() == pytest.approx(sum(cosines) / 3, rel=1e-5)


# --- steering ---


def test_control_vectors_are_unit_positive_and_follow_the_seed() -> None:
    one, two = steering.control_vectors(2, 4096, 0)
    assert one.norm().item() == pytest.approx(1, abs=1e-6)
    assert (one >= 0).all()
    assert (one @ two).item() == pytest.approx(0.75, abs=0.02)  # two draws from [0, 1): 3/4, not 0
    assert torch.equal(one, steering.control_vectors(1, 4096, 0)[0])
    assert not torch.equal(one, steering.control_vectors(1, 4096, 1)[0])


def test_the_relative_coefficient_is_a_multiple_of_the_median_norm_without_first_tokens(lm: LM, folder: Path) -> None:
    full = AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = texts(3, 15, seed=8)
    norms = []
    for line in lines:
        with torch.no_grad():
            states = full(**lm.tokenizer(line, return_tensors="pt"), output_hidden_states=True).hidden_states[BLOCK + 1]
        norms += states[0, 1:].norm(dim=-1).tolist()
    expected = sorted(norms)[(len(norms) - 1) // 2]
    job = prepared(lm, {"a": lines}, [("r", lines, 1.0)], settings(updates=1, steering="2.5x"))
    assert job.chosen["topics"]["a"]["median_norm"] == pytest.approx(expected, rel=1e-5)
    assert job.chosen["topics"]["a"]["steering_coefficient"] == pytest.approx(2.5 * expected, rel=1e-5)
    assert job.private["a"][1] == job.chosen["topics"]["a"]["steering_coefficient"]
    assert steering.coefficient("6.5", 3.0) == 6.5


# --- the optimizer ---


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_adamw_is_torchs(dtype: torch.dtype, tolerance: float) -> None:
    """torch updates its first moment by `lerp`, which rounds differently: equal to a few units in the last place."""
    weight = drawn(6, 4).to(dtype)
    start = weight.clone()
    first, second = torch.zeros_like(weight), torch.zeros_like(weight)
    theirs = torch.nn.Parameter(weight.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.0)
    for step in range(1, 21):
        gradient = drawn(6, 4, seed=step).to(dtype) * 10.0 ** (step % 5 - 3)
        adamw_step(weight, gradient, first, second, step, 0.1)
        theirs.grad = gradient
        optimizer.step()
        assert torch.allclose(weight, theirs.detach(), rtol=tolerance, atol=tolerance)
    assert (weight - start).abs().min() > 0.01


def test_the_published_optimizer_starts_more_slowly_where_gradients_are_small() -> None:
    """At the first step the root of the uncorrected second moment is |g| * sqrt(0.001): eps 1e-6 is 3e-5 of g, not 1e-8."""
    steps = {}
    for published, step in enumerate((CLEAN.adamw_step, PUBLISHED.adamw_step)):
        weight, gradient = torch.zeros(1, dtype=torch.float64), torch.full((1,), 1e-5, dtype=torch.float64)
        step(weight, gradient, torch.zeros_like(weight), torch.zeros_like(weight), 1, 1.0)
        steps[published] = -weight.item()
    assert steps[False] == pytest.approx(1e-5 / (1e-5 + 1e-8))
    assert steps[True] == pytest.approx(1e-5 / (1e-5 + 1e-6 / math.sqrt(0.001)))


def test_an_update_leaves_the_gradient_as_it_was() -> None:
    gradient = drawn(3)
    before = gradient.clone()
    adamw_step(drawn(3, seed=1), gradient, torch.zeros(3), torch.zeros(3), 1, 0.1)
    assert torch.equal(gradient, before)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", [0.25, 0.5, 0.75, 1, 0.904508497, 0.654508497, 0.345491503, 0.095491503]),
    ],
)
def test_learning_rate_rises_and_falls(schedule: str, expected: list[float]) -> None:
    found = [learning_rate(step, 8, 2e-3, 3, schedule) for step in range(8)]
    assert found == pytest.approx([2e-3 * value for value in expected], rel=1e-6)


def test_learning_rate_without_warmup_starts_at_its_peak() -> None:
    assert [learning_rate(0, 5, 0.3, 0, schedule) for schedule in ("constant", "linear", "cosine")] == [0.3] * 3


@pytest.mark.parametrize("largest", [0.0, 0.7, 1e9])
def test_clip_is_torchs(largest: float) -> None:
    gradients = {"a": drawn(3, 4), "b": drawn(5, seed=1)}
    parameters = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradients.values()]
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        parameter.grad = gradient.clone()
    norm = clip(gradients, largest)
    expected = torch.nn.utils.clip_grad_norm_(parameters, largest or math.inf)
    assert norm == pytest.approx(expected.item(), rel=1e-6)
    for parameter, gradient in zip(parameters, gradients.values(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(gradient, parameter.grad, rtol=1e-5, atol=0)  # torch adds 1e-6 to the norm


# --- the plan ---


def test_every_epoch_sees_every_sample_once() -> None:
    flat = [i for batch in sample_schedule(7, 10, 4, seed=3) for i in batch]
    assert len(flat) == 40
    epochs = [flat[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert flat != [i for batch in sample_schedule(7, 10, 4, seed=4) for i in batch]


@pytest.mark.parametrize("weights", [[1.0], [3.0, 1.0], [1.0, 2.0, 0.5], [2.0, 2.0, 1.0, 2.0], [10.0, 0.1, 3.0]])
def test_a_mixture_is_within_one_sample_of_its_weights_at_every_moment(weights: list[float]) -> None:
    sizes = [5 + 3 * i for i in range(len(weights))]
    plan = mixture_schedule(sizes, weights, 50, 4, seed=0)
    assert all(len(batch) == 4 for batch in plan)
    flat = [entry for batch in plan for entry in batch]
    for position in range(1, len(flat) + 1):
        taken = Counter(corpus for corpus, _ in flat[:position])
        for corpus, weight in enumerate(weights):
            assert abs(taken[corpus] - position * weight / sum(weights)) <= 1
    for corpus, size in enumerate(sizes):
        seen = [sample for k, sample in flat if k == corpus]
        for start in range(0, len(seen) - size + 1, size):
            assert sorted(seen[start : start + size]) == list(range(size))


def test_the_run_takes_forget_and_retain_samples_by_that_plan(lm: LM) -> None:
    forget = {"a": texts(5, 9, seed=1), "b": texts(3, 9, seed=2)}
    retain = [("r", texts(6, 9, seed=3), 3.0), ("s", texts(6, 9, seed=4), 1.0)]
    plan = prepared(lm, forget, retain, settings(updates=30)).updates
    assert [topic for topic, _, _ in plan] == ["a", "b"] * 15
    decode = lm.tokenizer.batch_decode
    for name, lines in forget.items():
        seen = [text for topic, batch, _ in plan if topic == name for text in decode(batch)]
        assert sorted(seen[: len(lines)]) == sorted(lines)
        assert Counter(seen).keys() == set(lines)
        assert max(Counter(seen).values()) - min(Counter(seen).values()) <= 1
    kept = [text for _, _, batch in plan for text in decode(batch)]
    assert sum(text in retain[0][1] for text in kept) == pytest.approx(45, abs=1)
    assert sum(text in retain[1][1] for text in kept) == pytest.approx(15, abs=1)


def test_epochs_are_passes_over_the_longest_topic(lm: LM) -> None:
    forget = {"a": texts(5, 9, seed=1), "b": texts(3, 9, seed=2)}
    job = prepared(lm, forget, [("r", texts(4, 9), 1.0)], settings(epochs=2.0))
    assert len(job.updates) == 2 * 5  # 2 passes * 5 texts / batches of 2, for each of two topics
    seen = [text for topic, batch, _ in job.updates if topic == "a" for text in lm.tokenizer.batch_decode(batch)]
    assert set(Counter(seen).values()) == {2}


# --- the loop ---


def two_models(lm: LM, folder: Path, job: Prepared) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """The clean loop, slowly: whole models, a frozen copy, torch's optimizer, a text at a time without padding."""
    updated = AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)
    frozen = copy.deepcopy(updated)
    names = [f"model.layers.{index}.mlp.down_proj.weight" for index in (1, 2, 3)]
    parameters = [updated.get_parameter(name).requires_grad_() for name in names]
    optimizer = torch.optim.AdamW(parameters, lr=job.config.lr, weight_decay=0.0)

    def states(model: Any, ids: list[int]) -> Tensor:
        out = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False)
        return out.hidden_states[BLOCK + 1][0, 1:]  # the first token does not count

    losses = []
    for topic, forget, retain in job.updates:
        direction, coefficient = job.private[topic]
        wanted = coefficient * direction
        forget_loss = torch.cat([(states(updated, ids) - wanted).square().mean(-1) for ids in forget]).mean()
        kept = [(states(updated, ids) - states(frozen, ids)).square().mean(-1) for ids in retain]
        retain_loss = torch.cat(kept).mean()
        optimizer.zero_grad()
        (forget_loss + job.chosen["topics"][topic]["retain_weight"] * retain_loss).backward()
        optimizer.step()
        losses.append((forget_loss.item(), retain_loss.item()))
    return {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)}, losses


def test_the_clean_loop_is_that_of_two_whole_models(lm: LM, folder: Path) -> None:
    """Two topics, each with its own vector, coefficient and alpha, two retain corpora; equal but for rounding."""
    forget = {"a": texts(5, 20, seed=1), "b": texts(5, 20, seed=2)}
    retain = [("r", texts(5, 20, seed=3), 2.0), ("s", texts(5, 20, seed=4), 1.0)]
    own = [Topic("a", "-", "4", 20.0), Topic("b", "-", "3x", 500.0)]
    job = prepared(lm, forget, retain, settings(updates=8), own)
    a, b = (job.chosen["topics"][name] for name in ("a", "b"))
    assert [a["retain_weight"], b["retain_weight"]] == [20.0, 500.0]
    assert a["steering_coefficient"] == 4.0
    assert b["steering_coefficient"] == pytest.approx(3 * b["median_norm"])
    assert not torch.allclose(job.private["a"][0], job.private["b"][0], atol=0.01)
    expected, losses = two_models(lm, folder, job)
    delta, log = unlearn(lm, forget, retain, settings(updates=8), own)
    for line, (forget_loss, retain_loss) in zip(log, losses, strict=True):
        assert line["forget_loss"] == pytest.approx(forget_loss, rel=1e-4)
        assert line["retain_loss"] == pytest.approx(retain_loss, rel=1e-3, abs=1e-9)
    start = lm.blocks.state_dict()
    for name, value in expected.items():
        # The optimizer divides by the gradient's own size: where a gradient is little more than rounding, so is its step.
        off, moved = delta.tensors[name] - value, value - start[name.removeprefix("model.layers.")]
        assert off.norm() < 5e-3 * moved.norm() and off.abs().max() < 3e-3
        assert moved.abs().mean() > 1e-3


def test_each_topics_own_alpha_is_used_in_its_own_updates(lm: LM) -> None:
    forget, retain = {"a": texts(4, 12, seed=1), "b": texts(4, 12, seed=2)}, [("r", texts(4, 12, seed=3), 1.0)]

    def norms(a: float | None, b: float | None) -> list[float]:
        own = [Topic("a", "-", None, a), Topic("b", "-", None, b)]
        return [line["gradient_norm"] for line in unlearn(lm, forget, retain, settings(updates=3), own)[1]]

    plain = norms(None, None)
    assert norms(100.0, 100.0) == plain  # the run's own alpha
    other_a, other_b = norms(1e5, None), norms(None, 1e5)
    assert other_a[:2] == plain[:2]  # at the first update nothing has moved, so that alpha weighs nothing
    assert other_a[2] > 2 * plain[2]
    assert other_b[0] == plain[0]
    assert other_b[1] > 2 * plain[1]


def test_forget_text_turns_to_the_vector_and_retain_text_stays(lm: LM) -> None:
    delta, log = unlearn(
        lm, {"a": texts(24, 16, seed=1)}, [("r", texts(24, 16, seed=2), 1.0)],
        settings(updates=120, batch_size=4, lr=1e-2, steering="4x", alpha=1.0),
    )  # fmt: skip
    cosine, forget, retain = ([line[key] for line in log] for key in ("cosine", "forget_loss", "retain_loss"))
    assert abs(cosine[0]) < 0.4
    mean = lambda values, start: sum(values[start : start + 10]) / 10  # noqa: E731
    assert mean(cosine, 0) + 0.2 < mean(cosine, 110)
    assert mean(forget, 110) < 0.6 * mean(forget, 0)
    assert retain[0] == 0
    assert mean(cosine, 0) < mean(cosine, 20) < mean(cosine, 60) < mean(cosine, 110)
    # the same words are forgotten and retained, so the two pull at each other: a large alpha holds the model in place
    held = unlearn(
        lm, {"a": texts(24, 16, seed=1)}, [("r", texts(24, 16, seed=2), 1.0)],
        settings(updates=120, batch_size=4, lr=1e-2, steering="4x", alpha=1e4),
    )[1]  # fmt: skip
    assert mean([line["retain_loss"] for line in held], 110) < 0.05 * mean(retain, 110)
    assert len(delta.tensors) == 3


def test_the_seed_decides_everything(lm: LM) -> None:
    def run(seed: int) -> dict[str, Tensor]:
        forget, retain = {"a": texts(6, 12, seed=1)}, [("r", texts(6, 12, seed=2), 1.0)]
        return dict(unlearn(lm, forget, retain, settings(updates=3, seed=seed))[0].tensors)

    one, again, other = run(5), run(5), run(6)
    assert all(torch.equal(value, again[name]) for name, value in one.items())
    assert not any(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("what", ["forget", "retain"])
def test_missing_text_is_refused(lm: LM, what: str) -> None:
    some = texts(2, 9)
    with pytest.raises(ValueError, match=f"no {what} text was given"):
        prepared(
            lm,
            {"a": some} if what == "retain" else {},
            [("r", some, 1.0)] if what == "forget" else [],
            settings(updates=1),
        )
    with pytest.raises(ValueError, match="empty holds no text of two tokens or more"):
        prepared(lm, {"empty": ["", "a"]}, [("r", some, 1.0)], settings(updates=1))


# --- the run directory ---


class Data:
    """Text files, and the same call of `unlearn` for every run that is compared."""

    def __init__(self, folder: Path, where: Path, **given: Any) -> None:
        self.model, self.where = str(folder), where
        for name, seed in (("a", 1), ("b", 2), ("r", 3), ("s", 4)):
            lines = [json.dumps({"text": text}) for text in texts(9, 20, seed=seed)]
            (where / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        self.topics = [Topic("a", str(where / "a.jsonl")), Topic("b", str(where / "b.jsonl"), "3x", 10.0)]
        self.corpora = [Corpus("r", str(where / "r.jsonl")), Corpus("s", str(where / "s.jsonl"), 2.0)]
        self.config = UnlearnConfig(
            **({"block": BLOCK, "batch_size": 2, "max_tokens": 24, "lr": 3e-3, "device": "cpu"} | given)
        )

    def unlearn(self, run: str) -> Path:
        return api.unlearn(self.model, self.topics, self.corpora, self.where / run, self.config)

    def script(self, run: str) -> str:
        """The same call as a program of its own."""
        return (
            "import torch; from misdirect import api; from misdirect.config import Corpus, Topic, UnlearnConfig\n"
            f"torch.set_num_threads({torch.get_num_threads()})\n"
            f"api.unlearn({self.model!r}, {self.topics!r}, {self.corpora!r}, {str(self.where / run)!r}, {self.config!r})"
        )


def kill_after_checkpoint(script: str, run: Path, errors: Path, deadline: float = 300) -> None:
    """Starts a run as a process of its own and kills it (SIGKILL) as soon as its first checkpoint exists."""
    with errors.open("w") as sink:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=sink, stderr=sink)
        began = time.monotonic()
        try:
            while not (run / runs.CHECKPOINT).exists():
                assert process.poll() is None, errors.read_text()
                assert time.monotonic() - began < deadline, "no checkpoint came"
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL, errors.read_text()
        finally:
            process.kill()
            process.wait()


def snapshot(run: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}


def test_a_killed_run_goes_on_bit_for_bit_and_a_finished_one_is_not_repeated(folder: Path, tmp_path: Path) -> None:
    updates = 80
    data = Data(folder, tmp_path, updates=updates, checkpoint_every=4)
    whole = data.unlearn("whole")
    assert not (whole / runs.CHECKPOINT).exists()

    cut = tmp_path / "cut"
    kill_after_checkpoint(data.script("cut"), cut, tmp_path / "errors.txt")
    assert not (cut / runs.DELTA).exists()
    reached = int(load_tensors(cut / runs.CHECKPOINT)[1]["step"])
    assert 0 < reached < updates
    with pytest.raises(ValueError, match=r"unfinished run .*expected the same misdirect unlearn command again"):
        runs.require_run(cut)
    (cut / ".checkpoint.safetensors.abc.part").write_bytes(b"torn")  # what a kill in the middle of saving leaves
    assert data.unlearn("cut") == cut

    expected, found = load_delta(whole / runs.DELTA).tensors, load_delta(cut / runs.DELTA).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    controls = [load_tensors(run / runs.CONTROL)[0] for run in (whole, cut)]
    assert controls[0].keys() == {"a", "b"}
    assert all(torch.equal(value, controls[1][name]) for name, value in controls[0].items())
    logs = [[drop_seconds(line) for line in runs.read_log(run)] for run in (whole, cut)]
    assert [line["step"] for line in logs[1]] == list(range(1, updates + 1))
    assert logs[0] == logs[1]
    assert not (cut / runs.CHECKPOINT).exists()

    before = snapshot(cut)
    assert sorted(before) == sorted([runs.CONFIG, runs.ENV, runs.LOG, runs.DELTA, runs.CONTROL])
    assert data.unlearn("cut") == cut
    assert snapshot(cut) == before


def drop_seconds(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key != "seconds"}


def test_a_run_goes_on_from_its_last_checkpoint_whatever_the_log_says(folder: Path, tmp_path: Path) -> None:
    """Killed between the log and the checkpoint: the lines past the checkpoint, torn ones too, are made again."""
    data = Data(folder, tmp_path, updates=9, checkpoint_every=4)
    whole = data.unlearn("whole")
    lines = (whole / runs.LOG).read_text().splitlines(keepends=True)

    class Killed(BaseException):
        pass

    cut = tmp_path / "cut"
    config = resolve(data.config, LAYERS)
    job = prepared(
        load_lm(str(folder), BLOCK),
        {n: texts(9, 20, seed=s) for n, s in (("a", 1), ("b", 2))},
        [("r", texts(9, 20, seed=3), 1.0), ("s", texts(9, 20, seed=4), 2.0)],
        config,
        data.topics,
    )
    made = 0

    def stop(count: int, text: str) -> None:
        nonlocal made
        made += count
        if made == 6:
            raise Killed

    asked = storage.read_json(whole / runs.CONFIG)
    with pytest.raises(Killed):
        running.execute(job, cut, asked, advance=stop)
    assert int(load_tensors(cut / runs.CHECKPOINT)[1]["step"]) == 4
    assert len(runs.read_log(cut)) == 6
    with (cut / runs.LOG).open("a") as log:
        log.write(lines[6][:20])
    assert data.unlearn("cut") == cut
    assert [drop_seconds(line) for line in runs.read_log(cut)] == [drop_seconds(json.loads(line)) for line in lines]
    expected, found = load_delta(whole / runs.DELTA).tensors, load_delta(cut / runs.DELTA).tensors
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    finished = snapshot(cut)
    again = running.execute(job, cut, asked, advance=lambda *_: pytest.fail("an update was made"))
    assert all(torch.equal(value, again.tensors[name]) for name, value in expected.items())
    assert snapshot(cut) == finished


def test_another_run_in_the_same_folder_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    run = Data(folder, tmp_path, updates=2).unlearn("run")
    before = snapshot(run)
    with pytest.raises(ValueError, match=r"settings\.lr, settings\.seed differ"):
        Data(folder, tmp_path, updates=2, lr=1e-3, seed=9).unlearn("run")
    assert snapshot(run) == before
    Data(folder, tmp_path, updates=2, checkpoint_every=1).unlearn("run")  # changes no number
    assert snapshot(run) == before


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    data = Data(folder, tmp_path, updates=6, checkpoint_every=1, lr=1e29)
    with pytest.raises(
        ValueError, match=r"not a finite number at update \d; expected a smaller --lr; the checkpoint"
    ) as e:
        data.unlearn("run")
    run = tmp_path / "run"
    step = int(load_tensors(run / runs.CHECKPOINT)[1]["step"])
    assert f"at update {step + 1};" in str(e.value)
    assert f"the checkpoint of update {step} is kept" in str(e.value)
    assert all(torch.isfinite(value).all() for value in load_tensors(run / runs.CHECKPOINT)[0].values())
    assert not (run / runs.DELTA).exists()
    assert [line["step"] for line in runs.read_log(run)] == list(range(1, step + 1))
    assert all(math.isfinite(line["forget_loss"]) for line in runs.read_log(run))


def test_without_a_checkpoint_the_message_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--lr; no checkpoint had been due"):
        Data(folder, tmp_path, updates=6, lr=1e29).unlearn("run")
    assert not (tmp_path / "run" / runs.CHECKPOINT).exists()
    assert not (tmp_path / "run" / runs.DELTA).exists()


@pytest.mark.parametrize(
    ("steering", "alpha"),
    [
        ("2.5e19", 1.0),  # the loss is past float32, its gradient is not
        ("1", 1e29),  # the loss is not, the norm of its gradient is: without the guard the moments would stay infinite
    ],
)
def test_neither_an_infinite_loss_nor_an_infinite_gradient_changes_a_weight(
    lm: LM, steering: str, alpha: float
) -> None:
    config = settings(updates=1, steering=steering, alpha=alpha)
    job = prepared(lm, {"a": texts(4, 9)}, [("r", texts(4, 9, seed=1), 1.0)], config)
    start = initial_state(job)
    weights = {name: value + 0.01 * drawn(*value.shape) for name, value in start.weights.items()}
    before = {name: value.clone() for name, value in weights.items()}
    with pytest.raises(Divergence, match=r"the loss of a is not a finite number at update 1; expected a smaller --lr"):
        train(job, start._replace(weights=weights), lambda *_: pytest.fail("an update was made"))
    assert all(torch.equal(value, weights[name]) for name, value in before.items())
    assert not any(moment.any() for moments in (start.exp_avg, start.exp_avg_sq) for moment in moments.values())


def test_weights_that_are_not_finite_are_refused_before_training(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    model = tiny_model("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data[0, 0] = float("inf")
    model.save_pretrained(folder)
    with pytest.raises(ValueError, match="not finite numbers before anything is trained"):
        Data(folder, tmp_path, updates=2).unlearn("run")
    assert not (tmp_path / "run" / runs.DELTA).exists()
