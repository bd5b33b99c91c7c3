"""Arguments in, an exit code out: each error of a user is one line on standard error."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from cyclopts import CycloptsError, MissingArgumentError

from misdirect import interrupts
from misdirect.cli.flags import expand_config
from misdirect.cli.verbs import app

LONGEST_LINE = 2000  # of a complaint, in characters


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point: exit code 0, 1 where a gate is not passed, 2 for bad input, 128 + its number when a signal came."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return interrupts.interruptible(lambda: run(given))
    except BrokenPipeError:
        return 1
    except (CycloptsError, ValueError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        return complain(str(error))


def run(given: list[str]) -> int:
    """Inside `interrupts.interruptible`: what fails once a signal has come is told as the signal."""
    tokens = expand_config(given)
    try:
        code = app(tokens or ["--help"], exit_on_error=False, print_error=False, result_action="return_value")
    except MissingArgumentError as error:
        raise ValueError(misspelt(tokens) or str(error)) from None
    return code if isinstance(code, int) else 0


def misspelt(tokens: Sequence[str]) -> str:
    """A flag that the verb does not have: it is why another one seems to be missing. Empty where there is none."""
    known = {name for argument in app[tokens[0]].assemble_argument_collection() for name in argument.names}
    for token in tokens[1:]:
        name = token.partition("=")[0]
        if token.startswith("--") and name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            return f"Unknown option: {name}." + (f" Did you mean {near[0]}?" if near else "")
    return ""


def complain(message: str) -> int:
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(f"misdirect: {line if len(line) <= LONGEST_LINE else line[:LONGEST_LINE] + '...'}", file=sys.stderr)
    return 2
