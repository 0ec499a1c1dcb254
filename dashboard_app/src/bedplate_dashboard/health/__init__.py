"""Judges what `sources` read: facts, faults, the request path and the state. All thresholds are here."""
