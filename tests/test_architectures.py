"""The engine on tiny random models of many families, against each family's full checkpoint run by Hugging Face alone."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from misdirect.config import UnlearnConfig
from misdirect.data.batches import Batch, pad, tokenize
from misdirect.model.activations import Captured, capture, check_replay, replay
from misdirect.model.blocks import find_blocks, find_matrix
from misdirect.model.delta import Delta, swapped_in
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.recipes import resolve
from misdirect.unlearning.methods import unlearn
from tiny import LAYERS, WIDTH, texts, tiny_config, tiny_folder, tiny_model, tiny_tokenizer

FIRST, LAST = 1, 3

# family -> the block list's name in the causal model, the trained parameter's path in a block
EXPECTED = {
    "llama": ("model.layers", "mlp.down_proj.weight"),
    "mistral": ("model.layers", "mlp.down_proj.weight"),
    "qwen2": ("model.layers", "mlp.down_proj.weight"),
    "qwen3": ("model.layers", "mlp.down_proj.weight"),
    "gemma2": ("model.layers", "mlp.down_proj.weight"),
    "gemma3_text": ("model.layers", "mlp.down_proj.weight"),
    "phi3": ("model.layers", "mlp.down_proj.weight"),
    "olmo2": ("model.layers", "mlp.down_proj.weight"),
    "gpt2": ("transformer.h", "mlp.c_proj.weight"),
    "gpt_neox": ("gpt_neox.layers", "mlp.dense_4h_to_h.weight"),
    "mixtral": ("model.layers", "mlp.experts.down_proj"),
    "qwen3_moe": ("model.layers", "mlp.experts.down_proj"),
}
NAMED_BY_THE_USER = {"mixtral": "mlp.experts.down_proj", "qwen3_moe": "mlp.experts.down_proj"}


class Case(NamedTuple):
    family: str
    lm: LM  # blocks 0..LAST alone
    full: Any  # the whole checkpoint, loaded by transformers
    prefix: str
    path: str
    batch: Batch

    @property
    def names(self) -> list[str]:
        return [f"{self.prefix}.{index}.{self.path}" for index in range(FIRST, LAST + 1)]

    def captured(self) -> Captured:
        return capture(self.lm.model, self.lm.blocks, FIRST, LAST, self.batch.input_ids, self.batch.attention_mask)


def padded_batch(left: bool = False) -> Batch:
    """Texts longer than the sliding windows, of unequal length."""
    samples = tokenize(tiny_tokenizer(), texts(4, 24, seed=3, shortest=9), 64)
    batch = pad(samples, 0, left=left)
    assert 0 < batch.attention_mask.sum() < batch.attention_mask.numel()
    return batch


@pytest.fixture(scope="module", params=EXPECTED)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tiny_folder(tmp_path_factory.mktemp("models"), request.param)
    full = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Case(request.param, load_lm(str(folder), LAST), full, *EXPECTED[request.param], padded_batch())


def state_after(model: nn.Module, block: str, batch: Batch) -> Tensor:
    """The residual stream after a block of a full model, by a hook that has nothing to do with misdirect's."""
    seen = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = model.get_submodule(block).register_forward_hook(keep)
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_bits(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert [name for name, value in before.items() if not torch.equal(value, after[name])] == []


def test_only_the_blocks_up_to_the_last_are_loaded(case: Case) -> None:
    assert len(case.lm.blocks) == LAST + 1
    assert case.lm.num_hidden_layers == LAYERS
    assert case.lm.block_prefix == case.prefix
    assert len(case.full.get_submodule(case.prefix)) == LAYERS
    assert not any(parameter.requires_grad for parameter in case.lm.model.parameters())
    full = case.full.state_dict()
    inside = find_blocks(case.lm.model)[0]
    for name, value in case.lm.blocks.state_dict().items():
        assert torch.equal(value, full[f"{case.prefix}.{name}"]), f"{inside}.{name}"


def test_capture_on_the_truncated_model_is_the_full_checkpoints_own_state(case: Case) -> None:
    for batch in (case.batch, padded_batch(left=True)):
        seen = capture(case.lm.model, case.lm.blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)
        with torch.no_grad():
            before = state_after(case.full, f"{case.prefix}.{FIRST - 1}", batch)
            after = state_after(case.full, f"{case.prefix}.{LAST}", batch)
        assert torch.equal(seen.hidden, before)
        assert seen.output is not None
        assert torch.equal(seen.output, after)
        assert not torch.equal(before, after)


def test_replay_is_capture_bit_for_bit(case: Case) -> None:
    seen = case.captured()
    own = {
        index: {case.path: case.lm.blocks[index].get_parameter(case.path).clone()} for index in range(FIRST, LAST + 1)
    }
    assert seen.output is not None
    assert torch.equal(replay(case.lm.blocks, seen, {}), seen.output)
    assert torch.equal(replay(case.lm.blocks, seen, own), seen.output)
    check_replay(case.lm.model, case.lm.blocks, FIRST, LAST, case.batch.input_ids, case.batch.attention_mask)


def rmu_loss(states: Tensor, frozen: Tensor) -> Tensor:
    """A loss of RMU's two terms, plain."""
    target = torch.linspace(0, 1, WIDTH)
    return (states - target).square().mean() + 3.0 * (states - frozen).square().mean()


def test_gradients_by_replay_are_those_of_the_full_model(case: Case) -> None:
    with torch.no_grad():
        frozen = state_after(case.full, f"{case.prefix}.{LAST}", case.batch)
    draw = torch.Generator().manual_seed(1)
    moved = {  # away from the start, where the retain term has no gradient
        name: case.full.get_parameter(name) + 0.02 * torch.randn(case.full.get_parameter(name).shape, generator=draw)
        for name in case.names
    }
    leaves = [moved[name].detach().clone().requires_grad_() for name in case.names]
    weights = {index: {case.path: leaf} for index, leaf in zip(range(FIRST, LAST + 1), leaves, strict=True)}
    states = replay(case.lm.blocks, case.captured(), weights)
    gradients = torch.autograd.grad(rmu_loss(states, frozen), leaves)

    updated = copy.deepcopy(case.full).requires_grad_(False)
    for name in case.names:
        updated.get_parameter(name).copy_(moved[name].detach()).requires_grad_()
    full_states = state_after(updated, f"{case.prefix}.{LAST}", case.batch)
    rmu_loss(full_states, frozen).backward()

    assert torch.equal(states, full_states)
    for name, gradient in zip(case.names, gradients, strict=True):
        expected = updated.get_parameter(name).grad
        assert gradient.abs().max() > 0
        assert torch.equal(gradient, expected), name


def test_the_trained_matrix_is_the_familys_mlp_output(case: Case) -> None:
    for index in range(FIRST, LAST + 1):
        found = find_matrix(case.lm.blocks[index], WIDTH, NAMED_BY_THE_USER.get(case.family))
        assert found == EXPECTED[case.family][1]
        assert found in dict(case.full.get_submodule(f"{case.prefix}.{index}").named_parameters())


def test_unlearning_leaves_the_models_as_they_were_and_the_delta_fits_the_full_one(case: Case) -> None:
    config = UnlearnConfig(
        block=LAST,
        updates=2,
        batch_size=2,
        max_tokens=24,
        lr=1e-2,
        steering="3x",
        matrix=NAMED_BY_THE_USER.get(case.family),
    )
    loaded, full = bits(case.lm.model), bits(case.full)
    delta, log = unlearn(
        case.lm, {"a": texts(4, 20, seed=1)}, [("b", texts(4, 20, seed=2), 1.0)], resolve(config, LAYERS)
    )
    assert_same_bits(case.lm.model, loaded)
    assert [line["step"] for line in log] == [1, 2]
    assert sorted(delta.tensors) == sorted(case.names)
    with torch.no_grad():
        before = state_after(case.full, f"{case.prefix}.{LAST}", case.batch)
        with swapped_in(delta, case.full):
            inside = case.full.state_dict()
            changed = {name for name in full if not torch.equal(full[name], inside[name])}
            assert changed == set(case.names)
            assert all(torch.equal(inside[name], value) for name, value in delta.tensors.items())
            assert not torch.equal(state_after(case.full, f"{case.prefix}.{LAST}", case.batch), before)
        assert_same_bits(case.full, full)
        assert torch.equal(state_after(case.full, f"{case.prefix}.{LAST}", case.batch), before)


def test_swapped_in_is_taken_out_when_the_body_raises_or_trains() -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    before, name = bits(model), "model.layers.1.mlp.down_proj.weight"
    delta = Delta({name: torch.ones_like(model.get_parameter(name))})
    with pytest.raises(KeyError, match=name), swapped_in(delta, model):
        raise KeyError(model.get_parameter(name).data.add_(1.0), name)
    assert_same_bits(model, before)
    assert torch.equal(delta.tensors[name], torch.ones_like(delta.tensors[name]))


@pytest.mark.parametrize("tensors", [{"no.such.weight": torch.ones(2)}, {"model.norm.weight": torch.ones(WIDTH + 1)}])
def test_a_delta_of_another_model_is_refused(tensors: dict[str, Tensor]) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    before = bits(model)
    with pytest.raises(ValueError, match="expected the model that it was made from"), swapped_in(Delta(tensors), model):
        pytest.fail("entered")
    assert_same_bits(model, before)


# family -> what the naive rule (the only F -> D linear map with F > D) would train, or None where it finds nothing
TRAPS = {
    "qwen2_moe": "mlp.shared_expert.down_proj",
    "qwen3_next": "mlp.shared_expert.down_proj",
    "llama4_text": "feed_forward.shared_expert.down_proj",
    "jamba": "mamba.out_proj",
    "mixtral": None,
}


@pytest.mark.parametrize("family", TRAPS)
def test_a_block_of_routed_experts_is_refused_by_name(family: str) -> None:
    block = find_blocks(tiny_model(family, num_hidden_layers=2))[1][0]
    with pytest.raises(ValueError, match=r"routed experts.*--matrix") as refused:
        find_matrix(block, WIDTH)
    candidates = str(refused.value).split("out of: ")[1].split(", ")
    assert type(block).__name__ in str(refused.value)
    assert TRAPS[family] is None or TRAPS[family] in candidates
    experts = [name for name in candidates if name.endswith("experts.down_proj")]
    assert len(experts) == 1
    parameters = dict(block.named_parameters())
    for name in candidates:  # every candidate can be typed
        assert find_matrix(block, WIDTH, name) in (name, name + ".weight")
    assert parameters[experts[0]].dim() == 3


def test_unlearning_a_mixture_of_experts_says_the_flag(tmp_path: Path) -> None:
    lm = load_lm(str(tiny_folder(tmp_path, "mixtral")), LAST)
    config = resolve(UnlearnConfig(block=LAST, updates=1), LAYERS)
    with pytest.raises(ValueError, match=r"--matrix .*, out of: .*mlp\.experts\.down_proj"):
        unlearn(lm, {"a": texts(2, 9)}, [("b", texts(2, 9), 1.0)], config)


def test_a_matrix_that_is_not_there_is_refused_with_those_that_are() -> None:
    block = find_blocks(tiny_model("llama", num_hidden_layers=1))[1][0]
    with pytest.raises(ValueError, match=r"--matrix 'mlp\.c_proj' is no matrix of LlamaDecoderLayer.*mlp\.down_proj"):
        find_matrix(block, WIDTH, "mlp.c_proj")
    assert find_matrix(block, WIDTH, "self_attn.o_proj") == "self_attn.o_proj.weight"


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "mistral"])
def test_an_attention_output_wider_than_the_residual_stream_is_not_mistaken(family: str) -> None:
    block = find_blocks(tiny_model(family, num_hidden_layers=2, head_dim=32))[1][1]
    assert block.self_attn.o_proj.in_features > WIDTH
    assert find_matrix(block, WIDTH) == "mlp.down_proj.weight"


