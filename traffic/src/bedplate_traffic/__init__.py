"""Sends load to OpenAI-compatible endpoints and reports the results."""
