"""Bedplate's part of the gateway: who may call, and how LiteLLM is started."""
