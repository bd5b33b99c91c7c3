"""A run directory as one self-contained HTML page, and its pictures as files. Reads JSON only and imports no torch."""

from misdirect.reporting.page import figures, report

__all__ = ["figures", "report"]
