"""Starts, stops, removes and saves lab hosts."""

import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bedplate_lab import images, network, seeding, supervision
from bedplate_lab.errors import LabError
from bedplate_lab.paths import check_name
from bedplate_lab.records import DEFAULT_SUITE, Host, HostRecords, HostSpec
from bedplate_lab.tools import locked, say, write_json

SSH_SECONDS = 30
PARALLEL = 8


class HostLifecycle:
    """Starts, stops, removes and saves the hosts of one lab."""

    def __init__(self, records: HostRecords) -> None:
        self.records = records
        self.lab = records.lab

    def up(self, names: Sequence[str], spec: HostSpec) -> None:
        """Boot the named hosts in parallel and wait until each answers on SSH; skip running ones."""
        for name in names:
            check_name("the host name", name)
        self.lab.write_record()
        if spec.layer is None and not all(self.records.exists(name) for name in names):
            # Before the lab's lock is taken: this can take a minute.
            images.base(spec.suite or DEFAULT_SUITE)
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            for _ in pool.map(partial(self._up, spec=spec), dict.fromkeys(names)):
                pass

    def stop(self, host: Host) -> None:
        """Shut a host down cleanly; its disk stays, so that `up` boots it again."""
        with self._host_lock(host.name):
            self._clean_up(host)
            self._drop_network_if_last()

    def power_cut(self, host: Host) -> None:
        """Cut a host's power; its disk stays as it was at that moment."""
        with self._host_lock(host.name):
            supervision.power_cut(self.records.process(host))
            network.unplug(self.lab, host.name, host.number)

    def pause(self, host: Host, paused: bool) -> None:
        """Freeze every process of a host, or thaw them."""
        group = self.records.group(host)
        if group.leader() is None:
            raise LabError(f"host {host.name!r} is not running; start it with `lab/lab up {host.name}`")
        group.freeze(paused)

    def down(self, host: Host) -> None:
        """Shut a host down and remove everything of it, including its disk."""
        with self._host_lock(host.name):
            self._clean_up(host)
            removed = self.lab.state / "removed" / f"{host.name}-{host.machine_id}"
            removed.parent.mkdir(exist_ok=True)
            with self._network_lock():
                self.records.folder(host).rename(removed)
                seeding.write_keys(self.records)
            shutil.rmtree(removed, ignore_errors=True)
            self._drop_network_if_last()
        say(f"{host.name} is down")

    def down_all(self) -> None:
        """Take down every host of the lab, and remove the leftovers of an interrupted `down`."""
        with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
            for _ in pool.map(self.down, self.records.all()):
                pass
        shutil.rmtree(self.lab.state / "removed", ignore_errors=True)
        if self.lab.state.is_dir():
            self._drop_network_if_last()

    def save(self, host: Host, layer: str) -> None:
        """Save a stopped host's disk as a read-only layer for new hosts; the host then uses it too."""
        check_name("the layer name", layer)
        with self._host_lock(host.name):
            state = self.records.state(host)
            if state != "stopped":
                raise LabError(f"host {host.name!r} is {state}; run `lab/lab stop {host.name}` first")
            target = self.lab.layers / layer
            if target.exists():
                raise LabError(f"there is already a layer {layer!r}; save under another name")
            tree = self.records.folder(host) / "upper"
            if not tree.is_dir():
                raise LabError(f"host {host.name!r} has never run; start it with `lab/lab up {host.name}`")
            # A host's identity stays out of the layer; `up` gives each host its own.
            for path in [*tree.glob("etc/ssh/ssh_host_*"), tree / "etc/machine-id"]:
                path.unlink(missing_ok=True)
            shutil.rmtree(tree / "var/log/journal" / host.machine_id, ignore_errors=True)
            target.mkdir(parents=True)
            lower = list(host.lower)
            host.lower.append(str(target / "tree"))
            tree.rename(target / "tree")
            seeding.seeded_mark(self.records, host).unlink()
            self.records.write(host)
            write_json(target / "layer.json", {"suite": host.suite, "lower": lower})
        say(f"saved {host.name} as layer {layer}: boot from it with `lab/lab up NAME --from {layer}`")

    @contextmanager
    def _host_lock(self, name: str) -> Iterator[None]:
        with locked(self.lab.state / f"{name}.lock", f"starts or stops {name}"):
            yield

    @contextmanager
    def _network_lock(self) -> Iterator[None]:
        with locked(self.lab.lock, "changes the lab's network"):
            yield

    def _up(self, name: str, spec: HostSpec) -> None:
        started = time.monotonic()
        with self._host_lock(name):
            host = self.records.create_or_update(name, spec)
            if self.records.state(host) == "running":
                with self._network_lock():
                    network.bring_up(self.lab)
                say(f"{name} is up already: {host.suite}, {self.records.address(host)}")
                return
            self._clean_up(host)
            missing = [path for path in host.lower if not Path(path).is_dir()]
            if missing:
                raise LabError(
                    f"{name} can't start without {missing[0]}; run `lab/lab down {name}` and then `up` again"
                )
            with self._network_lock():
                subnet = network.bring_up(self.lab)
                seeding.write_keys(self.records)
                network.plug_in(self.lab, host.name, host.number, subnet)
            seeding.seed(self.records, host)
            supervision.start(self.records.process(host))
            self._wait_for_ssh(host)
        seconds = time.monotonic() - started
        say(f"{name} is up: {host.suite}, {self.records.address(host)}, {seconds:.1f} s")

    def _clean_up(self, host: Host) -> None:
        """Remove the leftovers of an earlier start of the host, even a half start; its disk stays."""
        supervision.stop(self.records.process(host))
        network.unplug(self.lab, host.name, host.number)

    def _drop_network_if_last(self) -> None:
        with self._network_lock():
            ports = Path("/sys/class/net", self.lab.bridge, "brif")
            if not ports.is_dir() or not any(ports.iterdir()):
                network.take_down(self.lab)

    def _wait_for_ssh(self, host: Host) -> None:
        started, address = time.monotonic(), (str(self.records.address(host)), 22)
        while (waited := time.monotonic() - started) < SSH_SECONDS:
            try:
                with socket.create_connection(address, 1) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                time.sleep(0.03)
            if waited > 2 and not any(True for _ in self.records.group(host).processes()):
                break
        console = self.records.folder(host) / "console.log"
        lines = console.read_text(errors="replace").strip().splitlines()[-1:] if console.exists() else []
        raise LabError(
            f"host {host.name!r} did not answer on SSH ({lines[0] if lines else 'its console is empty'}); "
            f"read {console}, then try `lab/lab down {host.name}` and `lab/lab up {host.name}`"
        )
