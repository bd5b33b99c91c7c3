"""Directions taken out of the residual stream: identities against captured passes and writer-by-writer hooks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import tiny
from attack_cases import state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import direction
from misdirect.attacks.interface import Attack, AttackInputs, Means
from misdirect.attacks.scoring import score_sets
from misdirect.config import AuditConfig
from misdirect.model.hooks import first_output, hooked
from misdirect.model.lm import LM
from misdirect.model.states import states_at
from misdirect.model.writers import anonymous, folded, without, writers

FAMILIES = ["llama", "gpt2", "gemma2", "mixtral", "qwen2"]
PRE_NORM = ["llama", "gpt2", "mixtral", "qwen2"]  # what a writer gives reaches the stream as it is
# By hand, for the oracle: the modules whose outputs are added to the residual stream, by the end of their name.
WRITING = {
    "llama": ("embed_tokens", "o_proj", "down_proj"),
    "gpt2": ("wte", "wpe", "attn.c_proj", "mlp.c_proj"),
    "gemma2": ("embed_tokens", "o_proj", "down_proj"),
    "mixtral": ("embed_tokens", "o_proj", "mlp.experts"),
    "qwen2": ("embed_tokens", "o_proj", "down_proj"),
}
# Maps D -> D among them that do not write: queries of every head, values.
WRITERS = {
    "llama": {"model.embed_tokens.weight", "model.layers.*.mlp.down_proj.weight", "model.layers.*.self_attn.o_proj.weight"},
    "opt": {
        "model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight",
        "model.decoder.layers.*.fc*.weight", "model.decoder.layers.*.fc*.bias",
        "model.decoder.layers.*.self_attn.out_proj.weight", "model.decoder.layers.*.self_attn.out_proj.bias",
    },
    "qwen2_moe": {
        "model.embed_tokens.weight", "model.layers.*.self_attn.o_proj.weight", "model.layers.*.mlp.experts.down_proj",
        "model.layers.*.mlp.shared_expert.down_proj.weight",
    },
    "gpt_oss": {
        "model.embed_tokens.weight", "model.layers.*.self_attn.o_proj.weight", "model.layers.*.self_attn.o_proj.bias",
        "model.layers.*.mlp.experts.down_proj", "model.layers.*.mlp.experts.down_proj_bias",
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight", "bert.encoder.layer.*.attention.output.dense.weight",
        "bert.encoder.layer.*.attention.output.dense.bias", "bert.encoder.layer.*.output.dense.weight",
        "bert.encoder.layer.*.output.dense.bias",
    },
}  # fmt: skip


def all_states(lm: LM, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """The residual stream before block 0 and after every block, (B, T, D) each."""
    found = states_at(lm, {"input_ids": ids, "attention_mask": mask}, torch.arange(ids.numel()))
    return [states.unflatten(0, ids.shape) for states in found]


def basis(width: int = tiny.WIDTH, count: int = 2) -> Tensor:
    return direction.orthonormal(torch.randn(count, width, generator=torch.Generator().manual_seed(1)))


def text_batch() -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(2))
    return ids, torch.ones_like(ids)


def logits(lm: LM) -> Tensor:
    ids, mask = text_batch()
    with torch.no_grad():
        found: Tensor = lm.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return found


def named(inputs: AttackInputs, name: str) -> Attack:
    return next(a for a in direction.attacks(inputs, AuditConfig()) if a.name == name)


@contextmanager
def ablated_writers(lm: LM, family: str, rows: Tensor) -> Iterator[None]:
    """The slow, obvious form: a hook on every writing module takes the span out of what it gives."""

    def hook(module: object, args: object, output: Tensor) -> Tensor:
        return output - sum((output @ r).unsqueeze(-1) * r for r in rows)

    modules = [m for n, m in lm.model.named_modules() if n.endswith(WRITING[family])]
    assert len(modules) == 2 * tiny.LAYERS + (2 if family == "gpt2" else 1)
    with hooked([lambda m=m: m.register_forward_hook(hook) for m in modules]):
        yield


@pytest.mark.parametrize("family", FAMILIES)
def test_folding_is_ablating_after_every_writer(family: str) -> None:
    lm, rows = tiny_lm(family), basis()
    plain = logits(lm)
    with ablated_writers(lm, family, rows):
        expected = logits(lm)
    with folded(lm, writers(lm), rows):
        found = logits(lm)
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-4)
    assert torch.equal(logits(lm), plain)


@pytest.mark.parametrize("family", PRE_NORM)
def test_nothing_along_the_direction_is_left_in_the_stream_of_a_folded_model(family: str) -> None:
    lm, rows = tiny_lm(family), basis()
    with folded(lm, writers(lm), rows):
        states = all_states(lm, *text_batch())
    for state in states:
        assert (state @ rows.T).abs().max() < 1e-4 * state.norm(dim=-1).max()


@pytest.mark.parametrize("family", sorted(WRITERS))
def test_the_writers_are_found_by_structure(family: str) -> None:
    found = writers(tiny_lm(family))
    assert {anonymous(f"{w.module}.{w.parameter}") for w in found} == WRITERS[family]
    assert {w.block for w in found} == {None, *range(tiny.LAYERS)}


def test_the_fold_leaves_a_shared_head_alone() -> None:
    lm = tiny_lm("llama", tie_word_embeddings=True)
    head, table = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
    own = table.weight
    assert head.weight is own
    with folded(lm, writers(lm), basis()):
        assert head.weight is own and table.weight is not own
    assert head.weight is own and table.weight is own


def test_experts_that_do_not_say_which_tensor_writes_are_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match="the experts of DbrxBlock hold w1, v1, w2; expected one tensor") as error:
        writers(tiny_lm("dbrx"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_without_takes_the_span_out_of_any_axis(axis: int) -> None:
    rows = basis(6)
    value = torch.randn(6, 6, 6, generator=torch.Generator().manual_seed(3))
    matrix = torch.eye(6) - sum(torch.outer(r, r) for r in rows)  # the projection itself
    expected = torch.tensordot(value, matrix, dims=([axis], [0])).movedim(-1, axis)
    torch.testing.assert_close(without(value, rows, axis), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", ["block", "all"])
def test_the_ablated_stream_has_no_component_there(family: str, place: str) -> None:
    lm, inputs = tiny_inputs(family)
    rows = basis()
    states: dict[int, Tensor] = {}
    with direction.taken_out(lm, inputs, place, 2, rows):  # type: ignore[arg-type]
        keep = [
            lambda i=i: lm.blocks[i].register_forward_hook(lambda m, a, out: states.update({i: first_output(out)}))
            for i in range(tiny.LAYERS)
        ]
        with hooked(keep):
            logits(lm)
    for index, state in states.items():
        along = (state @ rows.T).abs().max()
        assert (along < 1e-4 * state.norm(dim=-1).max()) == (place == "all" or index == 2)


def test_subtracting_moves_every_state_by_the_difference_of_the_means() -> None:
    lm, inputs = tiny_inputs()
    difference = inputs.means["unlearned"].forget[2] - inputs.means["base"].forget[2]
    before = all_states(lm, *text_batch())[3]
    after: list[Tensor] = []
    keep = [lambda: lm.blocks[2].register_forward_hook(lambda m, a, out: after.append(first_output(out)))]
    with direction.taken_out(lm, inputs, "subtract", 2, basis()), hooked(keep):
        logits(lm)
    torch.testing.assert_close(before - difference, after[0])


def test_written_changes_the_trained_blocks_alone() -> None:
    lm, inputs = tiny_inputs()
    own = dict(lm.model.named_parameters())
    with direction.taken_out(lm, dataclasses.replace(inputs, block=3), "written", 3, basis()):
        changed = {n for n, p in lm.model.named_parameters() if p is not own[n]}
    assert changed == {f"model.layers.{i}.{n}.weight" for i in (1, 2, 3) for n in ("self_attn.o_proj", "mlp.down_proj")}


# ---------------------------------------------------------------------------------------------------- which direction


def test_an_orthonormal_basis_spans_what_the_rows_span() -> None:
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(4))
    doubled = torch.cat([rows, 2 * rows[:1], torch.zeros(1, 8)])
    found = direction.orthonormal(doubled)
    assert found.shape == (3, 8)
    torch.testing.assert_close(found @ found.T, torch.eye(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(rows @ found.T @ found, rows, rtol=0, atol=1e-5)
    assert direction.orthonormal(torch.zeros(2, 8)).shape == (0, 8)


def test_every_stored_control_vector_is_in_the_span() -> None:
    lm, inputs = tiny_inputs()
    second = torch.rand(tiny.WIDTH, generator=torch.Generator().manual_seed(6))
    inputs = dataclasses.replace(inputs, control_vectors={**inputs.control_vectors, "cyber": second})
    rows = direction.directions(lm, inputs, "control", 2)
    assert len(rows) == 2
    for vector in inputs.control_vectors.values():
        torch.testing.assert_close(without(vector, rows, -1), torch.zeros(tiny.WIDTH), rtol=0, atol=1e-5)


def test_directions_of_means_are_those_of_the_block() -> None:
    lm, inputs = tiny_inputs()
    base, unlearned = inputs.means["base"], inputs.means["unlearned"]
    for source, wanted in [
        ("forget-retain", unlearned.forget[4] - unlearned.retain[4]),
        ("unlearned-base", unlearned.forget[4] - base.forget[4]),
        ("ones", torch.ones(tiny.WIDTH)),
    ]:
        (row,) = direction.directions(lm, inputs, source, 4)  # type: ignore[arg-type]
        assert torch.cosine_similarity(row, wanted, dim=0).abs().item() == pytest.approx(1, abs=1e-5)


def test_the_principal_component_is_the_covariances_first_eigenvector() -> None:
    states = torch.randn(200, 12, generator=torch.Generator().manual_seed(7)) @ torch.diag(torch.arange(1.0, 13)) + 5
    expected = torch.linalg.eigh(torch.cov(states.T)).eigenvectors[:, -1]
    assert torch.dot(direction.principal(states), expected).abs().item() == pytest.approx(1, abs=1e-4)


def test_forget_states_are_the_models_own_without_first_tokens() -> None:
    lm, inputs = tiny_inputs("gpt2")
    text = inputs.forget_texts[0]
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    expected = all_states(lm, ids, torch.ones_like(ids))[3][0, 1:]
    found = direction.forget_states(lm, dataclasses.replace(inputs, forget_texts=[text]), 2)
    torch.testing.assert_close(found, expected)


def test_an_unknown_block_is_found_where_the_means_part() -> None:
    _, inputs = tiny_inputs()
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(8))
    shift = torch.tensor([0.0, 0, 0.1, 3, 3.2, 3.4])[:, None]
    means = {"base": Means(base, base), "unlearned": Means(base + shift * base.norm(dim=-1, keepdim=True), base)}
    unknown = dataclasses.replace(inputs, block=None, means=means)
    assert direction.steered_block(unknown) == 3
    assert direction.steered_block(inputs) == 2
    assert all(a.needs_mean_states for a in direction.attacks(unknown, AuditConfig()))


# ---------------------------------------------------------------------------------------------------- the attacks


def test_the_attacks_and_what_each_needs() -> None:
    _, inputs = tiny_inputs()
    found = direction.attacks(inputs, AuditConfig())
    assert len(found) == len({a.name for a in found}) == 17
    assert all(a.attacker_access == "weights" and a.cost.scorings > 0 and not a.unavailable for a in found)
    assert {a.settings.source for a in found if a.needs_mean_states} == {"forget-retain", "unlearned-base"}
    without_vectors = direction.attacks(dataclasses.replace(inputs, control_vectors={}), AuditConfig())
    assert {a.name for a in without_vectors if a.unavailable} == {
        f"direction-control-{place}" for place in ("block", "all", "written", "folded")
    }
    assert {a.unavailable for a in without_vectors} == {"", "needs a run's control.safetensors"}


@pytest.mark.parametrize("kind", [*direction.FIRST, *direction.LOW_PRIORITY], ids="-".join)
def test_every_attack_runs_and_leaves_the_model_as_it_was(kind: direction.Kind) -> None:
    lm, inputs = tiny_inputs("gpt2" if kind.site == "folded" else "llama", count=8)
    attack, before, done = named(inputs, f"direction-{kind.source}-{kind.site}"), state_hash(lm), []
    found = attack.run(lm, inputs, attack, done.append)
    assert state_hash(lm) == before
    assert sum(done) == attack.num_steps
    assert [(r.measurement, r.set) for r in found] == [("mcq", "biology"), ("mcq", "other"), ("generation", "answers")]
    rows = {m.metric: m for m in found[0].metrics}
    assert rows["cloze_accuracy"].block == (None if kind.site in ("all", "folded") else 2)
    if kind.site in ("block", "all", "folded"):
        assert rows["component_left"].value < 1e-4


def test_what_is_measured_is_the_ablated_model() -> None:
    lm, inputs = tiny_inputs(count=8)
    attack = named(inputs, "direction-control-all")
    found = attack.run(lm, inputs, attack, lambda done: None)
    with direction.taken_out(lm, inputs, "all", 2, direction.directions(lm, inputs, "control", 2)):
        expected = score_sets(lm, inputs)["biology"]
    assert [r["points"][0]["logprobs"] for r in found[0].records] == expected
    assert expected != score_sets(lm, inputs)["biology"]


def test_equal_means_give_no_direction_and_change_nothing() -> None:
    lm, inputs = tiny_inputs(count=8)
    same = dataclasses.replace(inputs, means={"base": inputs.means["base"], "unlearned": inputs.means["base"]})
    attack = named(same, "direction-unlearned-base-all")
    found = attack.run(lm, same, attack, lambda done: None)
    assert [r["points"][0]["logprobs"] for r in found[0].records] == score_sets(lm, same)["biology"]


@pytest.mark.parametrize("place", ["all", "folded", "written"])
def test_a_failure_in_the_middle_leaves_the_model_as_it_was(place: str) -> None:
    lm, inputs = tiny_inputs("gemma2", count=8)
    before = state_hash(lm)

    def fail() -> None:
        with direction.taken_out(lm, inputs, place, 2, basis()):  # type: ignore[arg-type]
            assert not torch.equal(logits(lm), plain)
            raise KeyboardInterrupt

    plain = logits(lm)
    with pytest.raises(KeyboardInterrupt):
        fail()
    assert state_hash(lm) == before
    assert torch.equal(logits(lm), plain)
