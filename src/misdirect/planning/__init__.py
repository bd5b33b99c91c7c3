"""What a run will take in time, memory and disk, before any weights are loaded."""

from misdirect.planning.estimate import plan
from misdirect.planning.table import COLUMNS, Plan, heading, lines, table_rows

__all__ = ["COLUMNS", "Plan", "heading", "lines", "plan", "table_rows"]
