"""SIGINT, SIGTERM and SIGHUP: one line, the right exit code, nothing lost.

A signal becomes a KeyboardInterrupt, so files that were being written vanish on the way out. `deferred` holds it back
over work that must not be cut in the middle. One that comes again while the first is obeyed is the same one (`timeout`
sends two); one that comes more than a second later ends the process at once, which is safe too: files are complete from
the moment they have their names.

In use:

    with as_interrupts():
        with deferred() as waiting:
            ...                            # if waiting: save, then `raise Stop`
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PATIENCE = 1.0  # seconds within which a further signal is taken for the same one
SHOW_CURSOR = "\x1b[?25h"  # what a progress bar that is cut off leaves hidden


class Interrupted(KeyboardInterrupt):
    """A signal that came; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stop(BaseException):
    """Raised inside `deferred` by work that has put everything away and can be left."""


@contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """`handler` for every signal that is not ignored (nohup, background jobs); only the main thread can have handlers."""
    main = threading.current_thread() is threading.main_thread()
    wanted = [s for s in SIGNALS if signal.getsignal(s) not in (signal.SIG_IGN, None)] if main else []
    before = {number: signal.signal(number, handler) for number in wanted}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def as_interrupts() -> Iterator[list[int]]:
    """Signals as `Interrupted` inside the block; yields those that came.

    Python swallows an exception raised in a callback such as `__del__`; it is then raised again a little later.
    """
    came: list[int] = []
    timers: list[threading.Timer] = []
    since = [0.0]

    def handler(number: int, frame: FrameType | None) -> None:
        if not came:
            came.append(number)
            since[0] = time.monotonic()
            raise Interrupted(number)
        if time.monotonic() - since[0] > PATIENCE:
            leave(came[0])

    def unraisable(lost: Any) -> None:
        if not issubclass(lost.exc_type, Interrupted):
            return hook(lost)
        number = came.pop()
        timers.append(threading.Timer(0.02, os.kill, (os.getpid(), number)))
        return timers[-1].start()

    hook = sys.unraisablehook
    sys.unraisablehook = unraisable
    try:
        with handling(handler):
            try:
                yield came
            finally:
                for timer in timers:  # none may fire when the handlers are gone
                    timer.cancel()
                    timer.join()
    finally:
        sys.unraisablehook = hook


@contextmanager
def deferred() -> Iterator[list[int]]:
    """Holds signals back; yields those that wait. They are obeyed when the block ends, or raises `Stop`.

    One that comes again, more than a second after the first, is obeyed at once.
    """
    waiting: list[int] = []
    since = [0.0]

    def handler(number: int, frame: FrameType | None) -> None:
        if not waiting:
            since[0] = time.monotonic()
        waiting.append(number)
        if time.monotonic() - since[0] > PATIENCE:
            raise Stop

    stopped = False
    with handling(handler):
        try:
            yield waiting
        except Stop:
            stopped = True
    if waiting:
        signal.raise_signal(waiting[0])  # whatever it means outside: an exception, or the end of the process
    if stopped:
        raise KeyboardInterrupt


def told(number: int) -> str:
    """What the person at the keyboard reads."""
    how = "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    return f"misdirect: {how}; the same command resumes from here"


def leave(number: int) -> None:
    """Ends the process now, without cleaning up."""
    cursor = SHOW_CURSOR if sys.stderr.isatty() else ""
    with suppress(OSError):
        os.write(2, f"\n{cursor}{told(number)}\n".encode())
    os._exit(128 + number)


def interruptible(verb: Callable[[], int]) -> int:
    """The exit code of `verb`; 128 + the signal's number, and one line, where a signal ended it.

    Whatever goes wrong once a signal has come is its doing: libraries turn a KeyboardInterrupt into errors of their own.
    """
    with as_interrupts() as came:
        try:
            code = verb()
            return 128 + came[0] if came and code else code
        except BaseException as error:
            if not came and not isinstance(error, KeyboardInterrupt):
                raise
            number = came[0] if came else signal.SIGINT
            print(told(number), file=sys.stderr)
            return 128 + number
