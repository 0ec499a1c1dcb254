"""Bedplate's dashboard: sources (poll the stack) -> health (judge) -> web (page, API, metrics)."""

__version__ = "0.1.0"
