"""The lab's command line."""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bedplate_lab import deps, engine, fake_pci, faults, images, inventory, model, network, registry
from bedplate_lab.access import HostAccess, attach
from bedplate_lab.errors import LabError
from bedplate_lab.lifecycle import HostLifecycle
from bedplate_lab.paths import Lab, cache_folder, check_name
from bedplate_lab.records import DEFAULT_SUITE, GROUPS, HostRecords, HostSpec, labs_to_clean, others_running
from bedplate_lab.tools import locked, require_root, say, succeeds, write_json

EPILOG = """\
examples:
  lab/lab up web1 gpu1               two hosts on Debian 13, up in about a second
  lab/lab up old --suite bookworm    one on Debian 12
  lab/lab exec web1 systemctl status a command in a host, with its exit status
  lab/lab fault offline web1         pull the network cable; `online` plugs it in
  lab/lab down                       stop and remove every host of this lab
  lab/lab purge                      remove the guard route and all caches too

Hosts are systemd-nspawn containers with systemd, sshd and a network of their own. They share the kernel
and are not isolated like virtual machines: run only what you would run as root here. Images, engines and
models are cached in $XDG_CACHE_HOME/bedplate, hosts and layers live in $XDG_STATE_HOME/bedplate.
"""


def _up(lab: Lab, options: argparse.Namespace) -> int:
    require_root("up")
    deps.require()
    groups = options.groups.split(",") if options.groups is not None else None
    if groups is not None:
        groups = [group for group in groups if group]
    fake_gpus = fake_pci.check(options.fake_gpu) if options.fake_gpu is not None else None
    spec = HostSpec(suite=options.suite, groups=groups, layer=options.layer, fake_gpus=fake_gpus)
    HostLifecycle(HostRecords(lab)).up(options.host, spec)
    return 0


def _stop(lab: Lab, options: argparse.Namespace) -> int:
    require_root("stop")
    records = HostRecords(lab)
    for host in [records.get(name) for name in options.host]:
        HostLifecycle(records).stop(host)
        say(f"{host.name} is stopped; `lab/lab up {host.name}` boots it again")
    return 0


def _down(lab: Lab, options: argparse.Namespace) -> int:
    require_root("down")
    if options.host and (options.all_labs or options.layers):
        raise LabError("--all-labs and --layers take down every host; leave the names out, or the option")
    if options.host:
        records = HostRecords(lab)
        for host in [records.get(name) for name in options.host]:
            HostLifecycle(records).down(host)
        return 0
    for affected in labs_to_clean() if options.all_labs else [lab]:
        HostLifecycle(HostRecords(affected)).down_all()
        if options.all_labs or options.layers:
            shutil.rmtree(affected.layers, ignore_errors=True)
    return 0


def _purge(lab: Lab, _options: argparse.Namespace) -> int:
    require_root("purge")
    others = others_running()
    if others:
        raise LabError(
            f"hosts of another checkout run from the same caches ({'; '.join(others)}); "
            "run `lab/lab down --all-labs` there first"
        )
    for own_lab in labs_to_clean():
        HostLifecycle(HostRecords(own_lab)).down_all()
        with locked(own_lab.lock, "changes the lab's network"):
            network.take_down(own_lab)
            network.remove_guard(own_lab)
        own_lab.remove_state()
    for kind in ("engine", "model"):
        lab.artifact_record(kind).unlink(missing_ok=True)
    shutil.rmtree(cache_folder(), ignore_errors=True)
    say(f"removed the guard routes, the state of this checkout's labs, and {cache_folder()}")
    return 0


