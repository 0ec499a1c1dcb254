"""Loads OpenAI-compatible endpoints and reports what came back."""

__version__ = "0.1.0"
