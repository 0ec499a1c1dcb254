"""The one error that a user of the lab sees."""


class LabError(Exception):
    """One sentence that names what is wrong and the remedy; it is printed without a traceback."""
