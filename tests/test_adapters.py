"""An adapter merged into its base against PEFT's own unmerged forward pass: kinds, tied heads, grown vocabularies, misfits."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from tiny import tiny_folder

peft = pytest.importorskip("peft", reason="peft is absent: pip install 'misdirect[lora]'")

IDS = torch.tensor([[3, 5, 7, 11, 20, 33]])
PLACES = ["q_proj", "down_proj"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    for family in ("llama", "gpt2", "mixtral"):
        tiny_folder(folder, family, **({"n_layer": 2} if family == "gpt2" else {"num_hidden_layers": 2}))
    tiny_folder(folder / "one", "llama", num_hidden_layers=2, tie_word_embeddings=True).rename(folder / "tied")
    tiny_folder(folder / "two", "llama", num_hidden_layers=1).rename(folder / "shallow")
    tiny_folder(folder / "three", "llama", num_hidden_layers=3).rename(folder / "deep")
    tiny_folder(folder / "four", "llama", num_hidden_layers=2, hidden_size=64).rename(folder / "wide")
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


def grown(model: Any, rows: int) -> Any:
    torch.manual_seed(3)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model


def trained(base: Path, folder: Path, config: Any, rows: int = 0, **saving: Any) -> torch.Tensor:
    """Writes an adapter with random values in all that it trains; the logits of the model that PEFT runs."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(grown(model, rows) if rows else model, config)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
        wrapped.save_pretrained(folder, **saving)
    change(folder, base_model_name_or_path=str(base))
    return logits(wrapped.eval())


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def merged(folder: Path, **options: Any) -> LM:
    return load_lm(str(folder), device="cpu", dtype="float32", **options)


KINDS: dict[str, tuple[str, Any]] = {
    "lora": ("llama", lambda: peft.LoraConfig(r=2, target_modules=PLACES)),
    "rank stabilized": ("llama", lambda: peft.LoraConfig(r=4, target_modules=PLACES, use_rslora=True)),
    "weight decomposed": ("llama", lambda: peft.LoraConfig(r=2, target_modules=PLACES, use_dora=True)),
    "own ranks": (
        "llama",
        lambda: peft.LoraConfig(r=2, target_modules=PLACES, rank_pattern={"down_proj": 3}, alpha_pattern={"q_proj": 5}),
    ),
    "turned matrices and biases": (
        "gpt2",
        lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all", fan_in_fan_out=True),
    ),
    "experts": (
        "mixtral",
        lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj"]),
    ),
    "whole modules": (
        "llama",
        lambda: peft.LoraConfig(r=2, target_modules=PLACES, modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "embeddings that are the head": ("tied", lambda: peft.LoraConfig(r=2, target_modules=["embed_tokens"])),
    "a head that is the embeddings": ("tied", lambda: peft.LoraConfig(r=2, target_modules=["lm_head"])),
    "rows of both": (
        "tied",
        lambda: peft.LoraConfig(r=2, target_modules=PLACES, trainable_token_indices=[3, 7]),
    ),
    "adalora": (
        "llama",
        lambda: peft.AdaLoraConfig(target_modules=PLACES, total_step=10, init_r=3, target_r=2),
    ),
    "ia3": ("llama", lambda: peft.IA3Config(target_modules=PLACES, feedforward_modules=["down_proj"])),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, target_modules=PLACES)),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=2, target_modules=PLACES)),
    "oft": ("llama", lambda: peft.OFTConfig(oft_block_size=4, r=0, target_modules=PLACES)),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj"])),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_is_the_one_that_peft_runs(shelf: Path, tmp_path: Path, kind: str) -> None:
    base, config = KINDS[kind]
    expected = trained(shelf / base, tmp_path / "adapter", config())
    lm = merged(tmp_path / "adapter")
    torch.testing.assert_close(logits(lm.model), expected, atol=1e-5, rtol=1e-5)
    assert (expected - logits(AutoModelForCausalLM.from_pretrained(shelf / base))).abs().max() > 1e-3
    assert not any(hasattr(m, "base_layer") for m in lm.model.modules()) and not hasattr(lm.model, "peft_config")
    assert len(lm.blocks) == 2


