"""Every limit that decides between healthy and not; other modules only compare with them.

tests/unit/repository/test_thresholds.py ties those that alert rules or the page know too.
"""

from bedplate_dashboard.sources.collect import ANSWER_SECONDS

POLL_SECONDS = 2.0
STALE_SECONDS = 2 * POLL_SECONDS + ANSWER_SECONDS
"""Two missed polls and the timeout of one: after this time the last poll says nothing about now."""

FULL_RATIO = 0.05
"""A disk or memory with less than this share available counts as full."""

MISSED_SCRAPES = 4
"""After this many intervals without a stored sample Prometheus stores nothing; a restart takes less."""

GPU_RATIO = 0.99
"""The share of a loaded model that must be on the GPU of a host that has one."""

LONG_WAIT_SECONDS = 30.0
"""How long the oldest request of a class may wait; class `low` may wait without limit."""

UNLIMITED_WAIT_CLASS = "low"

REFUSAL_SECONDS = 10.0
"""A refusal within this time counts as a current fault."""

SERVER_REFUSALS = frozenset({"queue_full", "queue_timeout"})
"""Refusals that the client did not cause and that no other fault explains."""

FAILURE_SECONDS = 300.0
"""How long a failed request counts if no other request follows it."""

BLAME_SECONDS = 10.0
"""A request that failed up to this long before a fault was found counts as caused by that fault."""

BAD_UNIT_STATES = frozenset({"inactive", "failed"})

RESTART_UNIT_STATES = frozenset({"deactivating", "activating", "reloading"})

RESTART_SECONDS = 10.0
"""How long a restart of the gateway is no fault; clients wait meanwhile."""
