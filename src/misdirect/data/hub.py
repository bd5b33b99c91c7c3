"""Datasets of the Hugging Face hub through `datasets`, and what to do where one cannot be had.

No code of a dataset is ever run: `datasets` from 4.0 on reads data files alone.

>>> rows(parse("hub:cais/mmlu:all:test"))      # an iterator of dicts
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from misdirect.data.files import Row
from misdirect.data.splits import TEXT, Order, pick
from misdirect.progress import note
from misdirect.text import listed, reason, shown

FORM = "hub:OWNER/DATASET[:CONFIG[:SPLIT]]"
ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class Place(NamedTuple):
    """Where rows come from: `source` is what was typed, the rest says it to `datasets` ("" = not said)."""

    source: str
    dataset: str
    config: str = ""
    split: str = ""
    instead: str = "name a local file"  # where there is no network


def parse(source: str) -> Place:
    """`hub:OWNER/DATASET[:CONFIG[:SPLIT]]`. Raises ValueError for anything else, a folder of that name among it.

    `datasets` would take a folder here for the hub's, and a name without an owner for one of its own file readers.
    """
    parts = source.removeprefix("hub:").split(":")
    if not ID.fullmatch(parts[0]) or len(parts) > 3:
        raise ValueError(f"{shown(source)!r} is not a hub source; expected {FORM}, such as hub:cais/mmlu:all:test")
    if Path(parts[0]).exists():
        raise ValueError(
            f"{shown(source)} is also a folder here; expected {parts[0]} alone for it, or another folder to run in"
        )
    return Place(source, *parts)


def rows(place: Place, order: Order = TEXT) -> Iterator[Row]:
    """The rows; the split defaults to the first of `order`, else the only one. Raises ValueError that says what exists."""
    import datasets

    note(f"Loading {place.dataset} {place.config} {place.split}".rstrip() + " from the hub")
    try:
        with quiet_retries():
            found: Any = datasets.load_dataset(place.dataset, place.config or None, split=place.split or None)
    except Exception as error:  # the library raises dozens of kinds; their text says which
        raise complaint(place, error) from None
    split = place.split or default_split(place, list(found), order)
    if not place.split and len(found) > 1:
        note(f"{shown(place.source)}: split {split} is read; not {listed([name for name in found if name != split])}")
    table = found if place.split else found[split]
    try:
        for row in table:
            yield dict(row)
    except Exception as error:  # a picture or sound that cannot be decoded, a damaged cache
        raise ValueError(f"{shown(place.source)} cannot be read: {reason(error)}") from None


def default_split(place: Place, names: list[str], order: Order) -> str:
    if found := pick(names, order):
        return found
    typed = f"hub:{place.dataset}:{place.config}:{names[0]}"
    raise ValueError(
        f"{shown(place.source)} has the splits {listed(names)}; expected one of them, such as {shown(typed)}"
    )


def complaint(place: Place, error: Exception) -> ValueError:
    """The library's error as one line: gated, unknown config or split with what exists, no network, not there."""
    said = " ".join(str(error).split())
    kinds = {kind.__name__ for kind in type(error).__mro__}
    head = f"{shown(place.source)} could not be loaded: "
    page = f"https://huggingface.co/datasets/{place.dataset}"
    names = listed(re.findall(r"'([^']+)'", said.partition("[")[2].partition("]")[0]))
    if "gated" in said.lower() or "GatedRepoError" in kinds:
        return ValueError(f"{head}it is gated; ask for access at {page}, run `hf auth login`, then type the same again")
    if "BuilderConfig" in said and names:
        return ValueError(f"{head}it has no config {shown(place.config, 60)!r}; expected one of {names}")
    if "Config name is missing" in said and names:
        return ValueError(f"{head}it has several configs; expected {FORM} with one of {names}")
    if "Unknown split" in said and names:
        return ValueError(f"{head}it has no split {shown(place.split, 60)!r}; expected one of {names}")
    if "ConnectionError" in kinds or "OfflineModeIsEnabled" in kinds or "ConnectError" in kinds:
        return ValueError(f"{head}the hub cannot be reached; expected a network, or {place.instead}")
    if kinds & {"DatasetNotFoundError", "RepositoryNotFoundError", "FileNotFoundError"}:
        return ValueError(
            f"{head}the hub shows no dataset of that name; expected one that {page} shows, after `hf auth login` if it is private"
        )
    return ValueError(f"{head}{reason(error.__cause__ or error)}; expected a dataset of data files, as shown at {page}")


@contextmanager
def quiet_retries() -> Iterator[None]:
    """Without the libraries' lines about every retry: where all fail, one line of ours says so."""
    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "datasets")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
