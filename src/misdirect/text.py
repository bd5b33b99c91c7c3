"""Text that is safe to print or to publish: one line, escapes, durations, sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

NONCHARACTERS = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
# what a page or terminal must not get: control characters, lone surrogates, direction overrides, noncharacters
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069" + NONCHARACTERS + "]")

LONGEST_NAME = 310
MOST_NAMES = 12  # of a list in a note or complaint


def duration(seconds: float | int) -> str:
    """`0.4 s`, `12 s`, `103 s`, `4.2 min`, `3.1 h`, `2.4 days`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 179.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size(number: float | int) -> str:
    """Bytes as `870 kB`, `12 MB`, `1.4 GB`, `280 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= 0.9995 * scale:
            value = number / scale
            return f"{value:.1f} {unit}" if value < 9.95 else f"{value:,.0f} {unit}"
    return f"{number:.0f} bytes"


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: a JSON escape such as \\ud800 alone cannot, and no tokenizer takes it."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def shown(value: Any, limit: int = LONGEST_NAME) -> str:
    """`value` as text that may go to a terminal: one line, escapes for all that does not print, its middle left out."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[len(text) - limit // 2 :]}"
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def one_line(text: str, width: int) -> str:
    """The beginning of `text`, `width` characters at most, nothing in it that a terminal would obey."""
    line = shown(text[:width])
    return line if len(text) <= width and len(line) <= width else line[: width - 3] + "..."


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(shown(name, 30) for name in names[:MOST_NAMES]) + more


def reason(error: BaseException) -> str:
    """The first line of what a library says, without the file's name, which stands beside it."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__), 160)


def clean(data: Any) -> Any:
    """JSON data with every string, keys too, freed of what is `UNPRINTABLE`, and null for numbers that are not finite;
    lines end with \\n."""
    if isinstance(data, str):
        return UNPRINTABLE.sub("", data.replace("\r\n", "\n"))
    if isinstance(data, Mapping):
        return {clean(key): clean(value) for key, value in data.items()}
    if isinstance(data, list):
        return [clean(value) for value in data]
    if isinstance(data, float):
        return data if data - data == 0 else None
    return data


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
