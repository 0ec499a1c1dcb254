"""The interface of admission: a request for a slot, its place in the queue, and its lease.

After a reload the old process submits its requests to the new one, through `reload.handover`, the same way.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from bedplate_gateway.admission.scheduler import Slot, Ticket
from bedplate_gateway.errors import ApiError, ClientDisconnected
from bedplate_gateway.keys import Key
from bedplate_gateway.settings import Engine, EngineModel, PriorityClass


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """A request for a slot: key, class, model, size of the prompt; `id` only where the client chose one."""

    key: Key
    priority_class: PriorityClass
    model: str
    prompt_bytes: int
    id: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the request for JSON, the key by its alias."""
        return {
            "alias": self.key.alias,
            "class": self.priority_class,
            "model": self.model,
            "prompt_bytes": self.prompt_bytes,
            "id": self.id,
        }


class Admission(Protocol):
    """The decisions. The result of `submit` comes by one of its callbacks, perhaps before it returns."""

    def submit(
        self,
        request: AdmissionRequest,
        on_grant: Callable[["Lease"], None],
        on_refuse: Callable[[ApiError], None],
    ) -> "QueuedRequest":
        """Request a slot."""

    def cancel(self, queued: "QueuedRequest") -> None:
        """Remove a request from the queue."""

    def touch(self, lease: "Lease") -> None:
        """Note that the request is alive."""

    def charge(self, lease: "Lease", tokens: int) -> None:
        """Count tokens."""

    def swap(self, lease: "Lease") -> bool:
        """Move the lease to another engine."""

    def requeue(
        self,
        lease: "Lease",
        on_grant: Callable[["Lease"], None],
        on_refuse: Callable[[ApiError], None],
    ) -> "QueuedRequest":
        """End a lease, whose engine is gone, and queue its request again, as `submit` does."""

    def release(self, lease: "Lease") -> None:
        """End the lease."""


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A request in the queue; `number` identifies it between processes, `counted_at` is for its refund."""

    admission: Admission
    number: int
    request: AdmissionRequest
    on_grant: Callable[["Lease"], None]
    on_refuse: Callable[[ApiError], None]
    counted_at: float
    ticket: Ticket | None = None

    def cancel(self) -> None:
        """Leave the queue; its count is refunded. Does nothing once the request was granted or refused."""
        self.admission.cancel(self)


@dataclass(eq=False, slots=True)
class Lease:
    """The right to run on an engine. `waited` is in seconds, `headers` are x-ratelimit ones of its start."""

    admission: Admission
    number: int
    request: AdmissionRequest
    slot: Slot
    waited: float
    headers: dict[str, str]
    started: float
    touched: float
    charged: int = 0

    @property
    def engine(self) -> Engine:
        """The engine of the current slot."""
        return self.slot.engine

    @property
    def model(self) -> EngineModel:
        """The model as declared on that engine."""
        return self.slot.model

    def touch(self) -> None:
        """Report that the request is alive; else `tick` ends the lease after a while."""
        self.admission.touch(self)

    def charge(self, tokens: int) -> None:
        """Count tokens as they flow."""
        self.charged += tokens
        self.admission.charge(self, tokens)

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Correct what was charged to the final usage."""
        self.charge(prompt_tokens + completion_tokens - self.charged)

    def swap(self) -> bool:
        """Move to a free slot of the model on another engine; False where there is none."""
        return self.admission.swap(self)

    def release(self) -> None:
        """End the lease; a second call does nothing."""
        self.admission.release(self)


async def acquire(
    admission: Admission, request: AdmissionRequest, on_disconnect: Callable[[Callable[[], None]], None]
) -> Lease:
    """Wait for a lease; raises ApiError where it is refused, ClientDisconnected where the client disconnects.

    `on_disconnect` gets what to call when the client disconnects. A failure leaves no entry and no lease.
    """
    return await _granted(partial(admission.submit, request), on_disconnect)


async def acquire_again(lease: Lease, on_disconnect: Callable[[Callable[[], None]], None]) -> Lease:
    """Give a lease up, whose engine is gone, and wait for another one, as `acquire` does."""
    return await _granted(partial(lease.admission.requeue, lease), on_disconnect)


async def _granted(
    queue: Callable[[Callable[[Lease], None], Callable[[ApiError], None]], QueuedRequest],
    on_disconnect: Callable[[Callable[[], None]], None],
) -> Lease:
    result: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()

    def grant(lease: Lease) -> None:
        # The client can disconnect in the same turn of the event loop.
        if result.done():
            lease.release()
        else:
            result.set_result(lease)

    def fail(error: ApiError | ClientDisconnected) -> None:
        if not result.done():
            result.set_exception(error)

    queued = queue(grant, fail)
    if result.done():
        return result.result()
    on_disconnect(lambda: fail(ClientDisconnected()))
    try:
        return await result
    except ClientDisconnected:
        queued.cancel()
        raise
    except asyncio.CancelledError:
        if result.done() and not result.cancelled() and result.exception() is None:
            result.result().release()
        else:
            queued.cancel()
        raise