def test_a_model_that_scales_by_its_depth_is_loaded_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny_folder(tmp_path, "minicpm3")
    with caplog.at_level(logging.WARNING):
        lm = load_lm(str(folder), LAST)
    assert "loading the whole model" in caplog.text
    assert "residual_scale" in caplog.text
    assert len(lm.blocks) == LAYERS
    full, batch = AutoModelForCausalLM.from_pretrained(folder).eval(), padded_batch()
    seen = capture(lm.model, lm.blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        expected = state_after(full, f"model.layers.{LAST}", batch)
    assert torch.equal(replay(lm.blocks, seen, {}), expected)
    # what a truncated one would have computed without any sign of it
    short = AutoModelForCausalLM.from_pretrained(folder, config=tiny_config("minicpm3", num_hidden_layers=LAST + 1))
    with torch.no_grad():
        assert not torch.allclose(state_after(short.eval(), f"model.layers.{LAST}", batch), expected, atol=1e-3)


def test_a_multimodal_wrapper_is_cut_in_its_text_part(tmp_path: Path) -> None:
    text = tiny_config("gemma3_text").to_dict()
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    folder = tmp_path / "gemma3"
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    lm, batch = load_lm(str(folder), LAST), padded_batch()
    full = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert len(lm.blocks) == LAST + 1
    assert lm.num_hidden_layers == LAYERS
    assert find_matrix(lm.blocks[LAST], WIDTH) == "mlp.down_proj.weight"
    assert f"{lm.block_prefix}.{LAST}.mlp.down_proj.weight" in dict(full.named_parameters())
    seen = capture(lm.model, lm.blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)
    with torch.no_grad():
        expected = state_after(full, f"{lm.block_prefix}.{LAST}", batch)
    assert torch.equal(replay(lm.blocks, seen, {}), expected)


def test_dropout_left_on_is_refused() -> None:
    model = tiny_model("gpt2", resid_pdrop=0.5)
    blocks, batch = find_blocks(model)[1], padded_batch()
    check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)
    model.train()
    with pytest.raises(ValueError, match=r"replaying blocks 1 to 3 differs .* dropout is on"):
        check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)


