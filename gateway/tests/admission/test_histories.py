"""Simulated histories: what holds of limits, slots and order, whatever fails."""

import asyncio
import os
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from bedplate_gateway.admission.limits import WINDOW_SECONDS
from bedplate_gateway.settings import PRIORITY_CLASSES

from gateway.tests.admission.simulation import SHARE, SLOTS, Entry, History, Request, Simulation

HISTORIES = int(os.environ.get("HISTORIES", "1000"))
"""`make test-all` simulates 100,000."""

GROUPS = 10
ENDS = ("refused", "cancelled", "ended", "lost")


class Checker:
    """Reads a history from its beginning; raises AssertionError at the first entry that is wrong."""

    def __init__(self, history: History) -> None:
        self.requests = history.requests
        self.entries = history.entries
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, str] = {}
        self.counted: defaultdict[str, list[float]] = defaultdict(list)
        self.charged: defaultdict[str, list[Entry]] = defaultdict(list)
        self.under_way: list[tuple[str, Entry]] = []
        self.submitted_at: dict[int, float] = {}
        self.forgot_at = 0.0
        self.known: set[int] = set()
        self.order: dict[tuple[int, str, str, str], int] = {}
        self.skipped: int | None = 0
        self.drained: dict[str, bool] = {}
        """Whether every process has heard of all that was decided before the drain, by engine."""

    def check(self) -> None:
        """Check every entry against those before it."""
        for entry in self.entries:
            request = self.requests.get(entry.request)
            if request is None:
                self._note(entry)
            elif entry.event == "submitted":
                self.waiting[request.number] = request
                self.submitted_at[request.number] = entry.at
            elif entry.event == "granted":
                self._grant(entry, request)
            elif entry.event == "moved":
                self._occupy(entry, request)
            elif entry.event == "charged":
                self.charged[request.key.alias].append(entry)
                self.under_way.append((request.key.alias, entry))
            else:
                self._end(entry)
        assert not self.waiting
        assert not self.running

    def _note(self, entry: Entry) -> None:
        match entry.event:
            case "delivered":
                self.known |= self.waiting.keys()
                self.under_way.clear()
                self.drained = dict.fromkeys(self.drained, True)
            case "drained":
                self.drained[entry.engine] = False
            case "undrained":
                del self.drained[entry.engine]
            case "alone":
                self.skipped = 0
                # What one process had told the other, and the other had not read, is lost with it.
                for alias, lost in self.under_way:
                    self.charged[alias].remove(lost)
                self.under_way.clear()
            case "took over":
                # Replies to the process before come late, so the order of grants cannot be seen.
                self.skipped = None
            case "forgot":
                self.counted.clear()
                self.charged.clear()
                self.under_way.clear()
                self.forgot_at = entry.at

    def _end(self, entry: Entry) -> None:
        """Check that a request ends once: one that waits by an answer, one that runs by its end."""
        assert entry.event in ENDS
        place = self.running if entry.event == "ended" or entry.request in self.running else self.waiting
        assert entry.request in place, f"{entry}: the request has ended before"
        assert entry.event != "refused" or place is self.waiting, f"{entry}: answered twice"
        del place[entry.request]

    def _grant(self, entry: Entry, request: Request) -> None:
        assert request.number in self.waiting, f"{entry}: granted twice, or after its end"
        del self.waiting[request.number]
        self._check_requests(entry, request)
        self._check_tokens(entry, request)
        self._check_order(entry, request)
        self._check_share(entry, request)
        self._occupy(entry, request)

    def _occupy(self, entry: Entry, request: Request) -> None:
        """Check that the engine is not drained and has the slot, and the key may run one more."""
        assert entry.engine not in self.drained or (entry.late and not self.drained[entry.engine]), (
            f"{entry}: the engine is drained"
        )
        self.running[request.number] = entry.engine
        running = [self.requests[number] for number in self.running]
        at_place = Counter((self.running[each.number], each.model) for each in running)
        assert at_place[entry.engine, request.model] <= SLOTS[entry.engine][request.model], (
            f"{entry}: the slot was taken"
        )
        of_key = sum(each.key is request.key for each in running)
        assert of_key <= (request.key.max_parallel or of_key), f"{entry}: above max_parallel"

    def _check_requests(self, entry: Entry, request: Request) -> None:
        """Check that no 60 s contain the submission of more than rpm requests that were served."""
        at = self.submitted_at[request.number]
        if request.key.rpm is None or at < self.forgot_at:
            return
        counted = self.counted[request.key.alias]
        counted.append(at)
        counted.sort()
        most = max(sum(begin <= other < begin + WINDOW_SECONDS for other in counted) for begin in counted)
        assert most <= request.key.rpm, f"{entry}: {most} requests in 60 s"

    def _check_tokens(self, entry: Entry, request: Request) -> None:
        """Check that the key had used less than tpm in the last 60 s; what is charged now may come late."""
        used = sum(
            each.tokens
            for each in self.charged[request.key.alias]
            if entry.at - WINDOW_SECONDS < each.at < entry.at
        )
        assert used < (request.key.tpm or used + 1), f"{entry}: {used} tokens in 60 s"

    def _check_order(self, entry: Entry, request: Request) -> None:
        """Check that a key's requests of one kind start in the order in which they came."""
        kind = (request.sender, request.key.alias, request.priority_class, request.model)
        assert self.order.get(kind, 0) < request.number, f"{entry}: overtook an earlier request of its key"
        self.order[kind] = request.number

    def _check_share(self, entry: Entry, request: Request) -> None:
        """Check that lower classes get their share of the slots for which they wait."""
        if self.skipped is None:
            return
        rank = PRIORITY_CLASSES.index(request.priority_class)
        ranks = [
            (PRIORITY_CLASSES.index(each.priority_class), each)
            for each in self.waiting.values()
            if each.number in self.known
        ]
        if any(other < rank for other, _ in ranks):
            self.skipped = 0
        elif any(
            other > rank and each.model == request.model and each.key.alias in ("free", "other")
            for other, each in ranks
        ):
            self.skipped += 1
            assert self.skipped <= len(SLOTS) * (SHARE - 1), f"{entry}: a lower class does not get its share"


def run(seed: int, folder: Path) -> History:
    """Return the history of a seed."""
    return asyncio.run(Simulation(seed, folder).run())


@pytest.mark.parametrize("group", range(GROUPS))
def test_histories(group: int, tmp_path: Path) -> None:
    """Each group has seeds of its own, so that the groups run beside each other."""
    seen: Counter[str] = Counter()
    for seed in range(group, HISTORIES, GROUPS):
        for left in tmp_path.glob("usage*"):
            left.unlink()
        try:
            history = run(seed, tmp_path)
            Checker(history).check()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        seen.update(entry.event for entry in history.entries)
    # A simulation in which nothing happens proves nothing.
    kinds = (*ENDS, "granted", "moved", "drained", "undrained", "took over", "alone", "forgot")
    assert min(seen[event] for event in kinds) > 0
