"""Published settings against the table of their papers, and the mean norm of Adaptive RMU against slow code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from misdirect.config import UnlearnConfig
from misdirect.data import batches
from misdirect.model.activations import states_after
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.recipes import RECIPES, resolve
from misdirect.unlearning import steering
from misdirect.unlearning.arithmetic import tokenized
from tiny import LAYERS, prepared, texts, tiny_folder

# recipe -> l, trained blocks, c, alpha, batch, updates; the learning rate is 5e-5 everywhere
PUBLISHED = {
    "zephyr-7b": (7, 3, "6.5", 1200, 4, 150),
    "yi-34b": (15, 3, "300", 350, 2, 400),
    "mixtral-8x7b": (7, 3, "300", 1600, 2, 400),
    "adaptive-rmu": (7, 3, "5xmean", 1200, 4, 500),
}


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LM:
    return load_lm(str(tiny_folder(tmp_path_factory.mktemp("models"), "llama")), 3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_its_row_of_the_table(name: str) -> None:
    config = resolve(UnlearnConfig(recipe=name), 60)
    found = (config.block, config.num_blocks, config.steering, config.alpha, config.batch_size, config.updates)
    assert found == PUBLISHED[name]
    assert config.lr == 5e-5
    assert {name for name in RECIPES if name != "demo"} == PUBLISHED.keys()


def test_the_mean_norm_is_that_of_the_counted_tokens_or_of_every_position(lm: LM) -> None:
    samples = batches.tokenize(lm.tokenizer, texts(5, 12, seed=4), 32)
    padded = [batches.pad(samples[:3], 0), batches.pad(samples[3:], 0)]
    counted, every = [], []
    for batch in padded:
        states = states_after(lm.model, lm.blocks, 2, batch.input_ids, batch.attention_mask)
        for row in range(len(states)):
            for position in range(states.shape[1]):
                norm = states[row, position].square().sum().sqrt().item()
                every.append(norm)
                if position > 0 and batch.attention_mask[row, position]:
                    counted.append(norm)
    assert len(counted) < len(every)
    assert steering.mean_norm(lm, 2, padded) == pytest.approx(sum(counted) / len(counted), rel=1e-5)
    assert steering.mean_norm(lm, 2, padded, every_position=True) == pytest.approx(sum(every) / len(every), rel=1e-5)


@pytest.mark.parametrize(
    ("strength", "expected"),
    [("6.5", 6.5), ("5x", 15.0), ("5xmedian", 15.0), ("5xmean", 20.0), ("0.5XMean", 2.0), ("1e1x", 30.0)],
)
def test_a_strength_is_absolute_or_a_multiple_of_the_median_or_mean_norm(strength: str, expected: float) -> None:
    assert steering.coefficient(strength, 3.0, 4.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    "strength", ["", "x", "mean", "xmean", "5mean", "5xmode", "-1xmean", "infx", "nanxmean", "5 x 3"]
)
def test_what_is_no_strength_is_refused(strength: str) -> None:
    with pytest.raises(ValueError, match=r"is not a strength; expected a number such as 6\.5"):
        UnlearnConfig(steering=strength)


@pytest.mark.parametrize("numerics", ["clean", "published"])
def test_adaptive_rmu_steers_to_five_times_the_mean_norm(numerics: str, lm: LM, tmp_path: Path) -> None:
    asked = UnlearnConfig(recipe="adaptive-rmu", block=3, updates=2, max_tokens=24, numerics=numerics)  # type: ignore[arg-type]
    data = ({"a": texts(9, 14, seed=1)}, [("b", texts(9, 14, seed=2), 1.0)], resolve(asked, LAYERS))
    topic = prepared(lm, *data).chosen["topics"]["a"]
    samples = tokenized(lm, *data).forget["a"]
    samples = samples[:4] if numerics == "published" else samples
    norms = []
    for ids in samples:
        width = max(map(len, samples)) if numerics == "published" else len(ids)
        pad = width - len(ids)  # the published code pads on the left with the end token
        row = torch.tensor([[lm.tokenizer.eos_token_id] * pad + list(ids)])
        mask = torch.tensor([[0] * pad + [1] * len(ids)])
        states = states_after(lm.model, lm.blocks, 3, row, mask)
        norms.append(states[0].norm(dim=-1)[0 if numerics == "published" else 1 :])
    assert topic["steering_coefficient"] == pytest.approx(5 * torch.cat(norms).mean().item(), rel=1e-4)
    assert topic["steering_coefficient"] != pytest.approx(5 * topic["median_norm"], rel=1e-3)
