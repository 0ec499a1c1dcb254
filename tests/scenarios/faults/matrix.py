"""The table of faults: what is broken, what a client gets meanwhile, who says so, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

RESTART_SECONDS = 30.0
# How long a service may hang until the watchdog, or bedplate-heal, restarts it.
WATCHDOG_SECONDS = 45.0
HEAL_SECONDS = 75.0
MODEL = "smollm2:135m"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row.

    `meanwhile` is a pattern of what a chat request gets during the fault: its status, or the client's error.
    `sentence` is a pattern of what the dashboard says, `alert` an alert with its subject; None where the
    fault ends before anybody can look, or stops the one that would say it. Without `repair` it ends by
    itself. `seconds` is how long it may take until all is well again. `make test` has the `quick` rows.
    """

    name: str
    inject: str
    repair: str = ""
    meanwhile: str = "200"
    sentence: str | None = None
    alert: str | None = None
    seconds: float = RESTART_SECONDS
    quick: bool = False


def _kill(service: str) -> str:
    return f"systemctl kill --signal=KILL {service}"


def _hang(service: str) -> str:
    return f"systemctl kill --signal=STOP {service}"


def _stopped(service: str, **row: str | None) -> Fault:
    return Fault(
        name=f"{service} stopped",
        inject=f"systemctl stop {service}",
        repair=f"systemctl start {service}",
        **{"alert": f"ServiceDown {service}.service", **row},  # type: ignore[arg-type] # no numbers among them
    )


KILLED = (
    # Clients wait at the gateway's socket, which systemd keeps.
    Fault(name="gateway killed", inject=_kill("bedplate-gateway"), quick=True),
    Fault(name="edge killed", inject=_kill("bedplate-edge"), meanwhile="ConnectError|ReadError", quick=True),
    Fault(name="LiteLLM killed", inject=_kill("litellm"), seconds=90),
    Fault(name="Ollama killed", inject=_kill("ollama"), meanwhile="200|503"),
    Fault(name="exporter killed", inject=_kill("bedplate-exporter")),
    Fault(name="node exporter killed", inject=_kill("node-exporter")),
    Fault(name="Prometheus killed", inject=_kill("prometheus")),
    Fault(name="dashboard killed", inject=_kill("bedplate-dashboard")),
)
HUNG = (
    Fault(
        name="gateway hung",
        inject=_hang("bedplate-gateway"),
        sentence="the gateway does not work",
        alert="TargetDown gateway",
        seconds=WATCHDOG_SECONDS + RESTART_SECONDS,
        quick=True,
    ),
    Fault(
        name="edge hung",
        inject=_hang("bedplate-edge"),
        alert="TargetDown edge",
        meanwhile="ConnectError|ConnectTimeout",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="LiteLLM hung",
        inject=_hang("litellm"),
        sentence="LiteLLM does not answer|LiteLLM did not answer",
        alert="LitellmBypassed gateway",
        meanwhile="200|504",
        seconds=HEAL_SECONDS + 90,
    ),
    Fault(
        name="Ollama hung",
        inject=_hang("ollama"),
        sentence="the engine on one hangs",
        alert=f"ModelUnavailable {MODEL}",
        meanwhile="200|50[34]",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="exporter hung",
        inject=_hang("bedplate-exporter"),
        sentence="the exporter on one does not work",
        alert="TargetDown ollama",
        seconds=WATCHDOG_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="node exporter hung",
        inject=_hang("node-exporter"),
        sentence="the node exporter on one does not work",
        alert="TargetDown node",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="Prometheus hung",
        inject=_hang("prometheus"),
        sentence="Prometheus does not answer",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="dashboard hung",
        inject=_hang("bedplate-dashboard"),
        alert="TargetDown dashboard",
        seconds=WATCHDOG_SECONDS + RESTART_SECONDS,
    ),
)
STOPPED = (
    _stopped("bedplate-gateway", sentence="the gateway does not work", meanwhile="503"),
    _stopped("bedplate-edge", meanwhile="ConnectError"),
    _stopped("litellm", sentence="LiteLLM does not answer|LiteLLM did not answer"),
    _stopped("ollama", sentence="the engine on one is down", meanwhile="503"),
    _stopped("bedplate-exporter", sentence="the exporter on one does not work"),
    _stopped("node-exporter", sentence="the node exporter on one does not work", alert="TargetDown node"),
    _stopped("prometheus", sentence="Prometheus does not answer", alert=None),
    _stopped("bedplate-dashboard"),
)
CUT = (
    "nft 'add table inet fault; add chain inet fault output { type filter hook output priority 0; };"
    " add rule inet fault output tcp dport 11434 %s drop'"
)
HEAL_NETWORK = "nft delete table inet fault"
RESOURCES = (
    Fault(
        name="journald hung",
        inject="systemctl kill --signal=STOP systemd-journald",
        repair="systemctl kill --signal=CONT systemd-journald",
        quick=True,
    ),
    Fault(
        name="/run full",
        # What others free is taken at once.
        inject=(
            "mount -o remount,size=$(( $(df --output=used --block-size=1K /run | tail -n 1) + 64 ))K /run;"
            " systemd-run --quiet --unit=fake-filler sh -c"
            " 'while :; do cat /dev/zero >>/run/fill; sleep 0.1; done' 2>/dev/null;"
            " sleep 1; systemctl reload bedplate-gateway"
        ),
        repair="systemctl stop fake-filler; rm /run/fill; mount -o remount,size=20% /run",
        alert="LimitsNotSaved gateway",
        quick=True,
    ),
    Fault(
        name="disk full",
        inject="mount -t tmpfs -o size=4m fault /srv; cat /dev/zero >/srv/fill 2>/dev/null || true",
        repair="umount -l /srv",
        sentence="/srv on one is full",
        alert="DiskFull /srv",
    ),
    Fault(
        name="a fifth of the packets to the engine lost",
        inject=CUT % "numgen random mod 100 < 20",
        repair=HEAL_NETWORK,
    ),
    Fault(
        name="engine cut off",
        inject=CUT % "meta skuid { bedplate-gateway, litellm }",
        repair=HEAL_NETWORK,
        # The request was sent before the gateway noticed.
        meanwhile="50[34]|ReadTimeout",
        alert=f"ModelUnavailable {MODEL}",
    ),
    Fault(
        name="needrestart restarts what it may",
        inject="systemctl restart bedplate-gateway litellm bedplate-edge prometheus node-exporter",
        meanwhile="200|ConnectError|ReadError|RemoteProtocolError",
    ),
)
TABLE = (*KILLED, *HUNG, *STOPPED, *RESOURCES)
