"""Every family of transformers that RMU may meet, as a tiny random model through the whole path; docs/families.md is made
here. The oracle is the family's full checkpoint, loaded and run by transformers alone.

    MISDIRECT_WRITE_DOCS=1 pytest tests/test_families.py       # writes docs/families.md again
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor

from misdirect.config import UnlearnConfig
from misdirect.data.batches import Batch, pad, tokenize
from misdirect.model import parameters
from misdirect.model.activations import capture, replay
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.delta import load_delta, save_delta, swapped_in
from misdirect.model.lm import LM
from misdirect.model.load import load_lm, whole_class
from misdirect.recipes import resolve
from misdirect.unlearning.methods import unlearn
from tiny import FAMILIES, LAYERS, NAMED, texts, tiny_config, tiny_folder, tiny_tokenizer

FIRST, LAST = 1, 3
DOCS = Path(__file__).parents[1] / "docs" / "families.md"
YES, NO = "yes", ""


class Row(NamedTuple):
    """What became of one family. A cell is empty where the path did not get so far."""

    family: str
    kind: str
    matrix: str
    replay: str = NO
    gradients: str = NO
    unlearn: str = NO
    delta: str = NO
    note: str = ""

    def __str__(self) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in self) + " |"


# No other family may be refused: these have no MLP, no single list of blocks, several streams, or an encoder, or read ahead.
FEW = (
    "llama",
    "gpt2",
    "gpt_neox",
    "gemma2",
    "qwen3",
    "mixtral",
    "falcon_mamba",
    "t5",
)  # the short tests; the others are long
REFUSED = {
    "bart", "t5", "falcon_mamba", "mamba2", "zamba", "zamba2", "gemma3n_text", "hrm_text", "longcat_flash", "paligemma",
    "xlm",
}  # fmt: skip


def batch() -> Batch:
    """Texts longer than the sliding windows, of unequal length."""
    return pad(tokenize(tiny_tokenizer(), texts(3, 16, seed=3, shortest=9), 48), 0)


def state_after(model: Any, block: str, inputs: Batch) -> Tensor:
    """The residual stream after a block of a full model, by a hook that has nothing to do with misdirect's."""
    seen = []

    def keep(module: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple | list) else output)

    handle = model.get_submodule(block).register_forward_hook(keep)
    model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, use_cache=False)
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def shorten(error: ValueError | str) -> str:
    """A refusal's message in a table: without what it says to type."""
    text = str(error).split("; ")[0]
    return text if len(text) <= 130 else text[:130].rsplit(" ", 1)[0] + " ..."


@contextlib.contextmanager
def warnings_of(name: str) -> Iterator[list[str]]:
    """What a logger says meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def exact(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) and bool(torch.isfinite(a).all())


@functools.cache
def outcome(family: str) -> Row:
    """The whole path for one family, each family once. Anything but a ValueError of ours is a failure."""
    try:
        whole_class(tiny_config(family))
    except ValueError as error:
        return Row(family, "", "", note=f"refused: {shorten(error)}")
    with tempfile.TemporaryDirectory() as folder:
        return walk(family, tiny_folder(Path(folder), family))


def walk(family: str, folder: Path) -> Row:
    full = whole_class(tiny_config(family)).from_pretrained(folder).eval().requires_grad_(False)
    row = Row(family, type(full).__name__, "")
    try:
        with warnings_of("misdirect.model.load") as said:
            lm = load_lm(str(folder), LAST)
    except ValueError as error:
        return row._replace(note=f"refused: {shorten(str(error).replace(str(folder), family))}")
    notes = [f"loaded whole: {shorten(text.split(', ', 1)[1])}" for text in said]
    assert bool(notes) == (len(lm.blocks) > LAST + 1)
    try:
        path, how = find_all(lm, None), ""
    except ValueError as error:
        notes.append(f"refused without `--matrix`: {shorten(error)}")
        if family not in NAMED:
            return row._replace(note="; ".join(notes))
        path, how = find_all(lm, NAMED[family]), " (named)"
    row = row._replace(matrix=f"`{path.removesuffix('.weight')}`{how}")
    config = UnlearnConfig(
        block=LAST, updates=2, batch_size=2, max_tokens=16, lr=1e-2, steering="3x", matrix=NAMED.get(family)
    )
    try:
        row = through_the_engine(row, lm, full, path)
        row = through_unlearning(row, lm, full, path, config, folder)
    except ValueError as error:
        notes.append(f"refused: {shorten(error)}")
    return row._replace(note="; ".join(notes))


def find_all(lm: LM, matrix: str | None) -> str:
    """The trained parameter's path, the same in every trained block."""
    paths = {find_matrix(lm.blocks[i], residual_width(lm.model), matrix) for i in range(FIRST, LAST + 1)}
    assert len(paths) == 1, paths
    return paths.pop()


def rmu_loss(states: Tensor, frozen: Tensor) -> Tensor:
    """A loss of RMU's two terms, plain."""
    target = torch.linspace(0, 1, states.shape[-1])
    return (states - target).square().mean() + 3.0 * (states - frozen).square().mean()


