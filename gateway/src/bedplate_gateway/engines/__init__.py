"""The engines: their state, the requests to them, and their answers."""
