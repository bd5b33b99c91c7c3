"""What a page or card may say of where things lay: names of files, never the folders of somebody's machine.

A model card is published, and a path tells who made it and where hazardous text is kept. Hub ids, `hub:` sources and
built-in names stay as they are; of a local path its last part is left.

>>> public_command("misdirect unlearn /home/me/model --forget bio=/data/secret/bio.jsonl@2 --out runs/mine")
'misdirect unlearn model --forget bio=bio.jsonl@2 --out mine'
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def public_name(text: str) -> str:
    """The last part of a local path; anything else as it is."""
    if text.startswith("hub:"):
        return text
    local = text.startswith(("/", "./", "../", "~")) or text.count("/") > 1 or "\\" in text
    return text.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if local else text


def public_source(text: str) -> str:
    """A SOURCE is not a hub id, so any folder in it is a local one."""
    return text if text.startswith("hub:") else text.rstrip("/").rsplit("/", 1)[-1]


def public_command(text: str) -> str:
    try:
        words, whole = shlex.split(text), True
    except ValueError:  # no command that a shell takes, so none of ours
        words, whole = text.split(), False
    out, flag = [], ""
    for word in words:
        name, equals, value = word.partition("=")
        if equals and not name.startswith("--"):
            word = f"{name}={public_source(value)}"
        elif equals:
            word = f"{name}={public_name(value)}"
        elif flag == "--out":
            word = public_source(word)
        else:
            word = public_name(word)
        flag = word if word.startswith("--") else ""
        out.append(word)
    return shlex.join(out) if whole else " ".join(out)


def public_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json` or `env.json` with names instead of local paths; the model's stays, to be looked at and not shown."""
    out = dict(config)
    if isinstance(out.get("command"), str):
        out["command"] = public_command(out["command"])
    for part in ("topics", "retain"):
        if isinstance(out.get(part), list):
            out[part] = [named(row) for row in out[part]]
    return out


def named(row: Any) -> Any:
    if isinstance(row, Mapping) and isinstance(row.get("source"), str):
        return {**row, "source": public_source(row["source"])}
    return row
