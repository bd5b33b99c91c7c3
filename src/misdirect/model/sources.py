"""What MODEL names: a whole model, an adapter on one, a folder without a tokenizer, or something that is no model at all.

Nothing is loaded here; files are looked for and two small JSON files are read. Whatever is not a model is named as what it
is, with what to type instead.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from misdirect.runs import AUDIT, DELTA, read_env

ADAPTER_CONFIG = "adapter_config.json"
IN_MEMORY = "memory:"  # before the name of a model that a caller holds
# Weights by which transformers loads a model; an adapter's own files are not among them.
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin")
# Files out of which a tokenizer is made; tokenizer_config.json alone names a class and holds no vocabulary.
VOCABULARIES = (
    "tokenizer.json", "*.model", "vocab.json", "vocab.txt", "vocab-*", "*.tiktoken", "tekken.json", "*.bpe", "tokenization*.py",
)  # fmt: skip
HUB_ID = "expected a model folder, a hub id, or demo"


class Adapter(NamedTuple):
    """A PEFT adapter. `where`: its folder or hub id; `config`: what its `adapter_config.json` holds."""

    where: str
    config: dict[str, Any]

    @property
    def base(self) -> str:
        """What it says that it was trained on: a hub id, or a path on its author's machine."""
        return str(self.config.get("base_model_name_or_path") or "")


# ------------------------------------------------------------------------------------------------ adapters


def is_local(where: str) -> bool:
    return where == "demo" or where.startswith((IN_MEMORY, ".", "/", "~")) or Path(where).expanduser().exists()


def adapter_file(where: str) -> Path | None:
    """The `adapter_config.json` of an adapter's folder or hub id, or of a folder that holds whole weights beside it."""
    if not is_local(where):
        return hub_adapter_file(where)
    file = Path(where).expanduser() / ADAPTER_CONFIG
    return file if file.is_file() else None