def test_matrices_that_blocks_share_are_refused() -> None:
    model, batch = tiny_model("llama"), padded_batch()
    blocks = find_blocks(model)[1]
    matrices = dict.fromkeys(range(FIRST, LAST + 1), "mlp.down_proj.weight")
    check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask, matrices)
    before = bits(model)
    blocks[0].mlp = blocks[1].mlp  # a block that is not trained would change too
    check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.mlp\S+ and model\.layers\.1\.mlp\S+ are one matrix"):
        check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask, matrices)
    after = model.state_dict()
    assert all(torch.equal(after[n], v) for n, v in before.items() if ".0.mlp" not in n)


def test_a_block_that_runs_twice_is_refused() -> None:
    model, batch = tiny_model("llama"), padded_batch()
    blocks = find_blocks(model)[1]
    blocks[5] = blocks[2]
    with pytest.raises(ValueError, match="blocks 1 to 3 run 1, 2, 1 times in one forward pass"):
        check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask)


def test_a_state_of_several_streams_is_refused() -> None:
    model, batch = tiny_model("gemma3n_text"), padded_batch()
    with pytest.raises(
        ValueError, match=r"Gemma3nTextDecoderLayer takes a state of shape .* expected one residual stream"
    ):
        capture(model, find_blocks(model)[1], FIRST, LAST, batch.input_ids, batch.attention_mask)


