"""A restart of the gateway is no fault: its clients wait, so its last answer counts until it is back.

A stopped gateway is inactive, and for one that died systemd counts a restart.
"""

from dataclasses import dataclass, replace

from bedplate_dashboard.health.facts import list_services
from bedplate_dashboard.health.model import Service
from bedplate_dashboard.health.thresholds import RESTART_SECONDS, RESTART_UNIT_STATES
from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources.collect import Observation


@dataclass(frozen=True)
class LastAnswer:
    """The last poll that the gateway answered, and how often systemd had restarted it by then."""

    observation: Observation
    restarts: int | None


def remember(settings: Settings, observation: Observation, last: LastAnswer | None) -> LastAnswer | None:
    """Return what to keep for the next poll."""
    if not observation.gateway.contact.ok:
        return last
    unit = _find_unit(settings, observation)
    return LastAnswer(observation, unit.restarts if unit else None)


def hold(settings: Settings, observation: Observation, last: LastAnswer | None) -> Observation:
    """Return the observation with the gateway's last answer while systemd restarts it for somebody."""
    unit = _find_unit(settings, observation)
    if observation.gateway.contact.ok or last is None or unit is None:
        return observation
    recent = (observation.at - last.observation.at).total_seconds() <= RESTART_SECONDS
    if recent and unit.state in RESTART_UNIT_STATES and unit.restarts == last.restarts:
        return replace(observation, gateway=last.observation.gateway)
    return observation


def _find_unit(settings: Settings, observation: Observation) -> Service | None:
    return next(
        (
            service
            for answer in observation.machines
            if answer.name == settings.gateway
            for service in list_services(answer.metrics)
            if service.name == "bedplate-gateway"
        ),
        None,
    )
