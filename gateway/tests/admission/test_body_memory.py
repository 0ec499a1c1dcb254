import pytest
from bedplate_gateway.admission.body_memory import BodyMemory
from bedplate_gateway.errors import ApiError


def test_the_bodies_of_one_key_are_bounded_and_leave_room_for_others() -> None:
    memory = BodyMemory(10)
    with memory.hold("a") as first, memory.hold("a") as second, memory.hold("b") as other:
        first(10)
        second(20)
        with pytest.raises(ApiError) as caught:
            second(21)
        error = caught.value
        assert (error.status, error.code, error.all_headers()["retry-after"]) == (429, "queue_full", "5")
        assert "your key's requests would take more than 30 bytes" in error.message
        other(30)
        with memory.hold("c") as late, pytest.raises(ApiError, match="all requests"):
            late(1)
    with memory.hold("a") as again:
        again(30)


def test_a_body_that_turns_out_smaller_than_declared_keeps_what_it_took() -> None:
    memory = BodyMemory(10)
    with memory.hold("a") as grow:
        grow(30)
        grow(1)
        with memory.hold("a") as more, pytest.raises(ApiError):
            more(1)
