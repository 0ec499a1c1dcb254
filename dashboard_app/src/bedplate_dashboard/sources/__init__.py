"""Reads the stack: polls its services and validates their answers. Judges nothing."""