def through_the_engine(row: Row, lm: LM, full: Any, path: str) -> Row:
    """Replay against the full model's forward, and gradients against its backward, both with moved matrices."""
    inputs, block = batch(), f"{lm.block_prefix}.{LAST}"
    seen = capture(lm.model, lm.blocks, FIRST, LAST, inputs.input_ids, inputs.attention_mask)
    with torch.no_grad():
        frozen = state_after(full, block, inputs)
        before = state_after(full, f"{lm.block_prefix}.{FIRST - 1}", inputs)
    assert seen.output is not None
    same = exact(seen.output, frozen) and exact(seen.hidden, before)

    draw, updated = torch.Generator().manual_seed(1), copy.deepcopy(full)
    weights, trained = {}, {}
    for index in range(FIRST, LAST + 1):
        whole = updated.get_parameter(f"{lm.block_prefix}.{index}.{parameters.base_name(path)}")
        view = parameters.read(whole, path)
        view += 0.02 * torch.randn(view.shape, generator=draw)
        weights[index] = {path: view.clone().requires_grad_()}
        trained[index] = whole
    for whole in trained.values():
        whole.requires_grad_()
    states = replay(lm.blocks, seen, weights)
    leaves = [weights[index][path] for index in trained]
    gradients = torch.autograd.grad(rmu_loss(states, frozen), leaves)
    expected_states = state_after(updated, block, inputs)
    rmu_loss(expected_states, frozen).backward()
    expected = [parameters.read(whole.grad, path) for whole in trained.values()]
    alive = all(g.abs().max() > 0 for g in gradients)
    return row._replace(
        replay=YES if same and exact(states, expected_states) else "differs",
        gradients=YES if alive and all(map(exact, gradients, expected)) else "differ",
    )


def through_unlearning(row: Row, lm: LM, full: Any, path: str, config: UnlearnConfig, folder: Path) -> Row:
    """Two updates, the delta saved and loaded, put into the full model and taken out."""
    loaded = {name: value.clone() for name, value in lm.model.state_dict().items()}
    corpus = [("b", texts(3, 12, seed=2), 1.0)]
    delta, log = unlearn(lm, {"a": texts(3, 12, seed=1)}, corpus, resolve(config, LAYERS))
    untouched = all(torch.equal(value, loaded[name]) for name, value in lm.model.state_dict().items())
    row = row._replace(unlearn=YES if untouched and len(log) == 2 else "differs")

    save_delta(delta, folder / "delta.safetensors")
    again = load_delta(folder / "delta.safetensors")
    names = [f"{lm.block_prefix}.{index}.{path}" for index in range(FIRST, LAST + 1)]
    kept = list(again.tensors) == sorted(names) and all(torch.equal(again.tensors[n], delta.tensors[n]) for n in names)
    base = {name: value.clone() for name, value in full.state_dict().items()}
    with swapped_in(again, full):
        inside = full.state_dict()
        changed = {name for name, value in base.items() if not torch.equal(value, inside[name])}
        put_in = all(torch.equal(parameters.read_from(full, n), value) for n, value in again.tensors.items())
    restored = all(torch.equal(value, base[name]) for name, value in full.state_dict().items())
    right = kept and put_in and restored and changed == {parameters.base_name(n) for n in names}
    return row._replace(delta=YES if right else "differs")


@pytest.mark.parametrize("family", [f if f in FEW else pytest.param(f, marks=pytest.mark.long) for f in FAMILIES])
def test_the_family_does_what_the_table_says(family: str) -> None:
    row = outcome(family)
    assert not {"differs", "differ"} & set(row)
    assert (row.delta == YES) == (family not in REFUSED)
    if not os.environ.get("MISDIRECT_WRITE_DOCS"):
        assert str(row) in DOCS.read_text(encoding="utf-8").splitlines()


HEAD = Row("family", "class", "matrix", "replay", "gradients", "unlearn", "delta", "note")
PAGE = """# Families

Which architectures of transformers {version} misdirect was tried on, as tiny random models, from loading to the unlearned
model. `tests/test_families.py` makes this page and fails when it is out of date. {whole} of {all} reach the end.

| column | what was checked |
|---|---|
| family | `model_type` in the model's `config.json` |
| matrix | the trained parameter of a block |
| replay | blocks {first} to {last}, computed again with changed matrices, equal the full model's own forward pass, bit for bit |
| gradients | those of the trained matrices equal the full model's own, bit for bit |
| unlearn | two updates of RMU; the model in memory is untouched afterwards |
| delta | saved, loaded, put into the full model (nothing else changes) and taken out (all bits as before) |
| note | `loaded whole`: a model cut after block {last} would compute something else, so the full one is loaded |

A family that is not here goes through the same checks before a run starts, except gradients: where replay is not exact, the
run is refused.

## The matrix is found by structure

{found}

## The matrix is named by the user

Routed experts have no single MLP output matrix. transformers keeps all experts of a block in one parameter; an index in
brackets, as in Python, takes one out: `--matrix 'mlp.experts.down_proj[0]'` trains expert 0 alone (the quotes are for the
shell). An expert that no token of the forget text is routed to does not change.

Mixtral as published is `--recipe mixtral-8x7b`. The published code trained `block_sparse_moe.experts.0.w3`, the up projection
of expert 0, which is `mlp.experts.gate_up_proj[0,14336:28672]` here.

{named}

## Refused

{refused}
"""


def page() -> str:
    rows = [outcome(family) for family in FAMILIES]
    refused = [row for row in rows if row.delta != YES]
    named = [row for row in rows if row.delta == YES and "(named)" in row.matrix]
    found = [row for row in rows if row.delta == YES and "(named)" not in row.matrix]

    def table(rows: list[Row]) -> str:
        return "\n".join([str(HEAD), "|---" * len(HEAD) + "|", *map(str, rows)])

    return PAGE.format(
        version=transformers.__version__.split(".")[0], whole=len(rows) - len(refused), all=len(rows), first=FIRST, last=LAST,
        found=table(found), named=table(named), refused=table(refused),
    )  # fmt: skip


@pytest.mark.long
def test_the_page_is_what_the_families_do() -> None:
    made = page()
    if os.environ.get("MISDIRECT_WRITE_DOCS"):
        DOCS.write_text(made, encoding="utf-8")
    assert DOCS.read_text(encoding="utf-8") == made
