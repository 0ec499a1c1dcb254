"""The lab's network: an unused private subnet, a guard route that keeps its packets here, a bridge, NAT.

The guard is a blackhole route for the subnet. It is set before the bridge and stays when the bridge is
removed, so that a play that still names a lab address fails instead of reaching a foreign machine through the
default route.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from bedplate_lab.errors import LabError
from bedplate_lab.paths import Lab
from bedplate_lab.tools import read_json, run, succeeds, write_json

GUARD_METRIC = 9999
FIRST_HOST = 11
POOLS = tuple(IPv4Network(pool) for pool in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
ADDRESS = re.compile(r"(?<![\d.])\d+\.\d+\.\d+\.\d+(?![\d.])")


def candidates(seed: str) -> Iterator[IPv4Network]:
    """Yield every private /24 once; `seed` (hex digits) selects the first one of each pool."""
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
    raise LabError("routes of this machine cover every private subnet; remove a route that is too wide")


def routed() -> list[IPv4Network]:
    """Return the networks that this machine's routes cover, except the default route."""
    routes: list[dict[str, Any]] = json.loads(
        run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]"
    )
    networks = [IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    # Some VPNs write their default route as 0.0.0.0/1 and 128.0.0.0/1.
    return [network for network in networks if network.prefixlen > 1]


def configured_addresses() -> list[IPv4Network]:
    """Return the addresses in this machine's configuration: its name servers and proxies."""
    texts = [value for name, value in os.environ.items() if name.lower().endswith("_proxy")]
    texts.append(Path("/etc/resolv.conf").read_text())
    return [IPv4Network(address) for text in texts for address in ADDRESS.findall(text)]


def subnet(lab: Lab) -> IPv4Network | None:
    """Return the lab's subnet, or None before its first host."""
    recorded = read_json(lab.state / "network.json").get("subnet")
    return IPv4Network(recorded) if recorded else None


def gateway(network: IPv4Network) -> IPv4Address:
    """Return the address of this machine on the lab's bridge."""
    return network.network_address + 1


def host_address(network: IPv4Network, number: int) -> IPv4Address:
    """Return the address of the host with the given number, counted from 0."""
    return network.network_address + FIRST_HOST + number


def _guard_is_set(network: IPv4Network) -> bool:
    routes = run(["ip", "-json", "-4", "route", "show", "type", "blackhole", str(network)], check=False)
    return bool(json.loads(routes or "[]"))


def check_guard(lab: Lab) -> IPv4Network:
    """Return the lab's subnet if no packet to it can leave this machine; raise LabError otherwise."""
    network = subnet(lab)
    if network is None:
        raise LabError(f"lab {lab.name!r} has no network yet; run `lab/lab up NAME` first")
    if not _guard_is_set(network):
        raise LabError(
            f"the guard route is missing, so packets for {network} could leave this machine; "
            "run `lab/lab up` with a host's name (or `make up`) to set it again"
        )
    address = str(host_address(network, 0))
    routes = json.loads(run(["ip", "-json", "-4", "route", "get", address], check=False) or "[]")
    devices = {route.get("dev") for route in routes if route.get("type") != "blackhole"}
    if devices - {lab.bridge}:
        raise LabError(
            f"this machine now routes {network} through {devices.pop()}, so lab traffic could leave it; "
            "run `lab/lab down` and `lab/lab purge`, then the lab picks another subnet"
        )
    return network


def bring_up(lab: Lab) -> IPv4Network:
    """Set up guard, bridge, NAT and forwarding; idempotent. The caller holds the lab's lock."""
    network = subnet(lab)
    if network is None:
        network = pick(lab.id, [*routed(), *configured_addresses()])
        write_json(lab.state / "network.json", {"subnet": str(network)})
    run(["ip", "route", "replace", "blackhole", str(network), "metric", str(GUARD_METRIC)])
    if not Path("/sys/class/net", lab.bridge).exists():
        run(["ip", "link", "add", lab.bridge, "address", hardware_address(lab, 0), "type", "bridge"])
    run(["ip", "address", "replace", f"{gateway(network)}/24", "dev", lab.bridge])
    run(["ip", "link", "set", lab.bridge, "up"])
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1\n")
    run(["nft", "-f", "-"], stdin=_ruleset(lab, network))
    _accept_forwarding(lab)
    return check_guard(lab)


def _ruleset(lab: Lab, network: IPv4Network) -> str:
    # The MSS clamp: the uplink's MTU may be below the bridge's, and lost large packets stall downloads.
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
    """Return the chain and rules with which iptables, and so Docker, filters forwarded packets."""
    listing = json.loads(
        run(["nft", "-json", "-a", "list", "chain", "ip", "filter", "FORWARD"], check=False) or "{}"
    )
    parts: list[dict[str, Any]] = listing.get("nftables", [])
    return parts


def _accept_forwarding(lab: Lab) -> None:
    """Accept the lab's forwarded packets where another program set the forward policy to drop."""
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
    """Return the name of this machine's end of a host's veth pair, within the kernel's 15 characters."""
    return f"bp{lab.id}-{number}"


def hardware_address(lab: Lab, last: int) -> str:
    """Return the Ethernet address of the host whose IP address ends in `last`; 0 is the bridge.

    It survives restarts, like a network card's: neighbours cache it for minutes.
    """
    return f"02:{lab.id[:2]}:{lab.id[2:4]}:{lab.id[4:]}:00:{last:02x}"


def plug_in(lab: Lab, host: str, number: int, network: IPv4Network) -> None:
    """Make a host's namespace and connect it to the bridge. Leftovers must have been removed."""
    name, outer, ip_inside = namespace(lab, host), veth(lab, number), ["ip", "-netns", namespace(lab, host)]
    run(["ip", "netns", "add", name])
    mac = hardware_address(lab, FIRST_HOST + number)
    run(["ip", "link", "add", outer, "type", "veth", "peer", "name", "host0", "address", mac, "netns", name])
    run(["ip", "link", "set", outer, "master", lab.bridge, "up"])
    run([*ip_inside, "link", "set", "lo", "up"])
    run([*ip_inside, "address", "add", f"{host_address(network, number)}/24", "dev", "host0"])
    run([*ip_inside, "link", "set", "host0", "up"])
    run([*ip_inside, "route", "add", "default", "via", str(gateway(network))])


def unplug(lab: Lab, host: str, number: int) -> None:
    """Remove a host's veth pair and namespace, as far as they exist."""
    if Path("/sys/class/net", veth(lab, number)).exists():
        run(["ip", "link", "delete", veth(lab, number)])
    if Path("/run/netns", namespace(lab, host)).exists():
        run(["ip", "netns", "delete", namespace(lab, host)])
