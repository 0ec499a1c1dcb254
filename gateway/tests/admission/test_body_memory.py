from contextlib import ExitStack

import pytest
from bedplate_gateway.admission.body_memory import BODIES, BodyMemory
from bedplate_gateway.errors import ApiError
from hypothesis import given, settings
from hypothesis import strategies as st

KIB, MIB = 1024, 1024 * 1024
MOST = BODIES * 16 * MIB
ROOM = {0: 48 * MIB, 2: 8 * MIB, 10: 512 * KIB, 50: 16 * KIB, 100: 4 * KIB}
"""What a key may bring at least, by the number of others that take all they can, as docs/reference/api.md."""


class Keys:
    """Keys that take and give back memory."""

    def __init__(self) -> None:
        self.memory = BodyMemory(16 * MIB)
        self.stacks: dict[str, list[ExitStack]] = {}

    def take(self, alias: str, size: int) -> bool:
        """Bring a body of a key; return whether there was room."""
        stack = ExitStack()
        grow = stack.enter_context(self.memory.hold(alias))
        try:
            grow(size)
        except ApiError:
            stack.close()
            return False
        self.stacks.setdefault(alias, []).append(stack)
        return True

    def take_all(self, alias: str) -> None:
        """Bring bodies of a key until there is no room for one more byte."""
        size = MOST
        while size:
            if not self.take(alias, size):
                size //= 2

    def give_back(self, alias: str) -> None:
        """End the key's latest request."""
        if self.stacks.get(alias):
            self.stacks[alias].pop().close()


def test_one_key_takes_half_of_the_memory() -> None:
    memory = BodyMemory(10)
    with memory.hold("a") as first, memory.hold("a") as second:
        first(10)
        second(20)
        with pytest.raises(ApiError) as caught:
            second(21)
        error = caught.value
        assert (error.status, error.code, error.all_headers()["retry-after"]) == (429, "queue_full", "5")
        assert "your key's requests would take 31 bytes" in error.message
    with memory.hold("a") as again:
        again(30)


@pytest.mark.parametrize("others", ROOM)
def test_however_many_keys_take_all_they_can_another_finds_room(others: int) -> None:
    keys = Keys()
    for number in range(others):
        keys.take_all(f"hostile {number}")
    assert keys.take("honest", ROOM[others])
    assert not keys.take("honest", 2 * ROOM[others])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 16 * MIB)), max_size=60))
def test_ten_keys_leave_room_in_whatever_order_they_take_and_give_back(
    steps: list[tuple[int, int]],
) -> None:
    keys = Keys()
    for number, size in steps:
        if size:
            keys.take(f"hostile {number}", size)
        else:
            keys.give_back(f"hostile {number}")
    for number in range(10):
        keys.take_all(f"hostile {number}")
    assert keys.take("honest", ROOM[10])


def test_no_more_is_held_than_the_ceiling() -> None:
    keys = Keys()
    sizes = [1 * MIB] * 1000
    held = sum(size for number, size in enumerate(sizes) if keys.take(f"key {number}", size))
    assert 0.9 * MOST < held < MOST


def test_a_body_that_turns_out_smaller_than_declared_keeps_what_it_took() -> None:
    memory = BodyMemory(10)
    with memory.hold("a") as grow:
        grow(30)
        grow(1)
        with memory.hold("a") as more, pytest.raises(ApiError):
            more(1)
