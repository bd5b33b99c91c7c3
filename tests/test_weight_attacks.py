"""Quantisation, pruning and noise: what becomes of a matrix, and that nothing stays behind."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch
from torch import Tensor

from attack_cases import state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import noise, prune, quantize, scoring
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.attacks.scoring import Point
from misdirect.config import AuditConfig
from misdirect.model.interventions import Matrix, matrices, read, shaped, weights_changed
from misdirect.model.lm import LM

FAMILIES = ["llama", "gpt2", "mixtral", "gemma2", "gpt_oss", "jetmoe", "dbrx"]


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def all_attacks(inputs: AttackInputs) -> list[Attack]:
    return [a for module in (quantize, prune, noise) for a in module.attacks(inputs, AuditConfig())]


# which matrices


@pytest.mark.parametrize("family", FAMILIES)
def test_every_large_tensor_of_the_blocks_is_a_matrix_and_nothing_outside(family: str) -> None:
    lm = tiny_lm(family)
    found = {id(m.parameter) for m in matrices(lm)}
    inside = {n: p for i, block in enumerate(lm.blocks) for n, p in block.named_parameters(prefix=str(i))}
    large = {n for n, p in inside.items() if p.dim() >= 2 and min(p.shape) > 4}
    left = {n for n in large if id(inside[n]) not in found}
    assert all("bias" in n or "router" in n or ".gate." in n for n in left), left
    assert found <= {id(p) for p in inside.values()}
    assert len(found) == len({m.name for m in matrices(lm)})


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_and_shaping_are_inverse_and_the_input_is_the_last_axis(family: str) -> None:
    lm = tiny_lm(family)
    for matrix in matrices(lm):
        weight = read(matrix)
        assert torch.equal(shaped(matrix, weight), matrix.parameter)
        if isinstance(matrix.owner, torch.nn.Linear):
            assert weight.shape[-1] == matrix.owner.in_features
    if family == "gpt2":
        found = next(m for m in matrices(lm) if m.name.endswith("mlp.c_proj.weight"))
        assert read(found).shape == (1, 32, 80)  # Conv1D keeps (in, out)
    if family in ("mixtral", "gpt_oss"):  # gpt_oss keeps (expert, in, out)
        down = next(m for m in matrices(lm) if m.name.endswith("experts.down_proj"))
        assert read(down).shape == (4, 32, 80)


def test_a_matrix_used_twice_is_changed_once() -> None:
    lm = tiny_lm("llama")
    lm.blocks[3].mlp.down_proj.weight = lm.blocks[2].mlp.down_proj.weight
    seen: list[str] = []
    with weights_changed(lm, lambda matrix, weight: (seen.append(matrix.name), 2 * weight)[1]):
        assert lm.blocks[3].mlp.down_proj.weight is lm.blocks[2].mlp.down_proj.weight
    assert len(seen) == len(set(seen)) == 6 * 7 - 1


def test_the_originals_come_back_in_the_same_memory_also_after_an_error() -> None:
    lm = tiny_lm("llama")
    before, places = state_hash(lm), [p.data_ptr() for p in lm.model.parameters()]
    with weights_changed(lm, lambda matrix, weight: weight + 1):
        assert state_hash(lm) != before
    assert state_hash(lm) == before
    assert [p.data_ptr() for p in lm.model.parameters()] == places

    def fails_late(matrix: Matrix, weight: Tensor) -> Tensor:
        if "5.mlp" in matrix.name:
            raise RuntimeError("in the middle")
        return weight + 1

    with pytest.raises(RuntimeError, match="in the middle"), weights_changed(lm, fails_late):
        pass
    with pytest.raises(KeyError), weights_changed(lm, lambda matrix, weight: weight + 1):
        raise KeyError
    assert state_hash(lm) == before


def test_a_model_without_linear_maps_is_refused() -> None:
    lm = tiny_lm("llama")
    for block in lm.blocks:
        for name, _ in list(block.named_children()):
            setattr(block, name, torch.nn.Identity())
    with pytest.raises(ValueError, match="has no linear maps in its blocks"):
        matrices(lm)


# rounding


def rounded_slowly(weight: Tensor, bits: int, group: int | None, symmetric: bool) -> Tensor:
    """Each weight on its own: the nearest of all levels of its group."""
    out = weight.clone()
    width = weight.shape[-1]
    for row in out.view(-1, width):
        for start in range(0, width, group or width):
            part = row[start : start + (group or width)]
            if symmetric:
                top = 2 ** (bits - 1) - 1
                levels = part.abs().max() / top * torch.arange(-top, top + 1)
            else:
                levels = part.min() + (part.max() - part.min()) / (2**bits - 1) * torch.arange(2**bits)
            part.copy_(levels[(part[:, None] - levels).abs().argmin(1)])
    return out


SETTINGS = [(8, None, True), (4, 64, False), (3, 64, False), (4, 32, False), (4, 48, True), (2, 7, False)]


@pytest.mark.parametrize(("bits", "group", "symmetric"), SETTINGS)
def test_rounding_equals_the_nearest_level_of_each_group(bits: int, group: int | None, symmetric: bool) -> None:
    weight = some(2, 5, 100)  # no group but 100 divides it
    made = quantize.round_to_nearest(weight, bits, group, symmetric)
    torch.testing.assert_close(made, rounded_slowly(weight, bits, group, symmetric), rtol=0, atol=1e-6)
    for start in range(0, 100, group or 100):
        part, kept = (x[..., start : start + (group or 100)] for x in (weight, made))
        spread = (
            part.abs().amax(-1) / (2 ** (bits - 1) - 1)
            if symmetric
            else (part.amax(-1) - part.amin(-1)) / (2**bits - 1)
        )
        assert ((part - kept).abs().amax(-1) <= spread / 2 + 1e-6).all()
        assert all(len(row.unique()) <= 2**bits for expert in kept for row in expert)


@pytest.mark.parametrize(("bits", "group", "symmetric"), SETTINGS)
def test_what_is_rounded_already_stays(bits: int, group: int | None, symmetric: bool) -> None:
    once = quantize.round_to_nearest(some(1, 6, 96), bits, group, symmetric)
    torch.testing.assert_close(quantize.round_to_nearest(once, bits, group, symmetric), once, rtol=0, atol=1e-6)


def test_levels_that_a_scale_meets_exactly_are_kept_bit_for_bit() -> None:
    whole = torch.arange(-127, 128).float().div(64).view(1, 1, -1)
    assert torch.equal(quantize.round_to_nearest(whole, 8, None, True), whole)
    steps = torch.tensor([[[0.25 * i - 1 for i in range(16)] * 2]])
    assert torch.equal(quantize.round_to_nearest(steps, 4, 32, False), steps)
    flat = torch.full((1, 2, 8), 0.3)
    assert torch.equal(quantize.round_to_nearest(flat, 4, 4, False), flat)
    assert torch.equal(quantize.round_to_nearest(torch.zeros(1, 2, 8), 8, None, True), torch.zeros(1, 2, 8))


def test_the_defaults_are_not_the_grid_that_the_demos_weights_are_on() -> None:
    on_q4_1 = quantize.round_to_nearest(some(1, 8, 128), 4, 32, False)
    bits, group, symmetric = dataclasses.astuple(quantize.ROUNDED["quantise-int4"])
    assert (quantize.round_to_nearest(on_q4_1, bits, group, symmetric) - on_q4_1).abs().max() > 0.01
    assert torch.allclose(quantize.round_to_nearest(on_q4_1, 4, 32, False), on_q4_1, rtol=0, atol=1e-6)


NF4 = [
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
    0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
]  # fmt: skip


@pytest.mark.skipif(not quantize.has_bitsandbytes(), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("shape", [(2, 4, 96), (1, 3, 32)])
def test_nf4_is_the_nearest_published_level_times_the_largest_of_a_block(shape: tuple[int, ...]) -> None:
    weight = some(*shape)
    flat = torch.nn.functional.pad(weight.flatten(1), (0, -weight[0].numel() % 64))
    blocks = flat.view(len(weight), -1, 64)
    scale = blocks.abs().amax(-1, keepdim=True)
    levels = torch.tensor(NF4)
    nearest = levels[((blocks / scale).unsqueeze(-1) - levels).abs().argmin(-1)] * scale
    wanted = nearest.flatten(1)[:, : weight[0].numel()].view_as(weight)
    torch.testing.assert_close(quantize.to_nf4(weight), wanted, rtol=0, atol=1e-5)


def test_nf4_says_what_it_needs() -> None:
    _, inputs = tiny_inputs()
    attack = next(a for a in quantize.attacks(inputs, AuditConfig()) if a.name == "quantise-nf4")
    installed = importlib.util.find_spec("bitsandbytes") is not None
    assert attack.unavailable == ("" if installed else "needs bitsandbytes: pip install 'misdirect[quant]'")


# pruning


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 1.0])
def test_exactly_the_lowest_share_is_taken(share: float) -> None:
    scores = some(3, 50).mul(4).round()  # many equals
    taken = prune.lowest(scores, share)
    assert taken.sum(1).tolist() == [round(share * 50)] * 3
    for row, gone in zip(scores, taken, strict=True):
        order = sorted(range(50), key=lambda i: (row[i].item(), i))[: round(share * 50)]
        assert sorted(order) == gone.nonzero().flatten().tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_magnitude_pruning_zeroes_the_smallest_of_each_matrix(family: str) -> None:
    lm = tiny_lm(family)
    for matrix in matrices(lm):
        weight = read(matrix)
        made = prune.by_magnitude(matrix, weight, 0.3)
        for before, after in zip(weight, made, strict=True):
            assert (after == 0).sum() == round(0.3 * before.numel())
            assert before[after == 0].abs().max() <= before[after != 0].abs().min()
            assert torch.equal(before[after != 0], after[after != 0])


def test_wanda_takes_the_least_used_of_each_row() -> None:
    matrix = matrices(tiny_lm())[0]
    weight = torch.ones_like(read(matrix))
    width = weight.shape[-1]
    made = prune.by_use(matrix, weight, 0.25, {matrix.name: torch.arange(1.0, width + 1)})
    assert torch.equal(made == 0, (torch.arange(width) < width // 4).expand_as(made))


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
def test_the_targeted_form_takes_the_top_of_one_list_that_is_not_in_the_top_of_the_other(share: float) -> None:
    matrix = matrices(tiny_lm())[0]
    weight = read(matrix)
    forget, retain = ({matrix.name: some(weight.shape[-1], seed=seed).abs()} for seed in (1, 2))
    made = prune.by_forget_use(matrix, weight, share, forget, retain)
    count = round(share * weight.numel())
    tops = [
        set((weight.abs() * norms[matrix.name]).flatten().topk(count).indices.tolist()) for norms in (forget, retain)
    ]
    assert set((made == 0).flatten().nonzero().flatten().tolist()) == tops[0] - tops[1]
    assert torch.equal(made[made != 0], weight[made != 0])
    assert torch.equal(prune.by_forget_use(matrix, weight, share, forget, forget), weight)  # nothing sets them apart


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_inputs_norms_are_those_that_hooks_see(family: str) -> None:
    lm = tiny_lm(family)
    samples = [[5, 6, 7, 8, 9], [11, 12, 13]]
    seen: list[Tensor] = []
    mlp = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "mixtral": "mlp.experts"}[family]
    module = lm.blocks[1].get_submodule(mlp)
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].reshape(-1, args[0].shape[-1])[1:]))
    for sample in samples:
        lm.model(torch.tensor([sample]))
    handle.remove()
    before = state_hash(lm)
    found = prune.input_norms(lm, samples)
    assert state_hash(lm) == before
    name = next(n for n in found if ".1." in n and mlp in n)
    torch.testing.assert_close(found[name], torch.cat(seen).square().mean(0).sqrt())
    assert len(found) == len(matrices(lm)) - (6 if family == "mixtral" else 0)  # the experts' second matrix is unseen


# noise


def test_noise_has_the_share_of_each_experts_own_spread() -> None:
    weight = some(2, 200, 300) * torch.tensor([1.0, 5.0]).view(2, 1, 1)
    added = noise.noisy(weight, 0.1, seed=3) - weight
    spread = added.std((1, 2)) / weight.std((1, 2))
    torch.testing.assert_close(spread, torch.full((2,), 0.1), rtol=0.02, atol=0)
    assert abs(added.mean().item()) < 0.005
    assert torch.equal(noise.noisy(weight, 0.0, seed=3), weight)


def test_noise_is_the_seeds_and_the_matrix_own() -> None:
    weight = some(1, 8, 8)
    assert torch.equal(noise.noisy(weight, 0.2, 1), noise.noisy(weight, 0.2, 1))
    assert not torch.equal(noise.noisy(weight, 0.2, 1), noise.noisy(weight, 0.2, 2))
    torch.testing.assert_close((noise.noisy(weight, 0.2, 1) - weight) / 2, noise.noisy(weight, 0.1, 1) - weight)
    seeds = {noise.seed_of(seed, name) for seed in (0, 1) for name in ("a.weight", "b.weight")}
    assert len(seeds) == 4


# the attacks


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_every_attack_runs_says_what_it_did_and_leaves_the_model_as_it_was(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    before = state_hash(lm)
    for attack in all_attacks(inputs):
        if attack.unavailable:
            continue
        done: list[int] = []
        results = attack.run(lm, inputs, attack, done.append)
        assert sum(done) == attack.num_steps, attack.name
        assert [r.set for r in results] == ["biology", "other", "answers"]
        assert results[0].config == {"audited": "tiny", **dataclasses.asdict(attack.settings)}
        budgets = [p["budget"] for p in results[0].records[0]["points"]]
        assert budgets == sorted(budgets)
        assert len(budgets) == attack.num_steps - 1
        assert state_hash(lm) == before, attack.name


@pytest.mark.parametrize("name", ["noise-gaussian", "prune-forget"])
def test_an_attack_that_draws_gives_the_same_again(name: str) -> None:
    lm, inputs = tiny_inputs(count=8)
    attack = next(a for a in all_attacks(inputs) if a.name == name)
    first, second = (attack.run(lm, inputs, attack, lambda count: None) for _ in range(2))
    assert [r.records for r in first] == [r.records for r in second]


def test_an_attack_that_fails_in_the_middle_leaves_the_model_as_it_was() -> None:
    lm, inputs = tiny_inputs(count=8)
    before = state_hash(lm)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    for attack in all_attacks(inputs):
        if not attack.unavailable:
            with pytest.raises(KeyboardInterrupt):
                attack.run(lm, inputs, attack, stop)
            assert state_hash(lm) == before, attack.name


def test_the_strongest_point_is_chosen_on_the_first_fold() -> None:
    _, inputs = tiny_inputs(count=8)
    halves = inputs.forgotten["biology"]

    def logprobs(right: list[bool]) -> dict[str, list[list[float]]]:
        rows = [[float((i == q.answer) == ok) for i in range(4)] for q, ok in zip(halves.test, right, strict=True)]
        return {"biology": rows}

    second = [fold == 1 for fold in halves.folds]
    first = [fold == 0 for fold in halves.folds]
    none = [False] * len(first)
    points = [(Point(budget=i), logprobs(right)) for i, right in enumerate([none, second, first, first])]
    assert scoring.strongest(inputs, points) == 2
    assert scoring.strongest(inputs, points[:2]) == 0


def test_rounding_to_eight_bits_changes_little_and_to_three_much(tiny: tuple[LM, AttackInputs]) -> None:
    lm, inputs = tiny
    found = {}
    for name in ("quantise-int8", "quantise-int3"):
        attack = next(a for a in quantize.attacks(inputs, AuditConfig()) if a.name == name)
        with weights_changed(lm, quantize.rewrite_of(attack.settings)):
            found[name] = lm.model(torch.tensor([[5, 6, 7, 8]])).logits
    plain = lm.model(torch.tensor([[5, 6, 7, 8]])).logits
    errors = {name: (logits - plain).norm() / plain.norm() for name, logits in found.items()}
    assert 0 < errors["quantise-int8"] < 0.1 * errors["quantise-int3"]


@pytest.fixture
def tiny() -> tuple[LM, AttackInputs]:
    return tiny_inputs(count=8)


def test_pruning_without_texts_says_what_it_needs() -> None:
    import dataclasses

    _, inputs = tiny_inputs()
    bare = dataclasses.replace(inputs, forget_texts=[], retain_texts=[])
    missing = {a.name: a.unavailable for a in prune.attacks(bare, AuditConfig())}
    assert missing == {
        "prune-magnitude": "",
        "prune-wanda": "needs --retain text",
        "prune-forget": "needs --forget and --retain text",
    }
    assert not any(a.unavailable for a in prune.attacks(inputs, AuditConfig()))
