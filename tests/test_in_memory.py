"""A model that the caller holds already, in every verb: the numbers are those of its folder."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import misdirect as md
from misdirect import runs
from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.model.delta import load_delta
from misdirect.model.lm import LM, find_in_memory
from tiny import texts, tiny_folder

CONFIG = UnlearnConfig(block=2, updates=2, batch_size=2, max_tokens=16, device="cpu")
MEASURE = EvaluateConfig(device="cpu", text_limit=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models"), "llama")


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    for name, seed in (("bio", 1), ("wiki", 2), ("held", 3)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(6, 20, seed=seed)))
    return {name: str(tmp_path / f"{name}.txt") for name in ("bio", "wiki", "held")}


def held(folder: Path) -> LM:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return LM.of(model, AutoTokenizer.from_pretrained(folder), "mine")


def values(rows: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    return {(row["model"], row["metric"]): row["value"] for row in rows}


def test_unlearning_and_measuring_give_what_the_folder_gives(
    folder: Path, data: dict[str, str], tmp_path: Path
) -> None:
    lm = held(folder)
    sources = ({"bio": data["bio"]}, {"wiki": data["wiki"]})
    ours = md.unlearn(lm, *sources, tmp_path / "ours", CONFIG)
    theirs = md.unlearn(str(folder), *sources, tmp_path / "theirs", CONFIG)
    a, b = (load_delta(run / runs.DELTA).tensors for run in (ours, theirs))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    measured = md.evaluate(ours, texts={"held": data["held"]}, config=MEASURE, model=lm)
    assert values(measured) == values(md.evaluate(theirs, texts={"held": data["held"]}, config=MEASURE))
    alone = md.evaluate(lm, texts={"held": data["held"]}, config=MEASURE, out=tmp_path / "alone")
    assert values(alone)["base", "nll_per_token"] == values(measured)["base", "nll_per_token"]
    assert runs.read_env(tmp_path / "alone")["model"] == "memory:mine"


def test_a_model_that_is_gone_is_told(folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    lm = held(folder)
    md.unlearn(lm, {"bio": data["bio"]}, {"wiki": data["wiki"]}, tmp_path / "run", CONFIG)
    del lm
    gc.collect()
    with pytest.raises(ValueError, match=r"memory:mine was a model in memory, which is gone; expected it given again"):
        md.evaluate(tmp_path / "run", texts={"held": data["held"]}, config=MEASURE)
    assert find_in_memory("demo") is None


def test_what_cannot_be_trained_is_one_line(folder: Path, data: dict[str, str], tmp_path: Path) -> None:
    lm = held(folder)
    lm.model.hf_quantizer = object()
    with pytest.raises(ValueError, match="memory:mine is quantized, and nothing can be trained"):
        md.unlearn(lm, {"bio": data["bio"]}, {"wiki": data["wiki"]}, tmp_path / "run", CONFIG)
    lm.model.hf_quantizer = None
    lm.model.model.layers[5].to("meta")
    with pytest.raises(ValueError, match="memory:mine lies on cpu, meta; expected a model on one device"):
        md.unlearn(lm, {"bio": data["bio"]}, {"wiki": data["wiki"]}, tmp_path / "run", CONFIG)
