"""A restart of the gateway that somebody wants is told from a stop and from a crash."""

import dataclasses
from datetime import timedelta

import pytest
from bedplate_dashboard.health.restart import hold, remember
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Observation

from dashboard_app.tests.situations import gateway, machine

SILENT = gateway("failed", "no answer within 1.5 s")


def unit(observation: Observation, state: str, restarts: int = 0, after: float = 0.0) -> Observation:
    """Return the observation some seconds later, with the state of the gateway's unit."""
    name = 'name="bedplate-gateway.service"'
    changed = machine(
        f'node_systemd_unit_state{{{name},state="{state}",type="notify"}} 1',
        f"node_systemd_service_restart_total{{{name}}} {restarts}",
    )(observation)
    return dataclasses.replace(changed, at=observation.at + timedelta(seconds=after))


@pytest.mark.parametrize(
    ("shown", "held"),
    [
        (("deactivating", 0, 2), True),
        (("activating", 0, 4), True),
        # It was stopped.
        (("inactive", 0, 2), False),
        # It runs and hangs.
        (("active", 0, 2), False),
        # It died, and systemd starts it again.
        (("activating", 1, 2), False),
        # It does not come back.
        (("activating", 0, 11), False),
    ],
)
def test_the_last_answer_counts_during_a_restart_only(
    settings: Settings, all_well: Observation, shown: tuple[str, int, float], held: bool
) -> None:
    settings = settings.model_copy(update={"gateway": "gpu1"})
    before = unit(all_well, "active")
    last = remember(settings, before, None)
    during = unit(SILENT(all_well), *shown)
    assert remember(settings, during, last) is last
    assert hold(settings, during, last) == (
        dataclasses.replace(during, gateway=before.gateway) if held else during
    )


def test_nothing_is_held_before_the_first_answer(settings: Settings, all_well: Observation) -> None:
    during = unit(SILENT(all_well), "activating")
    assert hold(settings, during, remember(settings, during, None)) is during
