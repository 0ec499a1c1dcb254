"""Sends chat requests to an OpenAI-compatible endpoint and reports what came back."""