@functools.cache
def hub_adapter_file(repository: str) -> Path | None:
    """None also for a repository that holds a model's config: its weights are read, whatever lies beside them.

    Raises ValueError where the hub cannot be reached: loading would find that out as slowly.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        cached = {name: try_to_load_from_cache(repository, name) for name in ("config.json", ADAPTER_CONFIG)}
        for name, found in cached.items():
            if isinstance(found, str):
                return Path(found) if name == ADAPTER_CONFIG else None
        for name in cached:
            try:
                file = hf_hub_download(repository, name)
            except LocalEntryNotFoundError:  # it is of the next kind too
                raise ValueError(
                    f"{repository} is not a model that can be loaded: it is not a folder here, not in the cache, and the hub "
                    "cannot be reached"
                ) from None
            except EntryNotFoundError:
                continue
            return Path(file) if name == ADAPTER_CONFIG else None
    except (OSError, ValueError) as error:  # no such id, no permission: loading it says so better
        if "cannot be reached" in str(error):
            raise
    return None


def find_adapter(where: str) -> Adapter | None:
    """The adapter that a folder or hub id is; None where it has weights of its own. Raises ValueError for a damaged one."""
    file = adapter_file(where)
    if file is None or has_weights(where):
        return None
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} is not the config of a PEFT adapter; expected a mapping")
    return Adapter(where, config)


def has_weights(where: str) -> bool:
    folder = Path(where).expanduser()
    return any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def base_of(adapter: Adapter, base: str | None = None) -> str:
    """The model that an adapter is put on: `base` where it was named, else what the adapter names.

    Raises ValueError where that is not a place on this machine and cannot be a hub id either.
    """
    named = base or adapter.base
    local = Path(named).expanduser()
    if named and (base or local.exists()):
        return named
    if not named or named.startswith((".", "/", "~")) or "\\" in named or named.count("/") > 1:
        problem = f"made on {named}, which is not on this machine" if named else "whose file names no base"
        raise ValueError(f"{adapter.where} is an adapter {problem}; {expected_base(adapter)}")
    return named


@contextmanager
def on_base(adapter: Adapter) -> Iterator[None]:
    """Around what reads the base that an adapter names: where it cannot be read, the adapter is named, and what to type."""
    try:
        yield
    except ValueError as error:
        raise ValueError(
            f"{adapter.where} is an adapter on {adapter.base}: {error}; {expected_base(adapter)}"
        ) from None


def refuse_adapter(base: str) -> None:
    """Raises ValueError where a base is not a whole model; an adapter may even name itself."""
    if find_adapter(base) is not None:
        raise ValueError(f"{base} is an adapter itself, and another cannot be put on it; expected a whole model")


def expected_base(adapter: Adapter) -> str:
    where = shlex.quote(adapter.where)
    return (
        f"expected its base named: misdirect evaluate {where} --model BASE, misdirect audit BASE {where}, or "
        f"base_model_name_or_path in its {ADAPTER_CONFIG}"
    )


def adapter_base(where: str) -> str | None:
    """The base of an adapter, as it names it; None for everything else."""
    adapter = find_adapter(where)
    return None if adapter is None else base_of(adapter)


def left_over(where: str) -> str:
    """A line on adapter files beside whole weights, which are read alone whether or not peft is there; else empty."""
    if not is_local(where) or adapter_file(where) is None or not has_weights(where):
        return ""
    return (
        f"{where}: the weights are read alone, the adapter beside them ({ADAPTER_CONFIG}) is not applied; if it has not been "
        "merged into them and should be: its two files in a folder of their own, misdirect evaluate FOLDER --model BASE"
    )


# ------------------------------------------------------------------------------------------------ tokenizers


def lacks_tokenizer(where: str) -> bool:
    """Whether a local folder holds nothing that a tokenizer could be made of."""
    folder = Path(where).expanduser()
    return folder.is_dir() and not any(next(folder.glob(pattern), None) for pattern in VOCABULARIES)


def takes_base(where: str) -> bool:
    """Whether a base can be named for MODEL: for an adapter, and for a model that has no tokenizer of its own."""
    return where != "demo" and (lacks_tokenizer(where) or find_adapter(where) is not None)


def tokenizer_library(where: str) -> str:
    """What to install where a tokenizer is there in a form for which the library is missing; else empty."""
    folder = Path(where).expanduser()
    if not folder.is_dir() or (folder / "tokenizer.json").is_file():
        return ""
    for pattern, libraries in (("*.model", ("sentencepiece", "tiktoken")), ("*.tiktoken", ("tiktoken",))):
        found = next(folder.glob(pattern), None)
        missing = [name for name in libraries if importlib.util.find_spec(name) is None]
        if found and missing:
            return f"{found.name} needs {' or '.join(libraries)}; expected: pip install {' '.join(missing)}, or tokenizer.json"
    return ""


def no_tokenizer(source: str) -> str:
    return (
        f"{source} holds no tokenizer; expected tokenizer.json beside the weights (copy it from the model that this one was "
        f"made from), or that model named: misdirect evaluate {shlex.quote(source)} --model BASE, misdirect audit BASE "
        f"{shlex.quote(source)}"
    )


# ------------------------------------------------------------------------------------------------ what is not a model


def not_a_model(source: str) -> str:
    """Why a local path without a `config.json` of a model cannot be loaded, in one line that says what to type."""
    path = Path(source).expanduser()
    if not path.exists():
        return f"{source} is not there, so it holds no config.json; {HUB_ID}"
    found = file_kind(path) if path.is_file() else next((line for kind in KINDS if (line := kind(path))), "")
    return f"{source} holds no config.json: {found}" if found else f"{source} holds no config.json; {HUB_ID}"


def other_weights(folder: Path) -> str:
    """What stands in a folder in place of safetensors or pickle; empty where nothing known does."""
    return next((line for kind in (gguf, onnx, other_framework) if (line := kind(folder))), "")


def file_kind(path: Path) -> str:
    if path.suffix == ".gguf":
        return gguf_line(path)
    if is_adapter_file(path):
        return f"it is one file of an adapter; expected its folder, {path.parent}"
    if path.suffix == ".safetensors":
        whole = (path.parent / "config.json").is_file()
        return (
            f"it is one file of a model; expected its folder, {path.parent}"
            if whole
            else "it is a file of tensors; expected the folder of a model (a run's delta is named as UNLEARNED of an audit)"
        )
    if path.name in ("config.json", ADAPTER_CONFIG):
        return f"it is a config; expected its folder, {path.parent}"
    return f"it is a file; {HUB_ID}"


def is_adapter_file(path: Path) -> bool:
    return path.name.startswith("adapter_model.") and (path.parent / ADAPTER_CONFIG).is_file()


def gguf_line(path: Path) -> str:
    out = path.with_suffix("").name
    code = f"from misdirect.model.gguf import convert; convert({str(path)!r}, {out!r})"
    quoted = shlex.quote(code) if set(code) & set('"$`\\!') else f'"{code}"'
    return f"it is a GGUF file; expected safetensors: python -c {quoted} writes the folder {out}, once"


def gguf(folder: Path) -> str:
    files = sorted(folder.glob("*.gguf"))
    if not files:
        return ""
    more = f" (of {len(files)}, take the one that you mean)" if len(files) > 1 else ""
    return gguf_line(files[0]).replace("it is a GGUF file", f"it holds GGUF{more}: {files[0].name}", 1)


def onnx(folder: Path) -> str:
    found = next(folder.glob("*.onnx"), None) or next(folder.glob("onnx/*.onnx"), None)
    return f"it holds an ONNX export ({found.name}); expected the safetensors that it was made from" if found else ""


def other_framework(folder: Path) -> str:
    names = {"*.npz": "MLX", "tf_model*.h5": "TensorFlow", "flax_model*.msgpack": "Flax", "*.ckpt.index": "TensorFlow",
             "consolidated.*": "its maker's own format", "*.nemo": "NeMo", "*.tflite": "TensorFlow Lite"}  # fmt: skip
    for pattern, kind in names.items():
        if found := next(folder.glob(pattern), None):
            return f"it holds weights in {kind} ({found.name}); expected the same model as safetensors of transformers"
    return ""


def stray_adapter(folder: Path) -> str:
    found = next(folder.glob("adapter_model.*"), None)
    return f"it is an adapter ({found.name}) that lacks {ADAPTER_CONFIG}; expected both files" if found else ""


def measured(folder: Path) -> str:
    """A folder that misdirect wrote."""
    if (folder / AUDIT).is_file():
        return "it is the folder of an audit; expected one of the models that it compares"
    if (folder / "results").is_dir():
        model = read_env(folder).get("model")
        return f"it is the folder of an evaluation; expected the model{f', {model}' if model else ''}"
    return f"it holds a delta; expected {folder / DELTA} as UNLEARNED of an audit" if (folder / DELTA).is_file() else ""


def pipeline(folder: Path) -> str:
    return "it is a diffusers pipeline; expected a language model" if (folder / "model_index.json").is_file() else ""


def hub_cache(folder: Path) -> str:
    found = sorted(folder.glob("snapshots/*/config.json"))
    return f"it is a repository of the hub's cache; expected {found[-1].parent}" if found else ""


def around_models(folder: Path) -> str:
    """A folder of folders: a trainer's checkpoints, several adapters of one training."""
    kept = [p for p in sorted(folder.glob("*/")) if any((p / n).is_file() for n in ("config.json", ADAPTER_CONFIG))]
    if not kept:
        return ""
    kept.sort(key=lambda p: (len(p.name), p.name))  # checkpoint-500 before checkpoint-1000
    names = ", ".join(p.name for p in kept[-3:])
    return f"it holds {len(kept)} folders that do, such as {names}; expected one of them"


