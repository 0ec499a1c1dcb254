"""The memory for request bodies, bounded for one key and for all, from the first byte to the answer's end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bedplate_gateway import errors

BODIES: Final = 6
"""How many bodies of the largest size fit into memory at a time."""
BODIES_PER_KEY: Final = 3
"""How many of them may be one key's: the others keep room."""
RETRY_SECONDS: Final = 5.0


class BodyMemory:
    """Counts the bytes of the bodies that are read, checked, queued and sent."""

    def __init__(self, max_body_bytes: int) -> None:
        self._most = BODIES * max_body_bytes
        self._most_per_key = BODIES_PER_KEY * max_body_bytes
        self._bytes: dict[str, int] = {}
        self._total = 0

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
            if of_key > self._most_per_key:
                raise self._full("your key's requests", self._most_per_key)
            if self._total + more > self._most:
                raise self._full("all requests", self._most)
            self._bytes[alias] = of_key
            self._total += more
            held = size

        try:
            yield grow
        finally:
            self._total -= held
            left = self._bytes.pop(alias, 0) - held
            if left > 0:
                self._bytes[alias] = left

    def _full(self, owner: str, most: int) -> errors.ApiError:
        return errors.queue_full(f"The bodies of {owner} would take more than {most} bytes", RETRY_SECONDS)
