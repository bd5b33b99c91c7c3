"""What a run will take: time, memory and disk, before any weights are loaded."""

from misdirect.planning.form import COLUMNS, Plan, heading, lines, table_rows
from misdirect.planning.run import plan, unlearn_line

__all__ = ["COLUMNS", "Plan", "heading", "lines", "plan", "table_rows", "unlearn_line"]
