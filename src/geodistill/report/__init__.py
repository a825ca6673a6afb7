"""The HTML report of a run."""

from geodistill.report.page import write_report

__all__ = ["write_report"]
