"""Tables of numbers with their intervals. Whoever writes one sets brackets and markup, and knows no metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from misdirect.reporting.wording import NONE, Number


class Cell(NamedTuple):
    """A text or number, what stands below it in its cell, a tag that it carries, and how many columns it spans."""

    value: str | Number = NONE
    below: Sequence[str] = ()
    tag: str = ""
    span: int = 1

    @property
    def text(self) -> str:
        return self.value.text if isinstance(self.value, Number) else self.value

    @property
    def told(self) -> list[str]:
        """The interval and what else stands below."""
        interval = self.value.interval if isinstance(self.value, Number) else ""
        return [text for text in (interval, *self.below) if text]


class Row(NamedTuple):
    """`mark`: "headline" for the metric by which a set is judged, "silent" for what says nothing."""

    cells: Sequence[str | Number | Cell]
    mark: str = ""


class Line(NamedTuple):
    """A row as a writer takes it."""

    cells: Sequence[Cell]
    mark: str


class Table(NamedTuple):
    """`words`: how many columns from the left hold words, `last` from the right; the others hold numbers. None: none does."""

    head: Sequence[str]
    rows: Sequence[Row | Sequence[str | Number | Cell]]
    words: int | None = None
    last: int = 0

    @property
    def lines(self) -> list[Line]:
        rows = [row if isinstance(row, Row) else Row(row) for row in self.rows]
        return [Line([x if isinstance(x, Cell) else Cell(x) for x in row.cells], row.mark) for row in rows]

    def is_number(self, column: int, columns: int | None = None) -> bool:
        """Of a row with `columns` cells, which are fewer than titles where one spans several."""
        return self.words is not None and self.words <= column < (columns or len(self.head)) - self.last


def in_line(value: str | Number | Cell) -> str:
    """`62.5 % (55.1 to 69.4 %, at step 60)`.

    >>> in_line(Cell(Number("9 %", "5", "11", " %"), ["at step 60"]))
    '9 % (5 to 11 %, at step 60)'
    """
    cell = value if isinstance(value, Cell) else Cell(value)
    return f"{cell.text} ({', '.join(cell.told)})" if cell.told else cell.text


def joined(numbers: Sequence[Number]) -> str:
    """`64.2 → 31.2 %`: the unit once; empty where there is none."""
    return " \u2192 ".join(each.bare for each in numbers) + numbers[0].unit if numbers else ""
