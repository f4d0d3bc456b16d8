"""A verdict as one HTML page that people can read."""

from passportize.report.page import write_report

__all__ = ["write_report"]
