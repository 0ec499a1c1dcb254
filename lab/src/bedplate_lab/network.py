"""The lab's network: a subnet nobody else routes, a guard that keeps its packets here, a bridge, NAT.

The guard is a blackhole route for the subnet. It is set before the bridge and stays when the bridge goes, so
that a play that still names a lab address fails here instead of talking to a stranger behind the default
route.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from .errors import LabError
from .places import Lab
from .tools import read_json, run, succeeds, write_json

GUARD_METRIC = 9999
FIRST_HOST = 11
POOLS = tuple(IPv4Network(pool) for pool in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
ADDRESS = re.compile(r"(?<![\d.])\d+\.\d+\.\d+\.\d+(?![\d.])")


def candidates(seed: str) -> Iterator[IPv4Network]:
    """Yield every private /24 once; in each pool the first is the one that `seed` (hex digits) points at."""
    for pool in POOLS:
        count = 2 ** (24 - pool.prefixlen)
        for step in range(count):
            # An odd stride visits all of a power-of-two pool without clustering at its start.
            index = (int(seed, 16) + step * 37) % count
            yield IPv4Network((int(pool.network_address) + index * 256, 24))


def pick(seed: str, taken: Iterable[IPv4Network]) -> IPv4Network:
    """Return the first candidate that overlaps none of `taken`; raise LabError if there is none."""
    busy = list(taken)
    for candidate in candidates(seed):
        if not any(candidate.overlaps(network) for network in busy):
            return candidate
    raise LabError(
        "every private subnet is covered by a route of this machine; remove a route that is too wide"
    )


def routed() -> list[IPv4Network]:
    """Return the networks that this machine's routes cover, the default route left out."""
    routes: list[dict[str, Any]] = json.loads(
        run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"
    )
    networks = [IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    # 0.0.0.0/1 and 128.0.0.0/1 are how some VPNs write a default route.
    return [network for network in networks if network.prefixlen > 1]


def consulted() -> list[IPv4Network]:
    """Return the addresses that this machine talks to by number: name servers and proxies."""
    texts = [value for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    texts.append(Path("/etc/resolv.conf").read_text())
    return [IPv4Network(found) for text in texts for found in ADDRESS.findall(text)]


def subnet(lab: Lab) -> IPv4Network | None:
    """Return the subnet that this lab has taken, or None before its first host."""
    recorded = read_json(lab.state / "network.json").get("subnet")
    return IPv4Network(recorded) if recorded else None


def gateway(network: IPv4Network) -> IPv4Address:
    """Return the address of this machine on the lab's bridge."""
    return network.network_address + 1


def host_address(network: IPv4Network, number: int) -> IPv4Address:
    """Return the address of the host with the given number, counted from 0."""
    return network.network_address + FIRST_HOST + number


def _guard_is_set(network: IPv4Network) -> bool:
    shown = run(["ip", "-json", "-4", "route", "show", "type", "blackhole", str(network)], check=False)
    return bool(json.loads(shown or "[]"))


def check_guard(lab: Lab) -> IPv4Network:
    """Return the lab's subnet if no packet for it can leave this machine; raise LabError otherwise."""
    network = subnet(lab)
    if network is None:
        raise LabError(f"lab {lab.name!r} has no network yet; run `lab/lab up NAME` first")
    if not _guard_is_set(network):
        raise LabError(
            f"the guard route is missing, so packets for {network} could leave this machine; "
            "run `lab/lab up` with a host's name (or `make up`) to set it again"
        )
    address = str(host_address(network, 0))
    ways = json.loads(run(["ip", "-json", "-4", "route", "get", address], check=False) or "[]")
    devices = {way.get("dev") for way in ways if way.get("type") != "blackhole"}
    if devices - {lab.bridge}:
        raise LabError(
            f"this machine now routes {network} through {devices.pop()}, so lab traffic could leave it; "
            "run `lab/lab down` and `lab/lab purge`, then the lab picks another subnet"
        )
    return network


def bring_up(lab: Lab) -> IPv4Network:
    """Make guard, bridge, NAT and forwarding; safe to repeat. The caller holds the lab's lock."""
    network = subnet(lab)
    if network is None:
        network = pick(lab.id, [*routed(), *consulted()])
        write_json(lab.state / "network.json", {"subnet": str(network)})
    run(["ip", "route", "replace", "blackhole", str(network), "metric", str(GUARD_METRIC)])
    if not Path("/sys/class/net", lab.bridge).exists():
        run(["ip", "link", "add", lab.bridge, "address", hardware_address(lab, 0), "type", "bridge"])
    run(["ip", "address", "replace", f"{gateway(network)}/24", "dev", lab.bridge])
    run(["ip", "link", "set", lab.bridge, "up"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    run(["nft", "-f", "-"], stdin=_ruleset(lab, network))
    _pass_foreign_forward_policy(lab)
    return check_guard(lab)


def _ruleset(lab: Lab, network: IPv4Network) -> str:
    # The MSS clamp: the way out may carry smaller packets than the bridge, and lost big ones stall downloads.
    return f"""
table inet {lab.table}
delete table inet {lab.table}
table inet {lab.table} {{
  chain leaving {{
    type nat hook postrouting priority srcnat;
    ip saddr {network} ip daddr != {network} masquerade
  }}
  chain passing {{
    type filter hook forward priority filter;
    ip saddr {network} ip daddr != {network} tcp flags syn tcp option maxseg size set rt mtu
  }}
}}
"""


def _forward_chain() -> list[dict[str, Any]]:
    """Return the parts of the chain in which iptables (and so Docker) decides about forwarded packets."""
    listing = json.loads(
        run(["nft", "-json", "-a", "list", "chain", "ip", "filter", "FORWARD"], check=False) or "{}"
    )
    parts: list[dict[str, Any]] = listing.get("nftables", [])
    return parts


def _pass_foreign_forward_policy(lab: Lab) -> None:
    """Let the lab's packets through where another program set the forward policy to drop."""
    parts = _forward_chain()
    if not any(part.get("chain", {}).get("policy") == "drop" for part in parts):
        return
    if any(part.get("rule", {}).get("comment") == lab.table for part in parts):
        return
    for direction in ("iifname", "oifname"):
        rule = f'insert rule ip filter FORWARD {direction} "{lab.bridge}" accept comment "{lab.table}"\n'
        run(["nft", "-f", "-"], stdin=rule)


def take_down(lab: Lab) -> None:
    """Remove bridge, table and forward rules; the guard stays. The caller holds the lab's lock."""
    for part in _forward_chain():
        if part.get("rule", {}).get("comment") == lab.table:
            run(["nft", "delete", "rule", "ip", "filter", "FORWARD", "handle", str(part["rule"]["handle"])])
    if Path("/sys/class/net", lab.bridge).exists():
        run(["ip", "link", "delete", lab.bridge])
    for family, table in (("inet", lab.table), ("bridge", lab.table)):
        if succeeds(["nft", "list", "table", family, table]):
            run(["nft", "delete", "table", family, table])


def remove_guard(lab: Lab) -> None:
    """Remove the guard route; only `purge` does, after the last host."""
    network = subnet(lab)
    if network is not None and _guard_is_set(network):
        run(["ip", "route", "delete", "blackhole", str(network), "metric", str(GUARD_METRIC)])


def namespace(lab: Lab, host: str) -> str:
    """Return the name of a host's network namespace."""
    return f"bp-{lab.id}-{host}"


def veth(lab: Lab, number: int) -> str:
    """Return the name of the machine's end of a host's cable, within the kernel's 15 characters."""
    return f"bp{lab.id}-{number}"


def hardware_address(lab: Lab, last: int) -> str:
    """Return the Ethernet address of the host whose IP address ends in `last`; 0 is the bridge.

    It stays the same over restarts, as a network card's does: neighbours remember it for minutes.
    """
    return f"02:{lab.id[:2]}:{lab.id[2:4]}:{lab.id[4:]}:00:{last:02x}"


def plug_in(lab: Lab, host: str, number: int, network: IPv4Network) -> None:
    """Make a host's namespace and connect it to the bridge. What was left there before has to be gone."""
    name, cable, inside = namespace(lab, host), veth(lab, number), ["ip", "-netns", namespace(lab, host)]
    run(["ip", "netns", "add", name])
    card = hardware_address(lab, FIRST_HOST + number)
    run(["ip", "link", "add", cable, "type", "veth", "peer", "name", "host0", "address", card, "netns", name])
    run(["ip", "link", "set", cable, "master", lab.bridge, "up"])
    run([*inside, "link", "set", "lo", "up"])
    run([*inside, "address", "add", f"{host_address(network, number)}/24", "dev", "host0"])
    run([*inside, "link", "set", "host0", "up"])
    run([*inside, "route", "add", "default", "via", str(gateway(network))])


def unplug(lab: Lab, host: str, number: int) -> None:
    """Remove a host's cable and namespace, whichever of them exist."""
    if Path("/sys/class/net", veth(lab, number)).exists():
        run(["ip", "link", "delete", veth(lab, number)])
    if Path("/run/netns", namespace(lab, host)).exists():
        run(["ip", "netns", "delete", namespace(lab, host)])