@pytest.mark.parametrize("base", ["llama", "tied"])
@pytest.mark.parametrize("whole", [[], ["embed_tokens", "lm_head"], ["embed_tokens"]], ids=["auto", "both", "one"])
def test_an_adapter_with_tokens_of_its_own_brings_their_rows(
    shelf: Path, tmp_path: Path, base: str, whole: list[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shelf / base)
    tokenizer.add_tokens(["<one>", "<two>"])
    config = peft.LoraConfig(r=2, target_modules=PLACES, modules_to_save=whole or None)
    expected = trained(shelf / base, tmp_path / "adapter", config, len(tokenizer), save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    lm = merged(tmp_path / "adapter")
    torch.testing.assert_close(logits(lm.model), expected, atol=1e-5, rtol=1e-5)
    assert len(lm.tokenizer) == len(tokenizer) == lm.model.get_input_embeddings().weight.shape[0]


def test_an_adapter_that_does_nothing_changes_nothing(shelf: Path, tmp_path: Path) -> None:
    trained(shelf / "tied", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"]))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({n: torch.zeros_like(v) if "lora_" in n else v for n, v in load_file(file).items()}, file)
    lm, base = merged(tmp_path / "adapter"), load_lm(str(shelf / "tied"), dtype="float32")
    assert torch.equal(logits(lm.model), logits(base.model))
    assert dict(lm.model.named_parameters()).keys() == dict(base.model.named_parameters()).keys()  # tied again


def test_the_model_has_one_dtype(shelf: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=PLACES, modules_to_save=["lm_head"])
    expected = trained(shelf / "llama", tmp_path / "adapter", config)
    model = load_lm(str(tmp_path / "adapter"), dtype="bfloat16").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (logits(model) - expected).abs().max() < 0.2


def drop_one(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, folder / "adapter_model.safetensors")


def add_one(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    one = "base_model.model.model.layers.0.self_attn.gate.lora_A.weight"
    save_file(tensors | {one: torch.ones(2, 2)}, folder / "adapter_model.safetensors")


def spoil_one(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors[min(tensors)].fill_(torch.nan)
    save_file(tensors, folder / "adapter_model.safetensors")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()


MISFITS: list[tuple[str, Callable[[Path], None] | dict[str, Any], str, str]] = [
    ("a block too few", {}, "shallow", r"4 of its tensors, .*layers\.1.*, find no place in that model"),
    ("a block too many", {}, "deep", r"4 of its tensors, .*layers\.2.*, are lacking from it"),
    ("another width", {}, "wide", "does not fit .*wide: size mismatch"),
    ("another family", {}, "gpt2", "does not fit .*gpt2: Target modules .* not found"),
    ("another rank", {"r": 7}, "", "does not fit .*size mismatch"),
    ("a tensor less", drop_one, "", "1 of its tensors, .*are lacking from it"),
    ("a tensor more", add_one, "", r"1 of its tensors, .*gate\.lora_A\.weight, find no place"),
    ("no numbers", spoil_one, "", "NaN"),
    ("a pickle", pickled, "", r"as a pickle \(adapter_model\.bin\).*--allow-pickle"),
    ("no weights", lambda f: (f / "adapter_model.safetensors").unlink(), "", "is an adapter without weights"),
    ("a classifier", {"task_type": "SEQ_CLS"}, "", "for the task SEQ_CLS; expected CAUSAL_LM"),
    (
        "some tokens alone",
        {"alora_invocation_tokens": [5]},
        "",
        "a LORA adapter with alora_invocation_tokens, which cannot",
    ),
    ("a prefix", {"peft_type": "PREFIX_TUNING"}, "", "a PREFIX_TUNING adapter, which cannot be merged"),
    ("no base", {"base_model_name_or_path": None}, "", "whose file names no base; .*--model BASE"),
    ("an author's folder", {"base_model_name_or_path": "C:\\models\\base"}, "", "which is not on this machine"),
    ("drawn anew", {"init_lora_weights": "pissa_niter_4"}, "", "drawn anew at every load .*pissa_niter_4"),
    ("no kind", {"peft_type": None}, "", "has no peft_type in its adapter_config.json"),
    ("no JSON", lambda f: (f / "adapter_config.json").write_text("{"), "", "is not JSON"),
    ("no mapping", lambda f: (f / "adapter_config.json").write_text("[]"), "", "expected a mapping"),
]


@pytest.mark.parametrize(("what", "spoil", "base", "expected"), MISFITS, ids=[case[0] for case in MISFITS])
def test_what_does_not_fit_is_refused(
    shelf: Path, tmp_path: Path, what: str, spoil: Callable[[Path], None] | dict[str, Any], base: str, expected: str
) -> None:
    folder = tmp_path / "adapter"
    trained(shelf / "llama", folder, peft.LoraConfig(r=2, target_modules=PLACES))
    if callable(spoil):
        spoil(folder)
    else:
        change(folder, **spoil)
    with pytest.raises(ValueError, match=expected):
        merged(folder, base=str(shelf / base) if base else None)


def test_a_pickle_that_was_allowed_is_read(shelf: Path, tmp_path: Path) -> None:
    expected = trained(shelf / "llama", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=PLACES))
    pickled(tmp_path / "adapter")
    torch.testing.assert_close(
        logits(merged(tmp_path / "adapter", allow_pickle=True).model), expected, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "lead", ["base_model.model._orig_mod.", "module.base_model.model.", "_orig_mod.base_model.model."]
)
def test_what_a_wrapper_puts_into_names_is_taken_off(shelf: Path, tmp_path: Path, lead: str) -> None:
    expected = trained(shelf / "llama", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=PLACES))
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name.replace("base_model.model.", lead): value for name, value in load_file(file).items()}, file)
    torch.testing.assert_close(logits(merged(tmp_path / "adapter").model), expected, atol=1e-5, rtol=1e-5)


def test_a_config_beside_an_adapter_makes_no_model_of_it(shelf: Path, tmp_path: Path) -> None:
    expected = trained(shelf / "llama", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=PLACES))
    shutil.copy(shelf / "llama" / "config.json", tmp_path / "adapter")
    torch.testing.assert_close(logits(merged(tmp_path / "adapter").model), expected, atol=1e-5, rtol=0)


def test_a_setting_that_this_peft_does_not_know_is_said(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(shelf / "llama", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=PLACES))
    change(tmp_path / "adapter", use_tomorrow=True)
    merged(tmp_path / "adapter")
    assert "sets use_tomorrow, which the installed peft does not know" in " ".join(capsys.readouterr().err.split())


def test_without_peft_it_is_one_line(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(shelf / "llama", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=PLACES))
    monkeypatch.setattr("misdirect.model.adapters.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"is an adapter, which needs peft; expected: pip install 'misdirect\[lora\]'"):
        merged(tmp_path / "adapter")


def test_a_merge_that_is_another_model_is_refused(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(shelf / "tied", tmp_path / "adapter", peft.LoraConfig(r=2, target_modules=["lm_head"]))
    monkeypatch.setattr("misdirect.model.adapters.untied", lambda model: [])  # as PEFT's own merge does
    with pytest.raises(ValueError, match=r"cannot be merged: its model and the merged one differ by \d"):
        merged(tmp_path / "adapter")
