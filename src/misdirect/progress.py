"""Progress on standard error: bars with the remaining time, and one-line notes."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

RESUMED = "resumed"  # the text of an advance over work of an earlier process: it says nothing about this one's speed
console = Console(stderr=True, soft_wrap=True, highlight=False)


def note(text: str) -> None:
    """One line to standard error, as it is."""
    console.print(escape(text))


@functools.cache
def note_once(text: str) -> None:
    """A note that a process gives once, however often it reads the same file."""
    note(text)


@contextmanager
def bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar with the remaining time; yields `advance(count, text)`. `text` stands behind the bar."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(escape(description), total=total, text="")

        def advance(count: int = 1, text: str = "") -> None:
            if text == RESUMED:
                progress.reset(task, completed=count, text=text)
            else:
                progress.update(task, advance=count, text=escape(text))

        yield advance


@contextmanager
def working(description: str) -> Iterator[None]:
    """A spinner for work whose length is not known beforehand."""
    with console.status(escape(description)):
        if not console.is_terminal:
            note(description)
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what transformers says while loading: leaving blocks out on purpose looks like a mistake to it."""
    from transformers.utils import logging as hf

    logger = logging.getLogger("transformers")
    level, bars = logger.level, hf.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    hf.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            hf.enable_progress_bar()
