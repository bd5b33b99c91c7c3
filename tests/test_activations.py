"""Hooks come and go inside one call, whatever happens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from misdirect.data.batches import Batch, pad, tokenize
from misdirect.model.activations import capture, check_replay, replay, states_after
from misdirect.model.blocks import find_blocks
from tiny import texts, tiny_model, tiny_tokenizer

FIRST, LAST = 1, 2


@pytest.fixture
def batch() -> Batch:
    return pad(tokenize(tiny_tokenizer(), texts(3, 15, seed=5), 32), 0)


def num_hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def seen_by(model: nn.Module, batch: Batch, **settings: Any) -> Any:
    return capture(model, find_blocks(model)[1], FIRST, LAST, batch.input_ids, batch.attention_mask, **settings)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_hook_is_left_after_a_capture(family: str, batch: Batch) -> None:
    model = tiny_model(family)
    before = num_hooks(model)
    seen_by(model, batch)
    seen_by(model, batch, want_output=False)
    assert num_hooks(model) == before


@pytest.mark.parametrize("place", [0, LAST])
def test_no_hook_is_left_when_the_model_raises(place: int, batch: Batch) -> None:
    model = tiny_model("llama")

    def fail(module: nn.Module, args: Any) -> None:
        raise ZeroDivisionError(f"block {place}")

    handle = find_blocks(model)[1][place].mlp.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match=f"block {place}"):
        seen_by(model, batch)
    assert num_hooks(model) == 1
    handle.remove()
    assert seen_by(model, batch).output is not None
    assert num_hooks(model) == 0


def test_hooks_of_others_stay(batch: Batch) -> None:
    model = tiny_model("llama")
    count: list[int] = []
    handle = find_blocks(model)[1][LAST].register_forward_hook(lambda *_: count.append(1))
    seen_by(model, batch)
    assert num_hooks(model) == 1
    assert count == [1]
    handle.remove()


def test_a_hook_that_cannot_be_placed_leaves_none(batch: Batch) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    with pytest.raises(IndexError):
        capture(model, find_blocks(model)[1], 1, 2, batch.input_ids, batch.attention_mask)
    assert num_hooks(model) == 0


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_without_the_output_the_rest_is_the_same_and_the_last_block_is_not_run(family: str, batch: Batch) -> None:
    model = tiny_model(family)
    blocks = find_blocks(model)[1]
    runs: list[int] = []
    handles = [m.register_forward_hook(lambda *_, i=i: runs.append(i)) for i, b in enumerate(blocks) for m in [b.mlp]]
    whole = seen_by(model, batch)
    assert runs == [0, 1, 2]
    runs.clear()
    part = seen_by(model, batch, want_output=False)
    assert runs == [0, 1]
    for handle in handles:
        handle.remove()

    assert part.output is None
    assert whole.output is not None
    assert torch.equal(part.hidden, whole.hidden)
    assert [call.block for call in part.calls] == [call.block for call in whole.calls] == [FIRST, LAST]
    for one, two in zip(part.calls, whole.calls, strict=True):
        assert one.kwargs.keys() == two.kwargs.keys()
        assert len(one.args) == len(two.args)
    assert torch.equal(replay(blocks, part, {}), whole.output)


def test_nothing_that_is_captured_carries_a_gradient(batch: Batch) -> None:
    model = tiny_model("llama").requires_grad_(True)
    seen = seen_by(model, batch)
    assert seen.output is not None
    assert not seen.hidden.requires_grad
    assert not seen.output.requires_grad
    weight = model.model.layers[LAST].mlp.down_proj.weight.detach().clone().requires_grad_()
    states = replay(find_blocks(model.requires_grad_(False))[1], seen, {LAST: {"mlp.down_proj.weight": weight}})
    states.sum().backward()
    assert weight.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_states_after_is_the_hidden_state_that_transformers_reports(batch: Batch) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        reported = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, output_hidden_states=True
        ).hidden_states
    for index in range(4):  # hidden_states[0] is the embedding; the last entry has passed the final norm
        state = states_after(model, find_blocks(model)[1], index, batch.input_ids, batch.attention_mask)
        assert torch.equal(state, reported[index + 1])


def test_parameters_given_to_a_capture_stand_in_for_the_models_own(batch: Batch) -> None:
    model = tiny_model("llama")
    name = f"model.layers.{FIRST}.mlp.down_proj.weight"
    given = {name: model.get_parameter(name) * 1.5}
    seen = seen_by(model, batch, parameters=given)
    own = seen_by(model, batch)
    assert seen.output is not None and own.output is not None
    assert not torch.equal(seen.output, own.output)
    assert torch.equal(seen.hidden, own.hidden)
    changed = tiny_model("llama")
    changed.get_parameter(name).data.mul_(1.5)
    expected = seen_by(changed, batch).output
    assert expected is not None
    assert torch.equal(seen.output, expected)
    assert torch.equal(model.get_parameter(name), tiny_model("llama").get_parameter(name))


def test_a_refused_check_leaves_no_hook_and_no_other_weight(batch: Batch) -> None:
    model = tiny_model("llama")
    blocks = find_blocks(model)[1]
    matrices = {FIRST: "mlp.down_proj.weight", LAST: "mlp.down_proj.weight"}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask, matrices)
    handle = blocks[LAST].mlp.register_forward_hook(lambda m, a, output: output + torch.rand(1))  # never twice the same
    with pytest.raises(ValueError, match=r"replaying blocks 1 to 2 differs from the model's own forward pass by"):
        check_replay(model, blocks, FIRST, LAST, batch.input_ids, batch.attention_mask, matrices)
    handle.remove()
    assert num_hooks(model) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
