"""`export`: a run becomes a folder that other tools read. The folder appears when it is complete and has been read back.

export(Path("runs/demo"), Path("unlearned"), ExportConfig())                       # a whole checkpoint
export(Path("runs/demo"), Path("adapter"), ExportConfig(format="adapter"))       # a LoRA of the change
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from misdirect import runs, storage
from misdirect.config import EvaluateConfig
from misdirect.data.corpora import read_texts
from misdirect.data.questions import read_questions
from misdirect.evaluation import mcq, nll
from misdirect.exporting import adapter, checkpoint
from misdirect.exporting.checkpoint import Order
from misdirect.exporting.settings import ExportConfig
from misdirect.exporting.shards import parse_size
from misdirect.model.delta import Delta, load_delta, swapped_in
from misdirect.model.identity import check_same_base
from misdirect.model.lm import LM
from misdirect.model.load import resolve_source
from misdirect.progress import bar, note, working
from misdirect.recipes import DemoSettings
from misdirect.reporting.card import CARD, exported
from misdirect.runs import Result

PUBLIC = (runs.DELTA, runs.SUMMARY)  # of a run, beside its card: no source as typed, no path, no control vector
ASKED, READ = 100, 20  # questions and texts of a set by which an adapter is compared with the change


def export(
    run: Path, out: Path, config: ExportConfig, source: str, questions: Mapping[str, str], flags: Mapping[str, bool]
) -> list[str]:
    """Writes the folder; returns what is to be said of it, a line each.

    `source`: where the base lies now. `questions`: sets by which an adapter's loss is measured. Raises ValueError for a folder
    that holds something, a base that has changed, a change that the format cannot hold, and a disk that is full.
    """
    dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
    most = None if config.max_shard_size is None else parse_size(config.max_shard_size)
    order = Order(run, load_delta(run / runs.DELTA), source, dtype, most, **flags)
    with new_folder(out) as folder:
        if config.format == "delta":
            lines = alone(order, folder)
        elif config.format == "full":
            lines = checkpoint.write(order, folder)
        else:
            lines = as_adapter(order, folder, config.keep, questions)
        card = exported(run, config.format, lines)
        storage.write_text(folder / CARD, card)
    return lines


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes it when the block ends well, and vanishes when it does not.

    What a killed export left is removed first. Raises ValueError where there is something at `path`, and where another
    process is at work on it.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path} is there already; expected a new folder for --out")
    storage.writable(path.parent)
    stage = path.parent / f".{path.name}.part"
    with storage.held(stage):
        for left in stage.iterdir():
            if left.name != storage.LOCK:
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield stage
        except BaseException as error:
            shutil.rmtree(stage, ignore_errors=True)
            if isinstance(error, Exception) and storage.is_full(error):
                raise ValueError(
                    f"{path} does not fit on the disk; expected space there and the same command again"
                ) from None
            raise
        (stage / storage.LOCK).unlink(missing_ok=True)
        for file in stage.rglob("*"):
            if file.is_file() and file.stat().st_nlink == 1:
                file.chmod(0o644)
        if path.exists():
            path.rmdir()
        stage.replace(path)


def alone(order: Order, folder: Path) -> list[str]:
    """What of a run may be published: the change, the numbers, the card."""
    for name in PUBLIC:
        if (order.run / name).is_file():
            shutil.copyfile(order.run / name, folder / name)
    return ["The change alone; misdirect puts it into its base"]


def as_adapter(order: Order, folder: Path, keep: float, questions: Mapping[str, str]) -> list[str]:
    with working("Reading the base"):
        lm = order.load(order.source, None)
    check_same_base(lm, order.run)
    with bar("Factoring the change", len(order.delta.tensors)) as advance:
        made = adapter.of_delta(lm, order.delta, keep, advance)
    base = resolve_source(order.source)
    adapter.save(
        lm, made, str(Path(base).resolve()) if Path(base).exists() else base, folder, order.dtype or torch.float32
    )
    ranks, full = [each.a.shape[0] for each in made.values()], [each.full for each in made.values()]
    kept = 100 * min(each.kept for each in made.values())
    whole = "all of it" if ranks == full else f"all of it needs {spread(full)}"
    said = f"Rank {spread(ranks)} keeps {kept:.4g} % of the squared change; {whole}"
    return [said, *losses(lm, order, adapter.put_back(lm, made), questions)]


def spread(values: list[int]) -> str:
    return str(values[0]) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def losses(lm: LM, order: Order, merged: Delta, questions: Mapping[str, str]) -> list[str]:
    """How far the adapter is from the change in log-probability: on questions where there are any, else on the run's own text."""
    config = EvaluateConfig(limit=ASKED, text_limit=READ, max_tokens=128, formats="cloze", device="cpu")
    about = runs.read_config(order.run)
    if not questions and about.of_the_demo:
        questions = dict(DemoSettings().questions)
    sets: dict[str, Any] = {name: (mcq.mcq, read_questions(source)) for name, source in questions.items()}
    texts = {row.name: row.source for row in about.topics} | {row.name: row.source for row in about.retain}
    for name, source in () if sets else texts.items():
        try:
            sets[name] = (nll.nll, read_texts(source or ""))
        except ValueError as error:
            note(f"{name} cannot be read here, so the adapter is not compared on it: {error}")
    lines = []
    with bar("Comparing adapter and change", 2 * len(sets)) as advance:
        for name, (measure, items) in sets.items():
            both = []
            for delta in (order.delta, merged):
                with swapped_in(delta, lm.model):
                    both.append(measure(lm, name, items, config))
                advance(1)
            lines.append(f"{name}: {difference(*both)}")
    return lines or ["Nothing could be read to compare it with the change: name --questions NAME=SOURCE"]


def difference(change: Result, merged: Result) -> str:
    """`27.0 % right by the change, 27.0 % by the adapter (n = 100), log-probabilities 0.013 nats apart on average`."""
    one, two = (result.metrics[0] for result in (change, merged))
    if change.measurement != mcq.MEASUREMENT:
        return f"NLL per token {one.value:.3f} by the change, {two.value:.3f} by the adapter (n = {one.n})"
    both = ([x for record in result.records for x in record["cloze_logprobs"]] for result in (change, merged))
    apart = [abs(a - b) for a, b in zip(*both, strict=True)]
    text = f"{100 * one.value:.1f} % right by the change, {100 * two.value:.1f} % by the adapter (n = {one.n})"
    return f"{text}, log-probabilities of the choices {sum(apart) / len(apart):.2g} nats apart on average"
