"""What comes before any attack: how base and unlearned model do as they are, and from that the format to judge by."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from misdirect import runs, storage
from misdirect.attacks.interface import AttackInputs, Form, Means, Shape
from misdirect.auditing.inputs import AuditInputs
from misdirect.auditing.pair import MODELS, Side
from misdirect.config import AuditConfig, EvaluateConfig
from misdirect.data.batches import first_chunks
from misdirect.evaluation import mcq
from misdirect.evaluation.run import task_of
from misdirect.model import rope
from misdirect.model.blocks import count_parameters, residual_width, text_config
from misdirect.model.delta import load_tensors
from misdirect.model.finite import about, not_finite
from misdirect.model.identity import weights_hash
from misdirect.model.lm import LM
from misdirect.model.rows import padded
from misdirect.model.states import states_at
from misdirect.progress import bar

MEAN_TEXTS, MEAN_TOKENS, MEAN_BATCH = 32, 128, 4  # of each kind, for mean activations


def evaluated(folder: Path, side: Side, material: AuditInputs, config: AuditConfig) -> dict[str, Form]:
    """Asks both models every set in every format, unless that is stored already; the format in which the BASE knows each.

    A stored evaluation counts, whatever its limit, when it is of the same questions.
    """
    missing = {
        model: [name for name, found in material.questions.items() if not stored(folder, model, name, found)]
        for model in MODELS
    }
    tasks = {}
    for name in dict.fromkeys(name for names in missing.values() for name in names):
        limit = config.limit if name in material.forgotten else config.general
        asked = EvaluateConfig(limit=limit, formats=config.formats, seed=config.seed, dtype=config.dtype,
                               batch_tokens=config.batch_tokens)  # fmt: skip
        tasks[name] = task_of(mcq, mcq.mcq, name, material.questions[name], asked)
    if tasks:
        items = sum(tasks[name].num_items for names in missing.values() for name in names)
        with bar("Asking both models as they are", items) as advance:
            for model in filter(missing.get, MODELS):
                with side(model) as lm:
                    for name in missing[model]:
                        step = functools.partial(advance, text=f"{model}: {name}")
                        with about(f"{model}, {name}"):
                            made = tasks[name].measure(lm, step)
                        marked = {**made.config, "asked_by": "audit"}
                        runs.save_result(folder, model, dataclasses.replace(made, config=marked))
                    del lm
        for name in tasks:
            for model in MODELS:
                path = runs.result_path(folder, model, mcq.MEASUREMENT, name)
                own, base = (
                    storage.read_json(runs.result_path(folder, m, mcq.MEASUREMENT, name)) for m in (model, "base")
                )
                if ids(own) == ids(base):  # not so where an evaluation of another limit was killed between the two
                    storage.write_json(path, mcq.beside_base(own, base))
    forms = {}
    for name in material.questions:
        base = runs.read_result(runs.result_path(folder, "base", mcq.MEASUREMENT, name))
        forms[name] = cast(Form, mcq.headline_metric(base)[0].removesuffix("_accuracy"))
    return forms


def stored(folder: Path, model: str, name: str, questions: Sequence[Any]) -> bool:
    """Whether a model's answers are there. Raises ValueError where those of this name are to other questions."""
    path = runs.result_path(folder, model, mcq.MEASUREMENT, name)
    if not path.exists():
        return False
    result = runs.read_result(path)
    if result["config"].get("sha256") != mcq.hash_of(questions):
        raise ValueError(f"{path} holds answers to other questions; expected the same SOURCE, or another NAME for it")
    runs.check_sound(path, result)
    return True


def ids(result: Mapping[str, Any]) -> list[Any]:
    return [record["id"] for record in result["records"]]


def shape_of(lm: LM) -> Shape:
    return Shape(
        count_parameters(lm.model),
        len(lm.blocks),
        residual_width(lm.model),
        int(text_config(lm.model).vocab_size),
        next(lm.model.parameters()).element_size(),
    )


