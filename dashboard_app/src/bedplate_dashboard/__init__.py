"""Bedplate's dashboard: collect (ask the stack) -> state (judge) -> web (page, API, metrics)."""

__version__ = "0.1.0"
