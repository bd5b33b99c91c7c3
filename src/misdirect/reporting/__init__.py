"""Run directories and audits -> one HTML page, a comparison, figures, a model card.

Reads JSON only and imports no torch.
"""

from misdirect.reporting.content.comparison import compare
from misdirect.reporting.page import report, write_figures

__all__ = ["compare", "report", "write_figures"]
