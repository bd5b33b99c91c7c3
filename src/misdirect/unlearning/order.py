"""What an unlearning is asked for, as `config.json` says it, and whether a folder holds that very run already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from misdirect import __version__, runs, storage
from misdirect.config import Corpus, Topic, UnlearnConfig
from misdirect.model.delta import Delta, load_delta
from misdirect.model.identity import files_of, model_hash
from misdirect.model.load import resolve_source
from misdirect.model.sources import find_adapter
from misdirect.runs.command import unlearn_command
from misdirect.unlearning.train import Prepared


@dataclass(frozen=True)
class Order:
    """What an unlearning is asked for, its text read: the same for every seed."""

    model: str
    method: str
    topics: list[Topic]
    corpora: list[Corpus]
    forget: dict[str, list[str]]
    retain: list[tuple[str, list[str], float]]
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def command(self, config: UnlearnConfig, run: Path) -> str:
        """The command that gives this run again."""
        words = [unlearn_command(self.model, self.topics, self.corpora, config, str(run))]
        words += [f"--method {self.method}"] * (self.method != "rmu")
        words += ["--trust-remote-code"] * self.trust_remote_code + ["--allow-pickle"] * self.allow_pickle
        return " ".join(words)


def outline(order: Order, settings: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The part of `config.json` that is known before a model is loaded."""
    return {
        "settings": dict(settings),
        "topics": [asdict(topic) for topic in order.topics],
        "retain": [asdict(corpus) for corpus in order.corpora],
        "data": {
            "dtype": dtype,
            "forget_sha256": {name: storage.fingerprint(texts) for name, texts in order.forget.items()},
            "retain_sha256": {name: storage.fingerprint(texts) for name, texts, _ in order.retain},
        },
    }


def describe(order: Order, prepared: Prepared, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json`: everything that the result depends on, as plain data. The model's hash is over the blocks up to the
    last that is read."""
    lm = prepared.lm
    made = {"updates": len(prepared.updates), "lr": prepared.config.lr}
    asked = outline(order, {**settings, **made}, str(next(lm.model.parameters()).dtype))
    own = {"model_sha256": model_hash(lm, prepared.chosen["block"])}
    return asked | {
        "misdirect": __version__,
        "method": order.method,
        "model": lm.source,
        "data": own | asked["data"] | ({"dequantized": lm.dequantized} if lm.dequantized else {}),
        "chosen": dict(prepared.chosen),
    }


def model_files(model: str, config: Any) -> dict[str, Any]:
    """What tells, without a tensor read, that MODEL is as it was: sizes and times of its files, or the hub's commit.

    Empty where that cannot be told, as of an adapter, whose base may have changed.
    """
    if find_adapter(resolve_source(model)) is not None:
        return {}
    folder = Path(resolve_source(model)).expanduser()
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return {"commit": commit} if commit else {}
    if not (folder / "config.json").is_file():
        return {}
    return files_of(folder)


def finished(run: Path) -> Delta | None:
    return load_delta(run / runs.DELTA) if (run / runs.DELTA).is_file() else None


def is_repeated(run: Path, asked: Mapping[str, Any]) -> bool:
    """Whether `run` is finished and is what is `asked`: an `outline`, `method` and `model_files`.

    False also where that takes more than these to tell: the model is then loaded, and its hash compared.
    """
    if not asked["model_files"] or not runs.is_run(run) or finished(run) is None:
        return False
    stored, settings = storage.read_json(run / runs.CONFIG), asked["settings"]
    counted = settings.get("epochs") is not None or settings.get("numerics") == "published"  # from the samples
    unknown = {"data.model_sha256", *(["settings.updates"] if counted or settings.get("updates") is None else []),
               *(["settings.lr"] if settings.get("lr") is None else [])}  # fmt: skip
    same = stored.get("model_files") == asked["model_files"] and stored.get("method", "rmu") == asked["method"]
    return same and set(other_fields(stored, asked)) <= unknown


def refuse_other_folder(run: Path) -> None:
    """Raises ValueError where the folder is in use for something else."""
    if not runs.is_run(run) and ((run / runs.CONFIG).exists() or (run / "results").exists()):
        raise ValueError(f"{run} holds something that is not a run; expected an empty or new folder for --out")


def refuse_other_run(run: Path, asked: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the fields, where the folder holds a run with other settings."""
    refuse_other_folder(run)
    if not runs.is_run(run):
        return
    names = other_fields(storage.read_json(run / runs.CONFIG), asked)
    if names:
        raise ValueError(
            f"{run} holds a run with other settings ({', '.join(names)} differ); expected the same settings, "
            "or another --out"
        )


def other_fields(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Where two `config.json` differ in what makes a run another run."""
    one, new = compared(stored), compared(json.loads(json.dumps(storage.finite(dict(asked)))))
    return [
        f"{part}.{field}" if isinstance(one.get(part), dict) else part
        for part in new
        for field in (
            runs.differing(one[part], new[part])
            if isinstance(one.get(part), dict)
            else [""] * (one.get(part) != new[part])
        )
    ]


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a run another run. Model and texts are told apart by their hashes, under whatever name they were typed."""
    parts: dict[str, Any] = {name: config.get(name) for name in ("settings", "topics", "retain", "data")}
    if isinstance(parts["settings"], dict):  # what the recipe gave is there, setting by setting
        parts["settings"] = {key: value for key, value in parts["settings"].items() if key != "recipe"}
    for name in ("topics", "retain"):
        if isinstance(parts[name], list):
            rows = [row for row in parts[name] if isinstance(row, dict)]
            parts[name] = [{key: value for key, value in row.items() if key != "source"} for row in rows]
    return parts
