"""The table of faults: what is broken, what a client gets meanwhile, who says so, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass

SENTENCE_SECONDS = 10.0
"""From the fault: a poll each 2 s, its time-out, and the 5 s within which the page shows it."""
ALERT_SECONDS = 30.0
"""For the longest `for` of the scenario, which is a twentieth, two scrapes and an evaluation."""
CLOCK_ALERT_SECONDS = 255.0
"""This alert's `for` is 75 minutes: a clock that is right again is believed after an hour."""
RESTART_SECONDS = 30.0
# How long a service may hang until the watchdog, or bedplate-heal, restarts it.
WATCHDOG_SECONDS = 45.0
HEAL_SECONDS = 75.0
MODEL = "smollm2:135m"
STORE = "/var/lib/prometheus/bedplate"
STATE = "/var/lib/bedplate-gateway"
TEXTFILES = "/var/lib/node-exporter/textfile"
KEYS = "/etc/bedplate/bedplate-gateway/keys.json"
SETTINGS = "/etc/bedplate/bedplate-gateway/gateway.json"
EDGE = "/etc/bedplate/bedplate-edge/haproxy.cfg"
CERTIFICATE = "/etc/bedplate/bedplate-edge/server.pem"
LITELLM = "/etc/bedplate/litellm/config.yaml"
PROMETHEUS = "/etc/bedplate/prometheus/prometheus.yml"
DASHBOARD = "/etc/bedplate/bedplate-dashboard/config.json"
BLOB = "$(ls -S /var/lib/ollama/models/blobs/sha256-* | head -n 1)"
NO_GATEWAY = "the gateway does not work"
NO_PROMETHEUS = "Prometheus does not answer"
NO_NODE_EXPORTER = "the node exporter on one does not work"
NO_LITELLM = "LiteLLM does not answer|LiteLLM did not answer"
CUT_OFF = "ConnectError|ReadError|ConnectTimeout|RemoteProtocolError"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One row.

    `meanwhile` is a pattern of what a chat request gets during the fault: its status, or the client's error.
    `sentence` is a pattern of what the dashboard says, `alert` an alert with its subject; None where the
    fault ends before anybody can look, or stops the one that would say it. Without `repair` it ends by
    itself, and `clean_up` removes afterwards what caused it. `seconds` is how long it may take until all is
    well again. `make test` has the `quick` rows.
    """

    name: str
    inject: str
    repair: str = ""
    clean_up: str = ""
    meanwhile: str = "200"
    sentence: str | None = None
    sentence_seconds: float = SENTENCE_SECONDS
    alert: str | None = None
    alert_seconds: float = ALERT_SECONDS
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
        sentence=NO_GATEWAY,
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
        sentence=NO_LITELLM,
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
        sentence=NO_NODE_EXPORTER,
        alert="TargetDown node",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="Prometheus hung",
        inject=_hang("prometheus"),
        sentence=NO_PROMETHEUS,
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
    _stopped("bedplate-gateway", sentence=NO_GATEWAY, meanwhile="503"),
    _stopped("bedplate-edge", meanwhile="ConnectError"),
    _stopped("litellm", sentence=NO_LITELLM),
    _stopped("ollama", sentence="the engine on one is down", meanwhile="503"),
    _stopped("bedplate-exporter", sentence="the exporter on one does not work"),
    _stopped("node-exporter", sentence=NO_NODE_EXPORTER, alert="TargetDown node"),
    _stopped("prometheus", sentence=NO_PROMETHEUS, alert=None),
    _stopped("bedplate-dashboard"),
)


def _drop(hook: str, packets: str) -> str:
    """Return what drops these packets of the host."""
    chain = f"add chain inet fault {hook} {{ type filter hook {hook} priority 0; }}"
    return f"nft 'add table inet fault; {chain}; add rule inet fault {hook} {packets} drop'"


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
            " sleep 1; systemctl reload bedplate-gateway; sleep 1"
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
        inject=_drop("output", "tcp dport 11434 numgen random mod 100 < 20"),
        repair=HEAL_NETWORK,
    ),
    Fault(
        name="engine cut off",
        inject=_drop("output", "tcp dport 11434 meta skuid { bedplate-gateway, litellm }"),
        repair=HEAL_NETWORK,
        # The request was sent before the gateway noticed, or tried again.
        meanwhile="50[23]",
        alert=f"ModelUnavailable {MODEL}",
    ),
    Fault(
        name="needrestart restarts what it may",
        inject="systemctl restart bedplate-gateway litellm bedplate-edge prometheus node-exporter",
        meanwhile="200|ConnectError|ReadError|RemoteProtocolError",
        seconds=90,
    ),
)


def _cut_short(file: str) -> str:
    """Return what leaves half of a file, as an interrupted copy does."""
    return f"cp --preserve {file} {file}.whole; truncate --size=$(( $(stat --format=%s {file}) / 2 )) {file};"


def _whole(file: str) -> str:
    return f"mv {file}.whole {file};"


def _children(service: str) -> str:
    return f"$(pgrep --parent $(systemctl show --property=MainPID --value {service}))"


def _mount(directory: str, options: str, owner: str) -> str:
    """Return what mounts an empty file system over a directory of a user."""
    return f"mount -t tmpfs -o {options},mode=750,uid={owner},gid={owner} fault {directory};"


def _fill(directory: str) -> str:
    return f"cat /dev/zero >{directory}/fill 2>/dev/null || true;"


def _take_port(service: str, port: int, address: str = "127.0.0.1") -> str:
    """Return what lets another program take the port of a service that starts."""
    return (
        f"systemctl stop {service};"
        f" systemd-run --quiet --unit=fake-stranger python3 -m http.server --bind {address} {port};"
        f" sleep 2; systemctl start --no-block {service}"
    )


GIVE_PORT_BACK = "systemctl stop fake-stranger"
PROCESSES = (
    Fault(name="Ollama's runner killed", inject=f"kill -KILL {_children('ollama')}", meanwhile="200|50[0-4]"),
    Fault(
        name="edge's worker killed",
        inject=f"kill -KILL {_children('bedplate-edge')}",
        meanwhile=f"200|{CUT_OFF}",
    ),
    Fault(name="gateway ended by somebody's SIGTERM", inject="systemctl kill bedplate-gateway"),
    Fault(
        name="gateway killed during a reload",
        inject=f"systemctl reload --no-block bedplate-gateway; sleep 0.2; {_kill('bedplate-gateway')}",
    ),
    Fault(
        name="all killed at once",
        inject=(
            "systemctl kill --signal=KILL bedplate-gateway bedplate-edge litellm ollama prometheus"
            " bedplate-dashboard bedplate-exporter node-exporter"
        ),
        meanwhile=f"200|50[234]|{CUT_OFF}",
        # LiteLLM is the last.
        seconds=150,
    ),
    Fault(name="journald killed", inject=_kill("systemd-journald")),
    Fault(name="D-Bus killed", inject=_kill("dbus")),
    Fault(name="systemd re-executed", inject="systemctl daemon-reexec"),
    Fault(
        name="gateway killed, its file of usage torn",
        inject=(
            "systemctl kill --signal=STOP bedplate-gateway;"
            " printf '[\"torn' >>/run/bedplate-gateway/limits.jsonl; " + _kill("bedplate-gateway")
        ),
    ),
    Fault(
        name="gateway's socket removed",
        inject="rm /run/bedplate-gateway/http.sock",
        meanwhile="200|503",
    ),
    Fault(
        name="dashboard's socket removed",
        inject="rm /run/bedplate-dashboard/http.sock",
        alert="TargetDown dashboard",
        seconds=WATCHDOG_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="Prometheus killed, its log torn",
        inject=(
            f"file=$(ls -t {STORE}/wal/0* | head -n 1); {_hang('prometheus')};"
            f" truncate --size=-99 $file; head -c 999 /dev/urandom >>$file; {_kill('prometheus')}"
        ),
    ),
    Fault(
        name="reboot",
        # Nobody is answered before the reboot has begun.
        inject="systemctl stop bedplate-edge; systemctl reboot",
        meanwhile=CUT_OFF,
        seconds=150,
    ),
    Fault(
        name="gateway's unit file removed, and killed",
        inject=(
            "mv /etc/systemd/system/bedplate-gateway.service /root; systemctl daemon-reload;"
            f" {_kill('bedplate-gateway')}"
        ),
        repair=(
            "mv /root/bedplate-gateway.service /etc/systemd/system; systemctl daemon-reload;"
            " systemctl start bedplate-gateway"
        ),
        meanwhile="503",
        sentence=NO_GATEWAY,
        alert="TargetDown gateway",
    ),
    Fault(
        name="a stranger on the node exporter's port",
        inject=_take_port("node-exporter", 9100),
        repair=GIVE_PORT_BACK,
        sentence=NO_NODE_EXPORTER,
        alert="TargetDown node",
    ),
    Fault(
        name="a stranger on Ollama's port",
        inject=_take_port("ollama", 11434),
        repair=GIVE_PORT_BACK,
        meanwhile="50[234]",
        sentence="the engine on one",
        alert=f"ModelUnavailable {MODEL}",
    ),
    Fault(
        name="a stranger on the API's port",
        inject=_take_port("bedplate-edge", 8000, "0.0.0.0"),  # noqa: S104 - it takes the port of every address
        repair=GIVE_PORT_BACK,
        meanwhile=CUT_OFF,
        alert="ServiceDown bedplate-edge.service",
    ),
)
FILES = (
    Fault(
        name="keys half copied, and a reload",
        inject=f"{_cut_short(KEYS)} systemctl reload bedplate-gateway || true",
        repair=f"{_whole(KEYS)} systemctl reload bedplate-gateway",
    ),
    Fault(
        name="keys half copied, and a restart",
        inject=f"{_cut_short(KEYS)} systemctl restart bedplate-gateway || true",
        # It does not start again by itself with unusable keys.
        repair=f"{_whole(KEYS)} systemctl start bedplate-gateway",
        meanwhile="503",
        sentence=NO_GATEWAY,
        alert="ServiceDown bedplate-gateway.service",
    ),
    Fault(
        name="gateway's settings half copied, and a reload",
        inject=f"{_cut_short(SETTINGS)} systemctl reload bedplate-gateway || true",
        repair=f"{_whole(SETTINGS)} systemctl reload bedplate-gateway",
    ),
    Fault(
        name="edge's configuration half copied, and a reload",
        inject=f"{_cut_short(EDGE)} systemctl reload bedplate-edge || true",
        repair=f"{_whole(EDGE)} systemctl reload bedplate-edge",
    ),
    Fault(
        name="edge's configuration half copied, and killed",
        inject=f"{_cut_short(EDGE)} {_kill('bedplate-edge')}",
        repair=_whole(EDGE),
        meanwhile=CUT_OFF,
        alert="ServiceDown bedplate-edge.service",
    ),
    Fault(
        name="edge's certificate removed, and a reload",
        inject=f"mv {CERTIFICATE} {CERTIFICATE}.whole; systemctl reload bedplate-edge || true",
        repair=f"{_whole(CERTIFICATE)} systemctl reload bedplate-edge",
    ),
    Fault(
        name="edge's certificate removed, and killed",
        inject=f"mv {CERTIFICATE} {CERTIFICATE}.whole; {_kill('bedplate-edge')}",
        repair=_whole(CERTIFICATE),
        meanwhile=CUT_OFF,
        alert="ServiceDown bedplate-edge.service",
    ),
    Fault(
        name="LiteLLM's configuration half copied, and killed",
        inject=f"{_cut_short(LITELLM)} {_kill('litellm')}",
        repair=_whole(LITELLM),
        sentence=NO_LITELLM,
        alert="LitellmBypassed gateway",
        seconds=90,
    ),
    Fault(
        name="Prometheus' configuration half copied, and a reload",
        inject=f"{_cut_short(PROMETHEUS)} systemctl reload prometheus || true",
        repair=f"{_whole(PROMETHEUS)} systemctl reload prometheus",
    ),
    Fault(
        name="Prometheus' configuration half copied, and killed",
        inject=f"{_cut_short(PROMETHEUS)} {_kill('prometheus')}",
        repair=_whole(PROMETHEUS),
        sentence=NO_PROMETHEUS,
    ),
    Fault(
        name="dashboard's configuration half copied, and killed",
        inject=f"{_cut_short(DASHBOARD)} {_kill('bedplate-dashboard')}",
        repair=_whole(DASHBOARD),
        alert="ServiceDown bedplate-dashboard.service",
    ),
    Fault(
        name="model's file half copied",
        inject=f"file={BLOB}; {_cut_short('$file')} kill -KILL {_children('ollama')}; sleep 1",
        repair="file=$(ls /var/lib/ollama/models/blobs/*.whole); mv $file ${file%.whole}",
        meanwhile="50[0-4]",
        sentence="the last request for smollm2:135m failed",
    ),
    Fault(
        name="model's file hangs",
        inject=(
            f"file={BLOB}; mv $file $file.whole; mkfifo $file; chmod 644 $file; {_kill('ollama')}; sleep 5"
        ),
        repair="file=$(ls /var/lib/ollama/models/blobs/*.whole); mv $file ${file%.whole}; " + _kill("ollama"),
        meanwhile="ReadTimeout|50[0-4]",
    ),
)
DISKS = (
    Fault(
        name="a disk without a free inode",
        inject="mount -t tmpfs -o nr_inodes=40 fault /srv; touch /srv/{1..39} 2>/dev/null || true",
        repair="umount -l /srv",
        alert="InodesFull /srv",
    ),
    Fault(
        name="a disk turns read-only",
        # It counts if Prometheus has seen it writable.
        inject="mount -t tmpfs fault /srv; sleep 8; mount -o remount,ro /srv",
        repair="umount -l /srv",
        alert="FilesystemReadOnly /srv",
    ),
    Fault(
        name="gateway killed, its state directory read-only",
        inject=_mount(STATE, "ro", "bedplate-gateway") + _kill("bedplate-gateway"),
        clean_up=f"umount -l {STATE}",
    ),
    Fault(
        name="gateway killed, no file can be made in its state directory",
        inject=_mount(STATE, "nr_inodes=1", "bedplate-gateway") + _kill("bedplate-gateway"),
        clean_up=f"umount -l {STATE}",
    ),
    Fault(
        name="models read-only, Ollama's runner killed",
        inject=(
            "mkdir -p /mnt/models; mount --bind /var/lib/ollama /mnt/models;"
            " mount -o remount,bind,ro /mnt/models;"
            f" mount --bind /mnt/models /var/lib/ollama; kill -KILL {_children('ollama')}"
        ),
        clean_up="umount -l /var/lib/ollama /mnt/models",
        meanwhile="200|50[0-4]",
    ),
    Fault(
        name="Prometheus' store full",
        inject=_mount(STORE, "size=4m", "prometheus") + _fill(STORE) + _kill("prometheus"),
        repair=f"umount -l {STORE}; {_kill('prometheus')}",
        sentence=f"{STORE} on one is full",
    ),
    Fault(
        name="Prometheus' store read-only",
        inject=_mount(STORE, "ro", "prometheus") + _kill("prometheus"),
        repair=f"umount -l {STORE}",
        sentence=NO_PROMETHEUS,
    ),
    Fault(
        name="Prometheus' store fills up",
        inject=(f"{_mount(STORE, 'size=64m', 'prometheus')} {_kill('prometheus')}; sleep 12; {_fill(STORE)}"),
        repair=f"umount -l {STORE}; {_kill('prometheus')}",
        sentence="Prometheus stores no samples",
        # Four intervals between scrapes.
        sentence_seconds=SENTENCE_SECONDS + 20,
    ),
    Fault(
        # bedplate-heal writes its counter there.
        name="node exporter hung, no file can be made",
        inject=f"mount -t tmpfs -o nr_inodes=1 fault {TEXTFILES}; {_hang('node-exporter')}",
        clean_up=f"umount -l {TEXTFILES}",
        sentence=NO_NODE_EXPORTER,
        alert="TargetDown node",
        seconds=HEAL_SECONDS + RESTART_SECONDS,
    ),
    Fault(
        name="the journal's disk full",
        inject=(
            "mount -t tmpfs -o size=2m fault /var/log/journal;"
            f" {_fill('/var/log/journal')} {_kill('systemd-journald')}"
        ),
        repair="umount -l /var/log/journal; systemctl restart systemd-journald",
        sentence="/var/log/journal on one is full",
        alert="DiskFull /var/log/journal",
    ),
)
NETWORK = (
    Fault(
        name="1 Mbit/s to clients",
        inject="tc qdisc replace dev host0 root tbf rate 1mbit burst 32kbit latency 400ms",
        repair="tc qdisc delete dev host0 root",
    ),
    Fault(
        name="a fifth of the clients' packets lost",
        inject=_drop("input", "tcp dport 8000 numgen random mod 100 < 20"),
        repair=HEAL_NETWORK,
    ),
    Fault(
        name="DNS hangs",
        inject=_drop("output", "meta l4proto { tcp, udp } th dport 53")
        + "; systemctl restart bedplate-gateway",
        repair=HEAL_NETWORK,
    ),
    Fault(
        name="the host's address comes late",
        inject=(
            "ip -4 -brief address show host0 | awk '{print $3}' >/root/address;"
            " ip route show default >/root/route;"
            " systemctl stop bedplate-edge; ip address delete $(cat /root/address) dev host0;"
            " systemctl start --no-block bedplate-edge; sleep 10"
        ),
        repair="ip address add $(cat /root/address) dev host0; ip route add $(cat /root/route)",
        meanwhile=CUT_OFF,
    ),
)
DESCRIPTORS = (
    "pid=$(systemctl show --property=MainPID --value bedplate-gateway); prlimit --pid $pid --nofile=%s:"
)
LIMITS = (
    Fault(
        name="gateway without a free descriptor",
        inject=DESCRIPTORS % "$(( $(ls /proc/$pid/fd | wc -l) + 2 ))",
        repair=DESCRIPTORS % "$(prlimit --pid $pid --nofile --output=HARD --noheadings)",
        meanwhile="200|50[0-4]",
        alert="DescriptorsFull gateway",
    ),
)


def _clock(offset: str, alert: str | None = None) -> Fault:
    """Return a row in which the gateway's clock is wrong, by a library between it and the kernel."""
    drop_in = "/run/systemd/system/bedplate-gateway.service.d"
    # Its start reads the newest time seen before, which is a file's, and time-outs go on as before.
    environment = f"FAKETIME={offset} NO_FAKE_STAT=1 FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_DISABLE_SHM=1"
    return Fault(
        name=f"gateway's clock off by {offset}",
        inject=(
            "apt-get update --quiet=2; apt-get install --yes --quiet=2 faketime >/dev/null 2>&1;"
            f" mkdir -p {drop_in}; echo '[Service]' >{drop_in}/clock.conf;"
            f' echo "Environment=LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketime.so.1) {environment}"'
            f" >>{drop_in}/clock.conf; systemctl daemon-reload; systemctl restart bedplate-gateway"
        ),
        repair=f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart bedplate-gateway",
        alert=alert,
        alert_seconds=CLOCK_ALERT_SECONDS,
    )


CLOCKS = (_clock("-1h", alert="KeyClockOff gateway"), _clock("+1y"))
TABLE = (*KILLED, *HUNG, *STOPPED, *RESOURCES, *PROCESSES, *FILES, *DISKS, *NETWORK, *LIMITS, *CLOCKS)
