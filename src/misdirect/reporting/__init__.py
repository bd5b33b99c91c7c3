"""A run directory as one self-contained HTML page, several runs compared on one, and the pictures as files.

Reads JSON only and imports no torch.
"""

from misdirect.reporting.content.comparison import compare
from misdirect.reporting.page import report, write_figures

__all__ = ["compare", "report", "write_figures"]
