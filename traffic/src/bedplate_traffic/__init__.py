"""Sends load to OpenAI-compatible endpoints and reports the results."""

__version__ = "0.1.0"
