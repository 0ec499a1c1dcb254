"""Bedplate's dashboard: sources (poll the stack) -> health (judge) -> web (page, API, metrics)."""
