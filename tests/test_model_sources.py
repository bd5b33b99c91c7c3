"""What MODEL names: adapters, quantized checkpoints, folders without a tokenizer, and what is not a model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from misdirect.auditing import pair
from misdirect.cli.main import main
from misdirect.model import identity
from misdirect.model.load import load_lm
from tiny import fill_shelf, tiny_config

IDS = torch.tensor([[3, 5, 7, 11]])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    fill_shelf(folder)
    return folder


@pytest.fixture
def here(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shelf)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return shelf


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def adapter(folder: Path, base: str, scale: float = 0.1) -> Any:
    """A LoRA adapter in `folder`; the wrapped model as peft itself runs it, unmerged."""
    peft = pytest.importorskip("peft", reason="peft is absent: pip install 'misdirect[lora]'")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("llama")
    torch.manual_seed(0)
    wanted = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft's own, on a name of transformers
        wrapped = peft.get_peft_model(model, wanted)
    with torch.no_grad():
        for name, value in wrapped.named_parameters():
            if "lora_B" in name:
                value.normal_(0, scale)
    wrapped.save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": base}))
    return wrapped.eval()


def test_an_adapter_is_a_checkpoint(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = adapter(tmp_path / "lora", "llama")
    assert torch.allclose(logits(load_lm(str(tmp_path / "lora")).model), logits(wrapped), atol=1e-5)
    assert not torch.allclose(logits(load_lm("llama").model), logits(wrapped), atol=1e-3)
    assert "is an adapter (LORA), merged into llama" in capsys.readouterr().err

    away = tmp_path / "away"
    adapter(away, "/home/somebody/base")
    with pytest.raises(ValueError, match=r"made on /home/somebody/base, which is not on this machine; .*--model BASE"):
        load_lm(str(away))
    assert torch.allclose(logits(load_lm(str(away), base="llama").model), logits(wrapped), atol=1e-5)
    side = pair.opened(pair.checkpoint("llama"), pair.checkpoint(str(away), "llama"), pair.Loading("cpu", "float32"))
    with side("base") as lm:
        base = logits(lm.model)
    with side("unlearned") as lm:
        assert torch.allclose(logits(lm.model), logits(wrapped), atol=1e-5)
    assert torch.equal(base, logits(load_lm("llama").model))


def test_an_adapter_that_names_another_is_named(here: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "one", "llama")
    adapter(tmp_path / "two", str(tmp_path / "one"))
    with pytest.raises(ValueError, match=r"two is an adapter on .*one: .*one is an adapter itself"):
        load_lm(str(tmp_path / "two"))
    adapter(tmp_path / "hub", "owner/model")
    with pytest.raises(ValueError, match=r"hub is an adapter on owner/model: .*--model BASE"):
        load_lm(str(tmp_path / "hub"))


def test_what_cannot_be_merged_is_refused(here: Path, tmp_path: Path) -> None:
    adapter(tmp_path / "lora", "llama")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PROMPT_TUNING"}))
    with pytest.raises(ValueError, match="a PROMPT_TUNING adapter, which cannot be merged"):
        load_lm(str(tmp_path / "lora"))


def test_an_adapter_beside_whole_weights_is_left_alone(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("llama", tmp_path / "merged")
    adapter(tmp_path / "merged", "llama", 1.0)
    assert torch.equal(logits(load_lm(str(tmp_path / "merged")).model), logits(load_lm("llama").model))
    assert "the adapter beside them (adapter_config.json) is not applied" in " ".join(capsys.readouterr().err.split())


def test_a_folder_without_a_tokenizer(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("llama", tmp_path / "bare", ignore=shutil.ignore_patterns("*token*"))
    with pytest.raises(ValueError, match=r"holds no tokenizer; expected tokenizer.json beside the weights"):
        load_lm(str(tmp_path / "bare"))
    lm = load_lm(str(tmp_path / "bare"), base="llama")
    assert lm.tokenizer("water")["input_ids"] == load_lm("llama").tokenizer("water")["input_ids"]
    assert "holds no tokenizer: that of llama is taken" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_checkpoint(here: Path, tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is absent: pip install 'misdirect[quant]'")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    torch.manual_seed(0)
    settings = {"hidden_size": 64, "intermediate_size": 128}
    AutoModelForCausalLM.from_config(tiny_config("llama", **settings)).save_pretrained(tmp_path / "full")
    AutoTokenizer.from_pretrained("llama").save_pretrained(tmp_path / "full")
    wanted = BitsAndBytesConfig(load_in_4bit=True) if bits == 4 else BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=wanted)
    model.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained("llama").save_pretrained(tmp_path / "small")
    small = str(tmp_path / "small")

    as_it_is = load_lm(small, dtype="float32", dequantize=False)
    plain = load_lm(small, dtype="float32")
    assert plain.dequantized.startswith("bitsandbytes")
    assert {p.dtype for p in plain.model.parameters()} == {torch.float32}
    assert torch.allclose(logits(plain.model), logits(as_it_is.model).float(), atol=0.2)  # 8 bit rounds activations too
    made = ["unlearn", small, "--forget", "bio=bio.jsonl", "--retain", "w=wiki.jsonl", "--block", "1"]
    assert main([*made, "--num-blocks", "2", "--updates", "1", "--out", str(tmp_path / "run")]) == 0
    side = pair.opened(pair.checkpoint(str(tmp_path / "full")), pair.checkpoint(small), pair.Loading("cpu", "float32"))
    with side("base") as one, side("unlearned") as other:
        assert identity.weights_hash(one) != identity.weights_hash(other)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("model.gguf",), "it holds GGUF: model.gguf; expected safetensors: python -c .*convert"),
        (("tokenizer.json",), "it holds a tokenizer alone"),
        (("rows.jsonl",), r"it holds data \(rows.jsonl\)"),
        (("adapter_model.safetensors",), "it is an adapter .* that lacks adapter_config.json"),
        (("model.onnx",), "it holds an ONNX export"),
        (("audit.json",), "it is the folder of an audit"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, files: tuple[str, ...], expected: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=expected):
        load_lm(str(tmp_path))