def _list(lab: Lab, options: argparse.Namespace) -> int:
    records = HostRecords(lab)
    rows = [
        {
            "name": host.name,
            "state": records.state(host),
            "suite": host.suite,
            "address": str(records.address(host)),
            "groups": ",".join(host.groups),
        }
        for host in records.all()
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
    records = HostRecords(lab)
    command = HostAccess(records).exec_command(records.get(options.host), options.command)
    return attach(command)


def _ssh(lab: Lab, options: argparse.Namespace) -> int:
    records = HostRecords(lab)
    command = HostAccess(records).ssh_command(records.get(options.host), options.command)
    return attach(command)


def _save(lab: Lab, options: argparse.Namespace) -> int:
    require_root("save")
    records = HostRecords(lab)
    HostLifecycle(records).save(records.get(options.host), options.layer)
    return 0


def _fault(lab: Lab, options: argparse.Namespace) -> int:
    require_root("fault")
    records = HostRecords(lab)
    options.inject(records, options)
    return 0


def _signal_service(records: HostRecords, options: argparse.Namespace) -> None:
    faults.signal_service(records, records.get(options.host), options.service, options.fault.upper())


def _cut(records: HostRecords, options: argparse.Namespace) -> None:
    faults.cut(records, records.get(options.source), records.get(options.target), options.port)


def _registry(lab: Lab, options: argparse.Namespace) -> int:
    records = HostRecords(lab)
    if options.inside:
        require_root("registry")
        registry.serve_in(records, records.get(options.inside), options.models, options.port, options.pause)
    else:
        address = options.address or str(network.gateway(network.check_guard(lab)))
        registry.serve(Path(options.models), address, options.port, options.pause)
    return 0


def _guard(lab: Lab, _options: argparse.Namespace) -> int:
    say(f"packets for {network.check_guard(lab)} stay on this machine")
    return 0


def _inventory(lab: Lab, options: argparse.Namespace) -> int:
    records = HostRecords(lab)
    if options.host:
        print(json.dumps(inventory.host_variables(records, records.get(options.host)), indent=2))
    else:
        print(json.dumps(inventory.build_inventory(records), indent=2))
    return 0


def _engine(lab: Lab, options: argparse.Namespace) -> int:
    if options.archive:
        record = engine.as_json(engine.use_archive(Path(options.archive), options.version))
    else:
        record = engine.as_json(engine.find_or_build(options.version))
    write_json(lab.artifact_record("engine"), record)
    print(json.dumps(record, indent=2))
    return 0


def _model(lab: Lab, _options: argparse.Namespace) -> int:
    record = model.find_or_fetch()
    write_json(lab.artifact_record("model"), record)
    print(json.dumps(record, indent=2))
    return 0


def _check(_lab: Lab, _options: argparse.Namespace) -> int:
    require_root("check")
    deps.require()
    if not succeeds(["unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "true"]):
        raise LabError("this machine does not allow root to create namespaces; use your own machine or VM")
    return 0


def _deps(_lab: Lab, _options: argparse.Namespace) -> int:
    require_root("deps")
    deps.install()
    return 0


def _add_faults(verbs: Any) -> None:
    """Add `fault` with one sub-verb per fault."""
    parser = verbs.add_parser("fault", help="break something on purpose, or repair it; see `fault --help`")
    parser.set_defaults(run=_fault)
    kinds = parser.add_subparsers(dest="fault", metavar="FAULT", required=True, title="faults")

    def add(
        name: str, text: str, inject: Callable[[HostRecords, argparse.Namespace], None], *words: str
    ) -> None:
        fault = kinds.add_parser(name, help=text)
        for word in words:
            fault.add_argument(word.lower(), metavar=word, type=int if word == "PORT" else str)
        fault.set_defaults(inject=inject)

    add("kill", "kill a service's main process", _signal_service, "HOST", "SERVICE")
    add("stop", "hang a service: stop its main process with SIGSTOP", _signal_service, "HOST", "SERVICE")
    add("cont", "continue a hung service", _signal_service, "HOST", "SERVICE")
    add(
        "offline",
        "pull a host's network cable",
        lambda records, o: faults.set_online(records, records.get(o.host), False),
        "HOST",
    )
    add(
        "online",
        "plug it in again",
        lambda records, o: faults.set_online(records, records.get(o.host), True),
        "HOST",
    )
    add("cut", "drop one host's packets to a TCP port of another", _cut, "SOURCE", "TARGET", "PORT")
    add("heal", "undo every cut", lambda records, _: faults.heal(records))
    add(
        "slow",
        "limit a host's outgoing traffic, such as to 1mbit",
        lambda records, o: faults.slow(records, records.get(o.host), o.rate),
        "HOST",
        "RATE",
    )
    add(
        "fast", "remove the limit", lambda records, o: faults.slow(records, records.get(o.host), None), "HOST"
    )
    add(
        "fill",
        "mount a full disk, such as of 4M, over a folder",
        lambda records, o: faults.fill(records, records.get(o.host), o.folder, o.size),
        "HOST",
        "FOLDER",
        "SIZE",
    )
    add(
        "unfill",
        "unmount the full disk",
        lambda records, o: faults.unfill(records, records.get(o.host), o.folder),
        "HOST",
        "FOLDER",
    )
    add(
        "power-cut",
        "cut a host's power; `up` boots it again",
        lambda records, o: HostLifecycle(records).power_cut(records.get(o.host)),
        "HOST",
    )
    add(
        "pause",
        "freeze every process of a host",
        lambda records, o: HostLifecycle(records).pause(records.get(o.host), True),
        "HOST",
    )
    add(
        "resume",
        "thaw a paused host",
        lambda records, o: HostLifecycle(records).pause(records.get(o.host), False),
        "HOST",
    )


def _add_hosts(verbs: Any) -> None:
    """Add the verbs that make, use and remove hosts."""
    up = verbs.add_parser("up", help="boot hosts and wait until they answer on SSH")
    up.add_argument("host", nargs="+", metavar="NAME")
    up.add_argument("--suite", choices=images.SUITES, help=f"Debian release (default: {DEFAULT_SUITE})")
    up.add_argument(
        "--groups", metavar="GROUP,…", help=f"the hosts' inventory groups (default: {','.join(GROUPS)})"
    )
    up.add_argument("--from", dest="layer", metavar="LAYER", help="start from a layer that `save` made")
    up.add_argument(
        "--fake-gpu",
        metavar="ID,…",
        help="fake cards, by PCI id VENDOR:DEVICE[:CLASS]; they can be detected, but not used",
    )
    up.set_defaults(run=_up)

    stop = verbs.add_parser("stop", help="shut hosts down; their disks stay")
    stop.add_argument("host", nargs="+", metavar="NAME")
    stop.set_defaults(run=_stop)

    down = verbs.add_parser("down", help="shut hosts down and remove them (all of the lab if none is named)")
    down.add_argument("host", nargs="*", metavar="NAME")
    which = down.add_mutually_exclusive_group()
    which.add_argument(
        "--all-labs", action="store_true", help="all of every lab of this checkout, and its layers"
    )
    which.add_argument("--layers", action="store_true", help="all hosts of the lab and its saved layers")
    down.set_defaults(run=_down)

    save = verbs.add_parser(
        "save", help="freeze a stopped host's disk as a layer that new hosts can start from"
    )
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


def _add_stack(verbs: Any) -> None:
    """Add the verbs that serve a stack on the hosts: its inventory, engine and models."""
    guard = verbs.add_parser("guard", help="check that no packet for a lab address can leave this machine")
    guard.set_defaults(run=_guard)

    listed = verbs.add_parser("inventory", help="print the running hosts as an Ansible inventory")
    listed.add_argument("--list", action="store_true", help="the whole inventory (the default)")
    listed.add_argument("--host", metavar="NAME", help="one host's variables")
    listed.set_defaults(run=_inventory)

    built = verbs.add_parser("engine", help="build or find a real Ollama and print its archive as JSON")
    built.add_argument(
        "--version", default=engine.DEFAULT_VERSION, help="version of Ollama (default: %(default)s)"
    )
    built.add_argument(
        "--archive",
        metavar="FILE",
        default=os.environ.get("BEDPLATE_LAB_ENGINE_ARCHIVE"),
        help="use this release archive instead (default: $BEDPLATE_LAB_ENGINE_ARCHIVE)",
    )
    built.set_defaults(run=_engine)

    fetched = verbs.add_parser("model", help="download or find a small real model and print its file as JSON")
    fetched.set_defaults(run=_model)

    served = verbs.add_parser("registry", help="serve a folder of Ollama models as a registry to pull from")
    served.add_argument("action", choices=["serve"])
    served.add_argument(
        "models", metavar="MODELS_DIR", help="the folder in OLLAMA_MODELS of the host that has the models"
    )
    served.add_argument(
        "--in", dest="inside", metavar="HOST", help="serve a folder of this host from this host"
    )
    served.add_argument("--address", help="address to listen on (default: this machine's address in the lab)")
    served.add_argument("--port", type=int, default=5000, help="TCP port (default: %(default)s)")
    served.add_argument(
        "--pause", type=float, default=0, help="seconds to wait after each MiB (default: %(default)s)"
    )
    served.set_defaults(run=_registry)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lab/lab",
        description="Throwaway bare-metal-like Debian hosts on this machine, to try Bedplate on.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--lab",
        metavar="NAME",
        default=os.environ.get("BEDPLATE_LAB") or "main",
        help="name of the set of hosts (default: $BEDPLATE_LAB, else main)",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    _add_hosts(verbs)
    _add_faults(verbs)
    _add_stack(verbs)

    dependencies = verbs.add_parser("deps", help="install the Debian packages that the lab needs")
    dependencies.set_defaults(run=_deps)

    check = verbs.add_parser("check", help="check that this machine can boot lab hosts")
    check.set_defaults(run=_check)

    purge = verbs.add_parser("purge", help="remove this checkout's hosts and guard routes, and all caches")
    purge.set_defaults(run=_purge)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; errors are one sentence on standard error."""
    options = _parser().parse_args(arguments)
    os.umask(0o022)  # folders made here become folders inside hosts, where services must be able to read them
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM cleans up like Ctrl-C
    try:
        status: int = options.run(Lab(check_name("the lab name", options.lab)), options)
        sys.stdout.flush()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader closed the pipe
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted; run the same command again to complete it", file=sys.stderr)
        return 130
    return status
