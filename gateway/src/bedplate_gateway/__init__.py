"""Bedplate's gateway: API keys, exact limits and priorities in front of inference engines."""
