"""The measured learning rate means the same on every model, and a run that forgets nothing says so."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import misdirect as md
from misdirect import runs, storage
from misdirect.cli.main import main
from misdirect.config import UnlearnConfig
from misdirect.model.activations import states_after
from misdirect.model.delta import load_delta
from misdirect.model.load import load_lm
from misdirect.recipes import resolve
from misdirect.unlearning import rate, rmu, signals
from misdirect.unlearning.arithmetic import tokenized
from misdirect.unlearning.train import Prepared, initial_state, train
from tiny import texts, tiny_folder

FORGET, RETAIN = {"bio": texts(12, 30, seed=1)}, [("wiki", texts(12, 30, seed=2), 1.0)]
CONFIG = UnlearnConfig(block=2, updates=12, batch_size=4, max_tokens=32, device="cpu")


def prepared(folder: Path, **settings: float) -> Prepared:
    lm = load_lm(str(folder), 2, "cpu")
    config = resolve(dataclasses.replace(CONFIG, **settings), 6)  # type: ignore[arg-type]
    return rmu.prepare(lm, tokenized(lm, FORGET, RETAIN, config), config, ())


def scaled(folder: Path, by: float, to: Path) -> Path:
    """The same model with a residual stream `by` times as long: embeddings and what every block writes to it."""
    lm = load_lm(str(folder), None, "cpu")
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if any(part in name for part in ("embed_tokens", "o_proj", "down_proj")):
                parameter.mul_(by)
    lm.model.save_pretrained(to)
    lm.tokenizer.save_pretrained(to)
    return to


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_few_updates_at_it_move_forget_text_by_the_set_share(family: str, tmp_path: Path) -> None:
    found = prepared(tiny_folder(tmp_path, family))
    assert found.chosen["lr"] == found.config.lr
    assert f"learning rate {found.config.lr:g}: 8 updates at it move forget text by" in found.notes[-1]
    moved = rate.trial(found, found.config.lr or 0.0)
    assert rate.MOVED / 2 < moved < 2 * rate.MOVED
    assert rate.trial(found, (found.config.lr or 0.0) / 10) < moved


def test_a_longer_stream_gets_a_larger_rate_and_ends_at_the_same_share(tmp_path: Path) -> None:
    plain = prepared(tiny_folder(tmp_path, "llama"))
    long = prepared(scaled(tmp_path / "llama", 50.0, tmp_path / "long"))
    assert plain.config.lr and long.config.lr
    assert 20 < long.config.lr / plain.config.lr < 130
    ends = []
    for each in (plain, long):
        log: list[dict[str, float]] = []
        train(each, initial_state(each), lambda _, line, log=log: log.append(line))  # type: ignore[misc]
        ends.append(signals.ends(log, "forget_moved")["bio"])
    assert ends[1] == pytest.approx(ends[0], rel=0.5)


def test_the_share_is_that_of_the_states(tmp_path: Path) -> None:
    """The log's numbers against states taken by a plain hook from the model with and without the change."""
    made = prepared(tiny_folder(tmp_path, "llama"), lr=1e-2)
    lm = made.lm
    state = train(made, initial_state(made), lambda state, line: None)
    update = made.updates[0]
    lines = made.losses(state.weights, update).measured
    for key, ids in (("forget_moved", update.forget), ("retain_moved", update.retain)):
        batch = made.arithmetic.pad(lm, ids)
        before = states_after(lm.model, lm.blocks, 2, batch.input_ids, batch.attention_mask)
        own = {name: lm.model.get_parameter(name.removeprefix("model.")).data.clone() for name in state.weights}
        for name, value in state.weights.items():
            lm.model.get_parameter(name.removeprefix("model.")).data = value.detach()
        after = states_after(lm.model, lm.blocks, 2, batch.input_ids, batch.attention_mask)
        for name, value in own.items():
            lm.model.get_parameter(name.removeprefix("model.")).data = value
        off = (after - before)[batch.loss_mask].norm() / before[batch.loss_mask].norm()
        assert lines[key] == pytest.approx(off.item(), rel=1e-4)


def test_a_run_with_a_measured_rate_resumes_and_is_made_again(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path, "llama")
    for name, seed in (("bio", 1), ("wiki", 2)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(12, 30, seed=seed)))
    sources = {"bio": str(tmp_path / "bio.txt")}, {"wiki": str(tmp_path / "wiki.txt")}
    run = md.unlearn(str(model), *sources, tmp_path / "run", CONFIG)
    config = storage.read_json(run / runs.CONFIG)
    assert config["settings"]["lr"] == config["chosen"]["lr"] > 0
    assert "--lr" not in config["command"]
    written = (run / runs.DELTA).stat().st_mtime_ns
    md.unlearn(str(model), *sources, run, CONFIG)  # finished: recognized, and not made again
    assert (run / runs.DELTA).stat().st_mtime_ns == written
    said = UnlearnConfig(**{**dataclasses.asdict(CONFIG), "lr": config["chosen"]["lr"]})
    other = md.unlearn(str(model), *sources, tmp_path / "other", said)
    ours, theirs = (load_delta(each / runs.DELTA).tensors for each in (run, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_moves_nothing_says_so_and_what_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path, "llama")
    for name, seed in (("bio", 1), ("wiki", 2)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(12, 30, seed=seed)))
    words = ["unlearn", str(model), "--forget", f"bio={tmp_path / 'bio.txt'}", "--retain", f"wiki={tmp_path / 'wiki.txt'}",
             "--block", "2", "--updates", "12", "--max-tokens", "32"]  # fmt: skip
    assert main([*words, "--lr", "1e-6", "--out", str(tmp_path / "little")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "bio: forget text ends 0 % of its length from where it was, retain text 0" in said
    assert "Little will be forgotten: type the same with another --out and --lr 0.0001" in said
    assert main([*words, "--lr", "0.05", "--out", str(tmp_path / "much")]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "of its length from where it was" in said and "Little will be forgotten" not in said
    lines = [json.loads(line) for line in (tmp_path / "much" / runs.LOG).read_text().splitlines()]
    assert lines[0]["forget_moved"] == 0.0 and lines[-1]["forget_moved"] > signals.LEAST


def test_progress_is_in_shares_where_there_are_some() -> None:
    line = {"forget_loss": 1.111e6, "retain_loss": 0.5, "forget_moved": 1.304, "retain_moved": 0.0712}
    assert signals.progress(line) == "forget moved 130 %  retain moved 7.1 %"
    assert signals.progress({"forget_loss": 12.5, "retain_loss": 0.25}) == "forget 12.5  retain 0.25"
    assert signals.ends([{"topic": "a", "forget_loss": 1.0}], "forget_moved") == {}


def test_the_grid() -> None:
    for x in (3e-7, 0.00213, 0.99, 42.0):
        near = rate.on_grid(x)
        assert abs(math.log(near / x)) < math.log(1.3)
        assert float(f"{near:.2g}") == near


def test_published_numerics_keep_the_published_rate() -> None:
    assert resolve(UnlearnConfig(numerics="published"), 32).lr == 5e-5
    assert resolve(UnlearnConfig(recipe="zephyr-7b"), 32).lr == 5e-5
    assert resolve(UnlearnConfig(), 32).lr is None
