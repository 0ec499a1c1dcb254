"""The memory for request bodies, bounded for one key and for all, from the first byte to the answer's end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bedplate_gateway import errors

BODIES: Final = 6
"""How many bodies of the largest size fit into memory at a time; one key's are half of them at most."""
RETRY_SECONDS: Final = 5.0


class BodyMemory:
    """Counts the bytes of the bodies that are read, checked, queued and sent.

    One key may hold the less, the less is free: with the square, so that however many keys take all they can,
    the next one finds room.
    """

    def __init__(self, max_body_bytes: int) -> None:
        self._most = BODIES * max_body_bytes
        self._bytes: dict[str, int] = {}
        self._free = self._most

    @contextmanager
    def hold(self, alias: str) -> Iterator[Callable[[int], None]]:
        """Yield what takes memory for a body up to a size; it raises ApiError 429 where there is no room."""
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            more = size - held
            if more <= 0:
                return
            of_key = self._bytes.get(alias, 0) + more
            free = max(0, self._free - more)
            if of_key * self._most > 2 * free**2:
                raise errors.queue_full(
                    f"The bodies of your key's requests would take {of_key} bytes of the gateway's memory, "
                    "too much for what is free there",
                    RETRY_SECONDS,
                )
            self._bytes[alias] = of_key
            self._free = free
            held = size

        try:
            yield grow
        finally:
            self._free += held
            left = self._bytes.pop(alias, 0) - held
            if left > 0:
                self._bytes[alias] = left