@pytest.mark.parametrize(
    ("shared", "kinds"),
    [
        (4, ["sliding_attention", "full_attention"] * 3),
        (3, ["full_attention", *["sliding_attention"] * 4, "full_attention"]),
    ],
)
def test_keys_and_values_of_an_earlier_block_are_replayed(shared: int, kinds: list[str], tmp_path: Path) -> None:
    """Gemma 4's later blocks read the keys and values of an earlier one, here of the trained block 1 or 2."""
    model = tiny_model("gemma4_text", num_kv_shared_layers=shared, layer_types=kinds)
    blocks, batch = find_blocks(model)[1], padded_batch()
    assert blocks[LAST].self_attn.is_kv_shared_layer
    matrices = dict.fromkeys(range(FIRST, LAST + 1), "mlp.down_proj.weight")
    check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask, matrices)


@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3", "aya_vision"])
def test_a_vision_tower_as_deep_as_the_text_model_is_not_mistaken(family: str) -> None:
    model = tiny_model(family)
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == LAYERS]
    assert len(lists) == 2
    assert find_blocks(model)[0] == "model.language_model.layers"


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_is_refused_by_name(family: str, tmp_path: Path) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{family} is an encoder-decoder model; expected a decoder"):
        load_lm(str(tmp_path), LAST)


@pytest.mark.parametrize("family", ["vit", "clip", "whisper", "wav2vec2", "distilbert"])
def test_what_is_no_language_model_is_refused_by_name(family: str, tmp_path: Path) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"^{family} is (no causal language model|an encoder-decoder)") as refused:
        load_lm(str(tmp_path), LAST)
    assert len(str(refused.value)) < 200
