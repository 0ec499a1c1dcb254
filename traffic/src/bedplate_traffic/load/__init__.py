"""Sends the load that a profile describes, and measures it."""
