"""The table of wrongs: what somebody changes on a host, and what drift has to call it."""

from __future__ import annotations

import re
from dataclasses import dataclass

UNITS = "/etc/systemd/system"
KEYS = "/etc/bedplate/bedplate-gateway/keys.json"
LITELLM = "/etc/bedplate/litellm/config.yaml"
RULES = "/etc/bedplate/prometheus/alerts.rules.yml"
EDGE = "/etc/bedplate/bedplate-edge"
CANARY_KEY = "/etc/bedplate/traffic-canary/gateway-key"
STORE = "/var/lib/prometheus/bedplate"
KEPT = "/root/wrongs"
MODEL = "smollm2:135m"
BLOBS = "/var/lib/ollama/models/blobs"
# Another row puts another program of that name first on PATH.
OLLAMA = "/opt/bedplate/ollama/current/bin/ollama"
PACKAGES = "cd /opt/bedplate/litellm/current/lib/python3*/site-packages"
LIMITS = (
    "$(find $(dirname $(readlink -f /opt/bedplate/bedplate-gateway/current)) -name limits.py | head -n 1)"
)


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One row; `what` is the name of the difference, and `remedy` the begin of its command.

    Those of a batch are injected at once. `make test` has the first two batches without the slow rows.
    """

    name: str
    kind: str
    what: str
    inject: str
    repair: str
    remedy: str = "ansible-playbook site.yml --tags "
    batch: int = 1
    slow: bool = False


def _file_name(name: str) -> str:
    """Return a row's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def _edited(name: str, path: str, change: str, *, kind: str = "file", batch: int = 1) -> Wrong:
    """Return a row in which a command changes a file; the repair restores it with its time."""
    copy = f"{KEPT}/{_file_name(name)}"
    return Wrong(
        name=name,
        kind=kind,
        what=path,
        inject=f"mkdir -p {KEPT}; cp --archive {path} {copy}; {change}",
        repair=f"rm -rf {path}; cp --archive {copy} {path}",
        batch=batch,
    )


def _limit(name: str, change: str, batch: int) -> Wrong:
    """Return a row in which Python changes the keys on the host."""
    script = f"import json; k = json.load(open('{KEYS}')); {change}; json.dump(k, open('{KEYS}', 'w'))"
    return _edited(name, KEYS, f'python3 -c "{script}"', batch=batch)


def _mode(name: str, path: str, change: str, back: str, *, kind: str = "file", batch: int = 1) -> Wrong:
    return Wrong(
        name=name, kind=kind, what=path, inject=f"{change} {path}", repair=f"{back} {path}", batch=batch
    )


def _stopped(
    unit: str, verb: str = "stop", back: str = "start", remedy: str = "systemctl start", batch: int = 1
) -> Wrong:
    return Wrong(
        name=f"{unit}: {verb}",
        kind="service",
        what=unit,
        inject=f"systemctl {verb} {unit}",
        repair=f"systemctl {back} {unit}",
        remedy=f"{remedy} {unit}",
        batch=batch,
    )


def _drop_in(name: str, unit: str, setting: str, *, folder: str = "", batch: int = 1) -> Wrong:
    path = f"{UNITS}/{folder or unit}.d/{_file_name(name)}.conf"
    return Wrong(
        name=name,
        kind="drop-in",
        what=path,
        inject=f"mkdir -p {UNITS}/{folder or unit}.d;"
        f" printf '%s\\n' '[Service]' {setting} >{path}; systemctl daemon-reload",
        repair=f"rm -r {UNITS}/{folder or unit}.d; systemctl daemon-reload",
        remedy=f"rm {path} && systemctl daemon-reload",
        batch=batch,
    )


def _stray(name: str, path: str, *, kind: str = "file", text: str = "x", remedy: str = "") -> Wrong:
    return Wrong(
        name=name,
        kind=kind,
        what=path,
        inject=f"printf '%s\\n' {text} >{path}",
        repair=f"rm {path}",
        remedy=remedy or f"rm -r {path}",
    )


