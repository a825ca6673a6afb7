"""What a run looks like to a reader."""

from geodistill.report.page import write_report

__all__ = ["write_report"]
