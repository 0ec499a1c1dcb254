"""The error that stops a command before it sends anything."""


class CannotStartError(Exception):
    """Nothing can be sent; the message is one sentence that names the remedy."""