def _user(name: str, user: str, change: str, back: str, remedy: str, *, batch: int = 1) -> Wrong:
    return Wrong(name=name, kind="user", what=user, inject=change, repair=back, remedy=remedy, batch=batch)


def _listener(name: str, protocol: str, port: int, code: str) -> Wrong:
    return Wrong(
        name=name,
        kind="listener",
        what=f"{protocol} 0.0.0.0:{port}",
        inject=f"systemd-run --quiet --unit=fake-{protocol}-{port} python3 -c '{code}'; sleep 0.5",
        repair=f"systemctl stop fake-{protocol}-{port}",
        remedy=f"stop it (ss -ltunp sport = :{port})",
    )


RESTART = "systemctl restart"
LISTEN = 'import socket, time; s = socket.socket(type=socket.{}); s.bind(("0.0.0.0", {})); {}time.sleep(999)'

FILES = (
    _limit("limit 101 for 100", "k['keys'][0]['rpm'] = 101", 1),
    _limit("limit 99 for 100", "k['keys'][0]['rpm'] = 99", 2),
    _limit("no limit", "k['keys'][0].pop('rpm')", 3),
    _limit("a key that nobody declared", "k['keys'].append({**k['keys'][0], 'alias': 'eve'})", 4),
    _mode("keys readable by all", KEYS, "chmod 644", "chmod 640", batch=5),
    _mode("keys of another owner", KEYS, "chown nobody", "chown root", batch=6),
    _edited("LiteLLM's retries", LITELLM, f"sed -i 's/\\(num_retries.: \\)1/\\19/' {LITELLM}"),
    _edited(
        "LiteLLM's time-out",
        LITELLM,
        f"sed -i 's/\\(request_timeout.: \\)120/\\19/' {LITELLM}",
        batch=2,
    ),
    _edited("alert rules emptied", RULES, f"echo 'groups: []' >{RULES}"),
    _edited("alert rules removed", RULES, f"rm {RULES}", batch=2),
    _edited(
        "Prometheus' interval",
        "/etc/bedplate/prometheus/prometheus.yml",
        "sed -i 's/scrape_interval: .*/scrape_interval: 9s/' /etc/bedplate/prometheus/prometheus.yml",
    ),
    _edited("the canary's wrong key", CANARY_KEY, f"echo sk-wrong >{CANARY_KEY}"),
    _edited("HAProxy's configuration", f"{EDGE}/haproxy.cfg", f"echo '# x' >>{EDGE}/haproxy.cfg"),
    _edited(
        "another certificate",
        f"{EDGE}/server.pem",
        f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=x -keyout - 2>/dev/null >{EDGE}/server.pem",
    ),
    _edited("another CA", "/etc/bedplate/ca.crt", "echo x >>/etc/bedplate/ca.crt"),
    _edited(
        "the gateway's settings",
        "/etc/bedplate/bedplate-gateway/gateway.json",
        "echo >>/etc/bedplate/bedplate-gateway/gateway.json",
    ),
    _edited(
        "the dashboard's settings",
        "/etc/bedplate/bedplate-dashboard/config.json",
        "echo >>/etc/bedplate/bedplate-dashboard/config.json",
    ),
    _edited(
        "the dashboard's key",
        "/etc/bedplate/bedplate-dashboard/gateway-key",
        "echo sk-x >/etc/bedplate/bedplate-dashboard/gateway-key",
    ),
    _edited(
        "the engine's environment",
        "/etc/bedplate/ollama/ollama.env",
        "echo OLLAMA_DEBUG=1 >>/etc/bedplate/ollama/ollama.env",
    ),
    _edited(
        "the providers' keys",
        "/etc/bedplate/litellm/environment.json",
        'echo \'{"A": "b"}\' >/etc/bedplate/litellm/environment.json',
    ),
    _edited(
        "LiteLLM's master key",
        "/etc/bedplate/litellm/master-key",
        "echo sk-x >/etc/bedplate/litellm/master-key",
    ),
    _edited(
        "LiteLLM's start program",
        "/opt/bedplate/litellm/start.py",
        "echo '# x' >>/opt/bedplate/litellm/start.py",
    ),
    _edited("what is healed", "/etc/bedplate/heal.json", "echo '{}' >/etc/bedplate/heal.json"),
    _edited(
        "the program that heals",
        "/usr/local/libexec/bedplate-heal",
        "echo '# x' >>/usr/local/libexec/bedplate-heal",
    ),
    _edited(
        "the program of host facts",
        "/usr/local/libexec/bedplate-host-facts",
        "echo '# x' >>/usr/local/libexec/bedplate-host-facts",
    ),
    _edited(
        "drift's own program",
        "/opt/bedplate/drift/drift.py",
        "echo '# x' >>/opt/bedplate/drift/drift.py",
    ),
    _mode("a folder open to all", "/etc/bedplate/litellm", "chmod 777", "chmod 750"),
    _mode("the models of another owner", "/var/lib/ollama/models", "chown root", "chown ollama"),
    Wrong(
        name="the models' content of another owner",
        kind="file",
        what=BLOBS,
        inject=f"chown root {BLOBS}",
        repair=f"chown ollama {BLOBS}",
        remedy=f"chown --recursive ollama: {BLOBS}",
        batch=2,
    ),
    _edited(
        "ollama on PATH replaced",
        "/usr/local/bin/ollama",
        "rm /usr/local/bin/ollama; echo x >/usr/local/bin/ollama",
    ),
    _edited("traffic on PATH elsewhere", "/usr/local/bin/traffic", "ln -sf /bin/true /usr/local/bin/traffic"),
    _edited(
        "another release of the gateway",
        "/opt/bedplate/bedplate-gateway/current",
        "ln -sfn releases/0 /opt/bedplate/bedplate-gateway/current",
        batch=2,
    ),
    _edited(
        "another release of uv", "/opt/bedplate/uv/current", "ln -sfn releases/0 /opt/bedplate/uv/current"
    ),
    _edited(
        "a link of the metrics",
        "/var/lib/node-exporter/textfile/host.prom",
        "rm /var/lib/node-exporter/textfile/host.prom",
    ),
    _stray("a copy of the keys", f"{KEYS}.bak"),
    _stray("an extra rule file", "/etc/bedplate/prometheus/extra-x.yml"),
    _stray("a file next to the programs", "/opt/bedplate/x"),
    _stray("a program of ours that nobody declared", "/usr/local/libexec/bedplate-x"),
)
PROGRAMS = (
    Wrong(
        name="another ollama first on PATH",
        kind="program",
        what="ollama",
        inject="cp /bin/true /usr/local/sbin/ollama",
        repair="rm /usr/local/sbin/ollama",
        remedy="rm /usr/local/sbin/ollama",
    ),
    Wrong(
        name="a package of another version",
        kind="release",
        what="$(dirname $(readlink -f /opt/bedplate/litellm/current)): httpx",
        inject=f"{PACKAGES}; mv httpx-[0-9]*.dist-info httpx-0.0.1.dist-info",
        repair=f"{PACKAGES}; mv httpx-0.0.1.dist-info"
        " httpx-$(sed -n 's/^Version: //p' httpx-0.0.1.dist-info/METADATA).dist-info",
        remedy="rm /opt/bedplate/litellm/releases/",
    ),
    Wrong(
        name="a module of the gateway edited",
        kind="release",
        what=LIMITS,
        inject=f"mkdir -p {KEPT}; cp --archive {LIMITS} {KEPT}/limits.py; echo '# x' >>{LIMITS}",
        repair=f"cp --archive {KEPT}/limits.py {LIMITS}",
        remedy="rm /opt/bedplate/bedplate-gateway/releases/",
    ),
    Wrong(
        name="half a release",
        kind="release",
        what="$(dirname $(readlink -f /opt/bedplate/traffic/current))",
        inject=f"mkdir -p {KEPT};"
        f" mv $(dirname $(readlink -f /opt/bedplate/traffic/current))/.complete {KEPT}/complete",
        repair=f"mv {KEPT}/complete $(dirname $(readlink -f /opt/bedplate/traffic/current))/.complete",
    ),
)
UNIT_FILES = (
    _edited(
        "a unit edited",
        f"{UNITS}/bedplate-exporter.service",
        f"echo '# x' >>{UNITS}/bedplate-exporter.service",
        kind="unit",
    ),
    _edited(
        "a timer edited",
        f"{UNITS}/host-facts.timer",
        f"sed -i 's/^On.*//' {UNITS}/host-facts.timer",
        kind="unit",
    ),
    _edited(
        "a unit masked",
        f"{UNITS}/traffic-canary.service",
        f"ln -sf /dev/null {UNITS}/traffic-canary.service",
        kind="unit",
    ),
    _edited(
        "a unit removed", f"{UNITS}/bedplate-drift.service", f"rm {UNITS}/bedplate-drift.service", kind="unit"
    ),
    _edited(
        "the mask of Debian's unit removed",
        f"{UNITS}/prometheus-node-exporter.service",
        f"rm {UNITS}/prometheus-node-exporter.service",
        kind="unit",
    ),
    _mode("a unit that all may write", f"{UNITS}/litellm.service", "chmod 666", "chmod 644", kind="unit"),
    _stray(
        "an extra unit of ours",
        f"{UNITS}/bedplate-x.service",
        kind="unit",
        text="'[Service]' ExecStart=/bin/true",
        remedy="systemctl disable --now bedplate-x.service",
    ),
    Wrong(
        name="a stranger wanted by our target",
        kind="unit",
        what=f"{UNITS}/bedplate.target.wants/x.service",
        inject=f"ln -s /usr/lib/systemd/system/getty@.service {UNITS}/bedplate.target.wants/x.service",
        repair=f"rm {UNITS}/bedplate.target.wants/x.service",
        remedy="systemctl disable --now x.service",
    ),
    Wrong(
        name="a unit that systemd has not loaded again",
        kind="unit",
        what="node-exporter.service",
        inject=f"touch {UNITS}/node-exporter.service; sleep 1",
        repair="systemctl daemon-reload; systemctl restart node-exporter",
        remedy="systemctl daemon-reload && systemctl restart node-exporter.service",
        # Not with a row that reloads systemd.
        batch=3,
    ),
    _drop_in("a weak sandbox", "litellm.service", "ProtectSystem=no NoNewPrivileges=no"),
    _drop_in("no memory limit", "ollama.service", "MemoryMax=infinity"),
    _drop_in("one drop-in for all services", "node-exporter.service", "PrivateTmp=no", folder="service"),
)
SERVICES = (
    _stopped("traffic-canary.timer", batch=2),
    _stopped("host-facts.timer", batch=2),
    _stopped("bedplate-drift.timer", batch=2),
    _stopped("bedplate-heal@prometheus.timer", batch=2),
    _stopped("bedplate-exporter.service", batch=2),
    _stopped("litellm.service", "disable", "enable", "systemctl enable", batch=2),
    _stopped("bedplate.target", "disable", "enable", "systemctl enable", batch=2),
    Wrong(
        name="a process older than its unit",
        kind="process",
        what="bedplate-dashboard.service",
        inject=f"touch {UNITS}/bedplate-dashboard.service; systemctl daemon-reload; sleep 1",
        repair="systemctl restart bedplate-dashboard",
        remedy=f"{RESTART} bedplate-dashboard",
        batch=2,
    ),
    Wrong(
        name="a process older than its keys",
        kind="process",
        what="bedplate-gateway.service",
        inject=f"sleep 1; touch {KEYS}",
        repair="systemctl reload bedplate-gateway",
        remedy=f"{RESTART} bedplate-gateway",
        batch=7,
    ),
    Wrong(
        name="a program replaced on disk",
        kind="process",
        what="node-exporter.service",
        inject="cp --archive /usr/bin/prometheus-node-exporter /usr/bin/x;"
        " mv /usr/bin/x /usr/bin/prometheus-node-exporter",
        repair="systemctl restart node-exporter",
        remedy=f"{RESTART} node-exporter",
        batch=3,
    ),
)
USERS = (
    _user(
        "a shell",
        "litellm",
        "usermod --shell /bin/bash litellm",
        "usermod --shell /usr/sbin/nologin litellm",
        "usermod --shell",
    ),
    _user(
        "a group",
        "bedplate-gateway",
        "gpasswd --add bedplate-gateway adm",
        "gpasswd --delete bedplate-gateway adm",
        "gpasswd --delete bedplate-gateway adm",
    ),
    _user(
        "somebody in its group",
        "bedplate-edge",
        "gpasswd --add nobody bedplate-edge",
        "gpasswd --delete nobody bedplate-edge",
        "gpasswd --delete nobody",
    ),
    _user(
        "a password",
        "traffic-canary",
        "echo traffic-canary:x | chpasswd",
        "usermod --password '!' traffic-canary",
        "passwd --lock",
    ),
    _user(
        "a shell of Debian's user",
        "prometheus",
        "usermod --shell /bin/sh prometheus",
        "usermod --shell /usr/sbin/nologin prometheus",
        "usermod --shell",
        batch=2,
    ),
    _user(
        "another home",
        "node-exporter",
        "sed -i 's#/var/lib/node-exporter#/root#' /etc/passwd",
        "sed -i '/^node-exporter/s#/root#/var/lib/node-exporter#' /etc/passwd",
        "ansible-playbook site.yml --tags node_exporter",
        batch=2,
    ),
)
REST = (
    Wrong(
        name="a package removed",
        kind="package",
        what="zstd",
        inject="dpkg --remove --force-depends zstd >/dev/null; apt-mark manual zstd >/dev/null || true",
        repair="apt-get install --yes --no-install-recommends zstd >/dev/null",
        remedy="ansible-playbook site.yml",
        slow=True,
    ),
    Wrong(
        name="a model with other parameters",
        kind="model",
        what=MODEL,
        inject=f"mkdir -p {KEPT}; cp --archive /var/lib/ollama/models/manifests {KEPT}/;"
        f" mkdir -p {KEPT}/blobs; find /var/lib/ollama/models/blobs -size -999k -type f"
        f" -exec cp --archive {{}} {KEPT}/blobs/ ';';"
        f" printf 'FROM {MODEL}\\nPARAMETER num_ctx 512\\n' >{KEPT}/model;"
        f" {OLLAMA} create {MODEL} -f {KEPT}/model >/dev/null 2>&1",
        # Ollama removes the content that no model needs any more. Its folder stays Ollama's.
        repair=f"cp --archive {KEPT}/manifests /var/lib/ollama/models/;"
        f" cp --archive {KEPT}/blobs/* /var/lib/ollama/models/blobs/",
        remedy="ansible-playbook site.yml --tags ollama",
    ),
    Wrong(
        name="a model that nobody declared",
        kind="model",
        what="other:latest",
        inject=f"{OLLAMA} cp {MODEL} other >/dev/null 2>&1",
        repair=f"{OLLAMA} rm other >/dev/null 2>&1",
        remedy="declare it in ollama_models, or run ollama rm other:latest",
        batch=2,
    ),
    _listener("an undeclared listener", "tcp", 4444, LISTEN.format("SOCK_STREAM", 4444, "s.listen(); ")),
    _listener("an undeclared socket of UDP", "udp", 5353, LISTEN.format("SOCK_DGRAM", 5353, "")),
    Wrong(
        name="a read-only mount over Prometheus' store",
        kind="mount",
        what=STORE,
        inject=f"mount --bind {STORE} {STORE}; mount -o remount,bind,ro {STORE}",
        repair=f"umount --lazy {STORE}",
        remedy=f"findmnt {STORE}",
    ),
    Wrong(
        name="a mount over the keys",
        kind="mount",
        what=KEYS,
        inject=f"mount --bind {KEYS} {KEYS}",
        repair=f"umount {KEYS}",
        remedy=f"umount {KEYS}",
        batch=8,
    ),
)
WRONGS = (*FILES, *PROGRAMS, *UNIT_FILES, *SERVICES, *USERS, *REST)
