"""The lab's command line."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence

from . import deps, hosts, images, inventory, network
from .errors import LabError
from .hosts import Hosts
from .places import CHECKOUT, Lab, cache_folder, check_name, known_labs
from .tools import locked, require_root, say

EPILOG = """\
examples:
  lab/lab up web1 gpu1               two hosts on Debian 13, up in about a second
  lab/lab up old --suite bookworm    one on Debian 12
  lab/lab exec web1 systemctl status a command in a host, with its exit status
  lab/lab fault offline web1         pull the network cable; `online` plugs it in
  lab/lab down                       stop and remove every host of this lab
  lab/lab purge                      remove the guard route and all caches too

Hosts are systemd-nspawn containers with systemd, sshd and a network of their own. They share the kernel and are not
isolated like virtual machines: run only what you would run as root here. Images, engines and models are cached in
$XDG_CACHE_HOME/bedplate, hosts and layers in $XDG_STATE_HOME/bedplate. BEDPLATE_LAB or --lab picks another set.
"""


def _up(lab: Lab, options: argparse.Namespace) -> int:
    require_root("up")
    deps.require()
    groups = options.groups.split(",") if options.groups is not None else None
    if groups is not None:
        groups = [group for group in groups if group]
    Hosts(lab).up(options.host, suite=options.suite, groups=groups, layer=options.layer)
    return 0


def _stop(lab: Lab, options: argparse.Namespace) -> int:
    require_root("stop")
    everything = Hosts(lab)
    for host in [everything.get(name) for name in options.host]:
        everything.stop(host)
        say(f"{host.name} is stopped; `lab/lab up {host.name}` boots it again")
    return 0


def _down(lab: Lab, options: argparse.Namespace) -> int:
    require_root("down")
    if options.host:
        everything = Hosts(lab)
        for host in [everything.get(name) for name in options.host]:
            everything.down(host)
        return 0
    for one in [known for known in known_labs() if known.checkout == CHECKOUT] if options.all else [lab]:
        Hosts(one).down_all()
        if options.all:
            shutil.rmtree(one.layers, ignore_errors=True)
    return 0


def _purge(_lab: Lab, _options: argparse.Namespace) -> int:
    require_root("purge")
    others = hosts.other_running_hosts(CHECKOUT)
    if others:
        raise LabError(
            f"hosts of another checkout run from the same caches ({'; '.join(others)}); "
            "run `lab/lab down --all` there first"
        )
    for lab in [known for known in known_labs() if known.checkout == CHECKOUT]:
        Hosts(lab).down_all()
        with locked(lab.lock, "changes the lab's network"):
            network.take_down(lab)
            network.remove_guard(lab)
        lab.forget()
    shutil.rmtree(cache_folder(), ignore_errors=True)
    say(f"removed the guard routes, the state of this checkout's labs, and {cache_folder()}")
    return 0


def _list(lab: Lab, options: argparse.Namespace) -> int:
    everything = Hosts(lab)
    rows = [
        {
            "name": host.name,
            "state": everything.state(host),
            "suite": host.suite,
            "address": str(everything.address(host)),
            "groups": ",".join(host.groups),
        }
        for host in everything.all()
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        say(f"lab {lab.name!r} has no hosts; start one with `lab/lab up NAME`")
        return 0
    table = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for number, line in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cell.upper() if number == 0 else cell for cell in cells).rstrip())
    return 0


def _exec(lab: Lab, options: argparse.Namespace) -> int:
    require_root("exec")
    everything = Hosts(lab)
    command = everything.exec_command(everything.get(options.host), options.command)
    sys.stdout.flush()
    os.execvp(command[0], command)


def _ssh(lab: Lab, options: argparse.Namespace) -> int:
    everything = Hosts(lab)
    command = everything.ssh_command(everything.get(options.host), options.command)
    os.execvp(command[0], command)


def _save(lab: Lab, options: argparse.Namespace) -> int:
    require_root("save")
    everything = Hosts(lab)
    everything.save(everything.get(options.host), options.layer)
    return 0


def _guard(lab: Lab, _options: argparse.Namespace) -> int:
    say(f"packets for {network.check_guard(lab)} stay on this machine")
    return 0


def _inventory(lab: Lab, options: argparse.Namespace) -> int:
    everything = Hosts(lab)
    if options.host:
        print(json.dumps(inventory.variables(everything, everything.get(options.host)), indent=2))
    else:
        print(json.dumps(inventory.listing(everything), indent=2))
    return 0


def _deps(_lab: Lab, _options: argparse.Namespace) -> int:
    require_root("deps")
    deps.install()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab/lab",
        description="Throwaway bare-metal-like Debian hosts on this machine, to try Bedplate on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lab", metavar="NAME", default=os.environ.get("BEDPLATE_LAB") or "main",
        help="which set of hosts (default: $BEDPLATE_LAB, else main)",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    up = verbs.add_parser("up", help="boot hosts and wait until they answer on SSH")
    up.add_argument("host", nargs="+", metavar="NAME")
    up.add_argument("--suite", choices=images.SUITES, help=f"Debian release (default: {hosts.DEFAULT_SUITE})")
    up.add_argument(
        "--groups", metavar="GROUP,…", help=f"the hosts' inventory groups (default: {','.join(hosts.GROUPS)})"
    )
    up.add_argument("--from", dest="layer", metavar="LAYER", help="start from a layer that `save` made")
    up.set_defaults(run=_up)

    stop = verbs.add_parser("stop", help="shut hosts down; their disks stay")
    stop.add_argument("host", nargs="+", metavar="NAME")
    stop.set_defaults(run=_stop)

    down = verbs.add_parser("down", help="shut hosts down and remove them (all of the lab if none is named)")
    down.add_argument("host", nargs="*", metavar="NAME")
    down.add_argument("--all", action="store_true", help="every lab of this checkout, and the saved layers")
    down.set_defaults(run=_down)

    save = verbs.add_parser("save", help="freeze a stopped host's disk as a layer that new hosts can start from")
    save.add_argument("host", metavar="NAME")
    save.add_argument("layer", metavar="LAYER")
    save.set_defaults(run=_save)

    listing = verbs.add_parser("list", help="show the hosts of this lab")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(run=_list)

    execute = verbs.add_parser("exec", help="run a command in a host, without SSH")
    execute.add_argument("host", metavar="NAME")
    execute.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD…")
    execute.set_defaults(run=_exec)

    ssh = verbs.add_parser("ssh", help="log in to a host, or run a command over SSH")
    ssh.add_argument("host", metavar="NAME")
    ssh.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD…")
    ssh.set_defaults(run=_ssh)

    guard = verbs.add_parser("guard", help="check that no packet for a lab address can leave this machine")
    guard.set_defaults(run=_guard)

    listed = verbs.add_parser("inventory", help="print the running hosts as an Ansible inventory")
    listed.add_argument("--list", action="store_true", help="the whole inventory (the default)")
    listed.add_argument("--host", metavar="NAME", help="one host's variables")
    listed.set_defaults(run=_inventory)

    dependencies = verbs.add_parser("deps", help="install the Debian packages that the lab needs")
    dependencies.set_defaults(run=_deps)

    purge = verbs.add_parser("purge", help="remove this checkout's hosts and guard routes, and all caches")
    purge.set_defaults(run=_purge)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; errors are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    os.umask(0o022)  # folders made here become folders inside hosts, where services must be able to read them
    try:
        status: int = options.run(Lab(check_name("the lab name", options.lab)), options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; the same command mends what is half done", file=sys.stderr)
        return 130
    return status
