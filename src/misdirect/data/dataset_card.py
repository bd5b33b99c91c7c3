"""What a data set's README declares: its configs, and which files are which split.

configs:
- config_name: biology
  data_files:
  - split: test
    path: biology/test-*
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

LONGEST_CARD = 2**20  # characters that are read


def card_configs(card: Path) -> list[dict[str, Any]]:
    """`configs` of a dataset card; none where there is no card, or its head is not YAML."""
    import yaml

    try:
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(LONGEST_CARD)
        head = yaml.safe_load(text[3:].partition("\n---")[0]) if text.startswith("---") else None
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return []
    configs = head.get("configs") if isinstance(head, dict) else None
    return [one for one in configs if isinstance(one, dict)] if isinstance(configs, list) else []


def patterns(data_files: Any) -> list[tuple[str, str]]:
    """(split, pattern) out of the forms of `data_files`; without a split it is train, as on the hub."""
    if isinstance(data_files, str):
        return [("train", data_files)]
    if isinstance(data_files, dict):
        data_files = [{"split": split, "path": path} for split, path in data_files.items()]
    out: list[tuple[str, str]] = []
    for one in data_files if isinstance(data_files, list) else ():
        split, path = (one.get("split", "train"), one.get("path")) if isinstance(one, dict) else ("train", one)
        out += [(str(split), text) for text in (path if isinstance(path, list) else [path]) if isinstance(text, str)]
    return out


def matching(folder: Path, pattern: str) -> list[Path]:
    try:
        found = sorted(folder.glob(pattern))
    except (NotImplementedError, ValueError, OSError):  # an absolute pattern, an empty one
        return []
    return [inner for path in found for inner in (sorted(path.rglob("*")) if path.is_dir() else [path])]
