"""Loads the package `traffic` first: pytest would take the folder of the same name for it."""

import traffic  # noqa: F401
