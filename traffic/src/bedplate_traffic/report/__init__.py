"""The report of a run: its JSON model, and the forms in which it is shown."""