def control_vectors(run: Path | None) -> dict[str, torch.Tensor]:
    """The run's control vectors, one a topic, of unit length; none where the run kept none."""
    if run is None or not (run / runs.CONTROL).is_file():
        return {}
    tensors = load_tensors(run / runs.CONTROL)[0]
    return {name: v.flatten().float() / v.float().norm() for name, v in tensors.items()}


def steered_block(run: Path | None) -> int | None:
    """Where the run steered; None where that is not known, and for a rival, which steers nowhere."""
    made = storage.read_json(run / runs.CONFIG) if run else {}
    found: int | None = made["chosen"]["block"] if made.get("method") == "rmu" else None
    return found


def attack_inputs(
    folder: Path, run: Path | None, side: Side, material: AuditInputs, config: AuditConfig, forms: Mapping[str, Form]
) -> AttackInputs:
    """What an audit gives to its attacks. `run`: the run directory that made the unlearned model, where there is one."""
    hashes = {}
    for model in MODELS:
        with side(model) as lm:
            hashes[model] = weights_hash(lm)
            shape, dtype = shape_of(lm), str(next(lm.model.parameters()).dtype)
            del lm  # or two models would be held while the next is loaded
    asked = {n: [*h.train, *h.test] for n, h in material.forgotten.items()} | dict(material.retained)
    identity = {
        "models_sha256": hashes,
        "dtype": dtype.removeprefix("torch."),
        "questions_sha256": {name: mcq.hash_of(found) for name, found in asked.items()},
        "texts_sha256": {
            "forget": storage.fingerprint(material.forget_texts),
            "retain": storage.fingerprint(material.retain_texts),
            "benign": storage.fingerprint(material.benign_texts),
        },
        "forms": dict(forms),
        "split_seed": config.seed,
    }
    return AttackInputs(
        forgotten=material.forgotten,
        retained=material.retained,
        forms=forms,
        forget_texts=material.forget_texts,
        retain_texts=material.retain_texts,
        benign_texts=material.benign_texts,
        control_vectors=control_vectors(run),
        block=steered_block(run),
        shape=shape,
        seed=config.seed,
        batch_tokens=config.batch_tokens,
        identity=identity,
    )


def activations(side: Side, inputs: AttackInputs, advance: Callable[[int], None]) -> dict[str, Any]:
    """`means` of both models and `medians` of the base for `AttackInputs`: residual states on forget and on other text.

    Where there is no other text, its mean is 0, and no attack that needs it is run.
    """
    retain = [*inputs.retain_texts, *inputs.benign_texts]
    means, medians = {}, None
    for model in MODELS:
        with side(model) as lm:
            forgotten, norms = mean_states(lm, inputs.topic_texts, inputs.seed)
            kept = mean_states(lm, retain, inputs.seed)[0] if retain else torch.zeros_like(forgotten)
            means[model] = Means(forgotten, kept)
            medians = norms if model == "base" else medians
            del lm
            advance(1)
    return {"means": means, "medians": medians}


def mean_states(lm: LM, texts: Sequence[str], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(mean state (L, D), median token norm (L,)) after every block, first tokens and padding left out."""
    kept = first_chunks(lm.tokenizer, texts, MEAN_TEXTS, MEAN_TOKENS, seed)
    found: list[torch.Tensor] = []
    fours = ([*range(i, min(i + MEAN_BATCH, len(kept)))] for i in range(0, len(kept), MEAN_BATCH))
    for rows in rope.split(lm.model, fours, list(map(len, kept))):
        batch = padded(lm, [kept[row] for row in rows], what="a text of --forget or --retain")
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        states = states_at(lm, inputs, batch.loss_mask.flatten().nonzero().flatten())[1:]
        found.append(torch.stack([h.float().cpu() for h in states]))  # (L, N, D)
    if not found:
        raise ValueError(
            "no text has two tokens, so there are no states to compare; expected longer --forget and --retain text"
        )
    tokens = torch.cat(found, dim=1)
    spoilt = (~tokens.isfinite().all(-1)).any(0).sum().item()
    if spoilt:
        raise not_finite(lm, f"the states of {spoilt} of {tokens.shape[1]} tokens of text")
    return tokens.mean(1), tokens.norm(dim=-1).median(1).values
