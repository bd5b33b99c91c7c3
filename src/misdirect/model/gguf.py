"""GGUF, llama.cpp's format, written once as the safetensors that everything else reads.

convert("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct")
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from misdirect.progress import quiet
from misdirect.text import first_line


def convert(gguf: str | Path, folder: str | Path) -> None:
    """GGUF -> float32 safetensors with config and tokenizer, in transformers' own format.

    Raises ValueError where transformers cannot read it, or not all of it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf, folder = Path(gguf).expanduser(), Path(folder).expanduser()
    if (folder / "config.json").exists():
        raise ValueError(f"{folder} holds a model or a run; expected a new folder")
    try:
        with quiet(), no_bar():
            model, info = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # an architecture that transformers does not read, a damaged file: many kinds
        raise ValueError(f"{gguf} cannot be converted: {first_line(error)}") from None
    if info["missing_keys"]:
        raise ValueError(f"{gguf} lacks {min(info['missing_keys'])}; expected a whole model")
    model.hf_quantizer = None  # else saving would keep the marks of GGUF
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)


@contextmanager
def no_bar() -> Iterator[None]:
    """Silences the one progress bar of transformers that its own switch does not reach."""
    from transformers import modeling_gguf_pytorch_utils as reading

    bar = getattr(reading, "tqdm", None)
    if bar is None:
        yield
        return
    reading.tqdm = functools.partial(bar, disable=True)
    try:
        yield
    finally:
        reading.tqdm = bar
