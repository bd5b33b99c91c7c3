"""Parts of fused parameters: one expert, or half of its fused projection, trained alone. Mixtral's published matrix."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from misdirect.config import UnlearnConfig
from misdirect.model import parameters
from misdirect.model.blocks import find_blocks, find_matrix, residual_width
from misdirect.model.delta import Delta, largest_change, load_delta, save_delta, swapped_in
from misdirect.model.load import load_lm
from misdirect.recipes import MIXTRAL_8X7B, resolve
from misdirect.unlearning.methods import unlearn
from misdirect.unlearning.train import initial_state
from tiny import INNER, LAYERS, WIDTH, prepared, texts, tiny_folder, tiny_model

UP = f"mlp.experts.gate_up_proj[0,{INNER}:{2 * INNER}]"  # expert 0's up projection


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.weight", "a.weight"),
        ("a[0]", "a[0]"),
        ("a[-1]", "a[3]"),
        ("a[0,2:]", "a[0,2:6]"),
        ("a[ 1 , :3 ]", "a[1,0:3]"),
        ("a[:]", "a[0:4]"),
        ("a[1:3,-2:,0:1]", "a[1:3,4:6,0:1]"),
    ],
)
def test_a_part_has_one_spelling_and_is_what_python_takes(name: str, expected: str) -> None:
    whole = torch.arange(4 * 6 * 5.0).reshape(4, 6, 5)
    assert parameters.canonical(name, (4, 6, 5)) == expected
    index = name.partition("[")[2]
    wanted = eval(f"whole[{index}", {"whole": whole}) if index else whole
    assert torch.equal(parameters.read(whole, expected), wanted)
    assert torch.equal(parameters.read(whole, name), wanted)


@pytest.mark.parametrize(
    "name",
    ["a[", "a]", "a[]", "a[x]", "a[1", "a[0][1]", "a[1.5]", "a[...]", "a[None]", "a[0:4:2]", "a[4]", "a[-5]", "a[2:2]",
     "a[0,6:9]", "a[0,0,0,0]", "a[99999999999999999999]", "[0]"],
)  # fmt: skip
def test_a_part_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*' (is|has) .*(part|outside|indices)"):
        parameters.canonical(name, (4, 6, 5))


def test_putting_a_part_in_leaves_the_rest_and_the_original() -> None:
    whole = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    before, value = whole.clone(), torch.ones(2, 5, requires_grad=True)
    changed = parameters.assign_slices({"a": whole}, {"a[1,2:4]": value, "a[3]": torch.zeros(6, 5)})
    assert list(changed) == ["a"]
    assert torch.equal(whole, before)
    expected = before.clone()
    expected[1, 2:4], expected[3] = 1.0, 0.0
    assert torch.equal(changed["a"], expected)
    changed["a"].sum().backward()
    assert torch.equal(value.grad, torch.ones(2, 5))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ("mlp.experts.gate_up_proj[4]", r"--matrix 'mlp\.experts\.gate_up_proj\[4\]' is outside .* 4x160x32"),
        ("mlp.experts.gate_up_proj[0,0]", r"is a single row; expected a matrix"),
        (
            "mlp.experts.up_proj[0]",
            r"is no matrix of MixtralDecoderLayer; expected one of: .*mlp\.experts\.gate_up_proj",
        ),
        ("mlp.experts.gate_up_proj[w3]", r"--matrix .* is no part of a parameter; expected an index such as NAME\[0\]"),
    ],
)
def test_a_part_that_the_block_lacks_is_refused(matrix: str, message: str) -> None:
    block = find_blocks(tiny_model("mixtral", num_hidden_layers=2))[1][0]
    with pytest.raises(ValueError, match=message):
        find_matrix(block, WIDTH, matrix)
    assert find_matrix(block, WIDTH, "mlp.experts.gate_up_proj[-1,:80]") == "mlp.experts.gate_up_proj[3,0:80]"


def test_mixtrals_published_matrix_is_the_up_projection_of_expert_0(tmp_path: Path) -> None:
    """`block_sparse_moe.experts.0.w3` of the checkpoint on disk, which transformers fuses when it loads."""
    folder = tiny_folder(tmp_path, "mixtral")
    on_disk = load_file(folder / "model.safetensors")["model.layers.2.block_sparse_moe.experts.0.w3.weight"]
    lm = load_lm(str(folder), 3)
    path = find_matrix(lm.blocks[2], WIDTH, UP)
    assert torch.equal(parameters.read_from(lm.blocks[2], path), on_disk)

    config = AutoConfig.for_model("mixtral")  # the defaults are those of Mixtral-8x7B
    config.num_hidden_layers = 8
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    block = find_blocks(model)[1][7]
    path = find_matrix(block, residual_width(model), MIXTRAL_8X7B["matrix"])
    assert path == MIXTRAL_8X7B["matrix"]
    assert tuple(parameters.read_from(block, path).shape) == (14336, 4096)
    assert block.mlp.experts.gate_up_proj.shape[1] == 2 * 14336


@pytest.mark.parametrize("numerics", ["clean", "published"])
def test_the_published_mixtral_run_trains_that_matrix_alone(numerics: str, tmp_path: Path) -> None:
    """The delta holds three up projections, and their gradients are those of the whole parameter, cut out."""
    folder = tiny_folder(tmp_path, "mixtral", num_local_experts=2)  # every token passes expert 0
    asked = UnlearnConfig(
        recipe="mixtral-8x7b",
        block=3,
        updates=3,
        matrix=UP,
        lr=1e-2,
        max_tokens=16,
        numerics=numerics,  # type: ignore[arg-type]
    )
    config = resolve(asked, LAYERS)
    lm = load_lm(str(folder), 3)
    data = ({"a": texts(6, 9, seed=1)}, [("b", texts(6, 9, seed=2), 1.0)])
    delta, log = unlearn(lm, *data, config)
    names = [f"model.layers.{index}.{UP}" for index in (1, 2, 3)]
    assert sorted(delta.tensors) == names
    assert {tuple(value.shape) for value in delta.tensors.values()} == {(INNER, WIDTH)}
    assert len(log) == 3

    whole = resolve(dataclasses.replace(asked, matrix="mlp.experts.gate_up_proj"), LAYERS)
    gradients = []
    for settings in (whole, config):
        job = prepared(lm, *data, settings)
        leaves = {n: v.requires_grad_() for n, v in initial_state(job).weights.items()}
        terms = job.losses(leaves, job.updates[0])
        loss = terms.forget + terms.retain_weight * terms.retain
        gradients.append(torch.autograd.grad(loss, list(leaves.values())))
    fused, alone = gradients
    for part, gradient in zip(alone, fused, strict=True):
        assert part.abs().max() > 0
        assert torch.equal(part, gradient[0, INNER:])


def test_the_delta_of_a_part_is_saved_put_in_and_taken_out(tmp_path: Path) -> None:
    model = tiny_model("mixtral", num_hidden_layers=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [f"model.layers.{index}.{UP}" for index in (1, 2)]
    delta = Delta({name: parameters.read_from(model, name).detach() + 1.0 for name in names}, {"format": "pt"})
    assert largest_change(delta, model) == pytest.approx(1.0)
    save_delta(delta, tmp_path / "delta.safetensors")
    again = load_delta(tmp_path / "delta.safetensors")
    assert sorted(again.tensors) == names
    with swapped_in(again, model):
        for name, value in model.state_dict().items():
            expected = before[name].clone()
            if name in ("model.layers.1.mlp.experts.gate_up_proj", "model.layers.2.mlp.experts.gate_up_proj"):
                expected[0, INNER:] += 1.0
            assert torch.equal(value, expected), name
        model.get_parameter("model.layers.1.mlp.experts.gate_up_proj").data.add_(
            1.0
        )  # training must not reach the base
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(again.tensors[names[0]], delta.tensors[names[0]])


def test_a_part_of_an_ordinary_matrix_works_too() -> None:
    model = nn.ModuleDict({"mlp": nn.Linear(8, 4)})
    assert find_matrix(model, 4, "mlp[0:2]") == "mlp.weight[0:2]"
    assert parameters.shape_of(dict(model.named_parameters()), "mlp.weight[0:2]") == (2, 8)
    assert parameters.shape_of(dict(model.named_parameters()), "mlp.weight[9:12]") is None
    assert parameters.shape_of(dict(model.named_parameters()), "no.weight") is None
