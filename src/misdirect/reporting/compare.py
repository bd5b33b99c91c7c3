"""Several runs on one page: `comparison.html`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Writes one page that sets several runs side by side, and returns `out`.

    Raises ValueError for fewer than two runs, the same folder twice, or a folder that is no run.
    """
    raise NotImplementedError(runs, out)
