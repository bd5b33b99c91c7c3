"""What a run will take: time, memory and disk, before any weights are loaded."""

from misdirect.planning.form import Plan, table_rows

__all__ = ["Plan", "table_rows"]