def data_set(folder: Path) -> str:
    known = (
        "dataset_info.json",
        "dataset_dict.json",
        "dataset_infos.json",
        "*.arrow",
        "*.parquet",
        "*.jsonl",
        "*.csv",
        "data/*.parquet",
    )
    found = next((file for pattern in known for file in folder.glob(pattern)), None)
    return f"it holds data ({found.name}), which --questions, --text or --forget take; {HUB_ID}" if found else ""


def weights_alone(folder: Path) -> str:
    found = next((file for pattern in ("*.safetensors", "*.bin") for file in folder.glob(pattern)), None)
    return f"it holds weights alone ({found.name}); expected the model's config.json beside them" if found else ""


def tokenizer_alone(folder: Path) -> str:
    return "" if lacks_tokenizer(str(folder)) else f"it holds a tokenizer alone; {HUB_ID}"


KINDS: tuple[Callable[[Path], str], ...] = (
    gguf, stray_adapter, measured, pipeline, hub_cache, onnx, other_framework, around_models, data_set, weights_alone,
    tokenizer_alone,
)  # fmt: skip


def foreign_config(source: str, config: Any) -> str:
    """Why a `config.json` is not that of a model of transformers; empty where it may be."""
    if not isinstance(config, dict):
        return ""
    if "misdirect" in config:
        model = config.get("model")
        return (
            f"{source} is a run; expected a model, such as the one that it was made from, {model}. "
            f"A run is named in evaluate, audit, attack, chat and report"
        )
    if "_diffusers_version" in config:
        return f"{source} is a part of a diffusers pipeline; expected a language model"
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx and "quant_method" not in (config.get("quantization_config") or {}):
        return (
            f"{source} is a model quantized by MLX ({mlx['bits']} bits), which only MLX reads; expected the model that it "
            "was made from"
        )
    return ""
