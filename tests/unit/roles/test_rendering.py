"""The rendered templates: units without warnings from systemd, and correct configuration files."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from bedplate_dashboard.settings import load
from bedplate_gateway.keys import KeysFile
from bedplate_gateway.settings import Settings, UnixListener

from tests.support.rendering import Rendered, Stack

STOCK_UNITS = Path("/usr/lib/systemd/system")
# Maximum of `systemd-analyze security`, in tenths: 3.0.
EXPOSURE = 30
Verify = Callable[[dict[str, str]], str]


@pytest.fixture(scope="session")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Verify:
    """A function that returns the output of `systemd-analyze verify` for units, given their texts."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(STOCK_UNITS, tree / "usr/lib/systemd/system", symlinks=True)
    (tree / "lib").symlink_to("usr/lib")
    (tree / "bin").symlink_to("usr/bin")
    (tree / "sbin").symlink_to("usr/sbin")
    own = tree / "etc/systemd/system"

    def run(units: dict[str, str]) -> str:
        shutil.rmtree(own, ignore_errors=True)
        own.mkdir(parents=True)
        for name, text in units.items():
            (own / name).write_text(text)
            for program in re.findall(r"^Exec\w+=[-+@!:]*(/\S+)", text, re.MULTILINE):
                dummy = tree / program.lstrip("/")
                dummy.parent.mkdir(parents=True, exist_ok=True)
                dummy.touch(mode=0o755)
        files = [str(own / name) for name in units]
        done = subprocess.run(
            ["systemd-analyze", "verify", f"--root={tree}", "--man=no", *files],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.stdout + done.stderr + ("" if done.returncode == 0 else f"exit {done.returncode}\n")

    return run


def test_systemd_has_no_warning_about_any_unit(stack: Stack, verify: Verify) -> None:
    for host, rendered in stack.hosts.items():
        assert verify(rendered.units) == "", host


ONE_BOX = pytest.mark.parametrize("stack", ["one-box"], indirect=True)


@ONE_BOX
def test_a_misspelt_directive_is_detected_in_every_unit(stack: Stack, verify: Verify) -> None:
    units = stack.hosts["box"].units
    for name in units.keys() - {
        "bedplate.target",
        "bedplate-drift.timer",
        "bedplate-heal@.timer",
        "host-facts.timer",
        "traffic-canary.timer",
    }:
        wrong = units[name].replace("NoNewPrivileges=", "NoNewPrivilege=")
        assert wrong != units[name]
        assert "NoNewPrivilege" in verify({**units, name: wrong}), name


@ONE_BOX
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ProtectSystem=strict", "ProtectSystem=strictly"),
        ("RestartSec=1", "RestartSteps=3"),  # only systemd 254 and later know it
        ("SystemCallFilter=@system-service", "SystemCallFilter=@system-services"),
        ("PartOf=bedplate.target", "PartOf=bedplate.targt"),
        ("ExecStart=/opt", "ExecStart=opt"),
        ("ExecStart=/opt", "Exec=/opt"),
    ],
)
def test_a_wrong_value_is_detected(stack: Stack, verify: Verify, right: str, wrong: str) -> None:
    units = stack.hosts["box"].units
    text = units["bedplate-gateway.service"].replace(right, wrong)
    assert text != units["bedplate-gateway.service"]
    assert "bedplate-gateway.service" in verify({**units, "bedplate-gateway.service": text})


def exposure(unit: Path) -> subprocess.CompletedProcess[str]:
    """Rate one unit file with systemd; the exit status is 0 if it is at most EXPOSURE."""
    return subprocess.run(
        ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", unit],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_exposure_of_every_service(stack: Stack, tmp_path: Path) -> None:
    for rendered in stack.hosts.values():
        for name, text in rendered.units.items():
            if name.endswith(".service"):
                unit = tmp_path / name
                unit.write_text(text)
                done = exposure(unit)
                assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"


@ONE_BOX
def test_a_service_without_its_sandbox_is_too_exposed(stack: Stack, tmp_path: Path) -> None:
    unit = tmp_path / "bedplate-gateway.service"
    unit.write_text(
        re.sub(
            r"^(Protect|Private|Restrict|Capability|System).*$",
            "",
            stack.hosts["box"].units[unit.name],
            flags=re.M,
        )
    )
    assert exposure(unit).returncode != 0


def directives(unit: str) -> dict[str, str]:
    """Return the last value of each directive of a unit, which is the one that counts."""
    return dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))


def test_every_service_has_bounds_of_its_own(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for name, text in rendered.units.items():
            if name.endswith(".service"):
                bounds = ("MemoryMax", "TasksMax", "CPUWeight", "OOMScoreAdjust", "OOMPolicy")
                assert directives(text).keys() >= {*bounds}, name


def test_who_passes_requests_on_is_killed_last_and_computes_first(stack: Stack) -> None:
    found = {
        name: directives(text) for rendered in stack.hosts.values() for name, text in rendered.units.items()
    }
    scores = {name: int(unit["OOMScoreAdjust"]) for name, unit in found.items() if "OOMScoreAdjust" in unit}
    last = {"bedplate-gateway", "bedplate-edge", "bedplate-exporter", "node-exporter"}
    assert {name for name, score in scores.items() if score == min(scores.values())} == {
        f"{name}.service" for name in last
    }
    lasting = {name for name in scores if found[name].get("Restart") == "always"}
    assert max(lasting, key=scores.__getitem__) == "ollama.service"
    assert found["ollama.service"]["OOMPolicy"] == "continue"
    weights = {name: int(unit["CPUWeight"]) for name, unit in found.items() if "CPUWeight" in unit}
    first = {"bedplate-gateway.service", "bedplate-edge.service"}
    assert {name for name, weight in weights.items() if weight == max(weights.values())} == first


def test_memory_limits_are_the_settings(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        limits = {name: directives(text).get("MemoryMax") for name, text in rendered.units.items()}
        large = stack.name == "two-engines"
        for name, limit in {
            "bedplate-gateway.service": "3G" if large else "1G",
            "prometheus.service": "8G" if large else "2G",
            "ollama.service": "40G" if large else "90%",
        }.items():
            assert limits.get(name, limit) == limit


def test_nothing_stays_down_for_good(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for name, text in rendered.units.items():
            unit = directives(text)
            if name.endswith(".service") and unit["Type"] != "oneshot":
                assert (unit["Restart"], unit["StartLimitIntervalSec"]) == ("always", "0"), name
                # Invalid settings, for which a restart is no remedy.
                assert unit.get("RestartPreventExitStatus") == ("78" if "gateway" in name else None)


# Systemd's watchdog sees that the others hang.
HEALED = {"ollama", "bedplate-edge", "prometheus", "alertmanager", "node-exporter"}


def test_each_service_has_a_watchdog_or_is_asked(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for name, text in rendered.units.items():
            unit = directives(text)
            if unit.get("Restart") == "always":
                watched = (unit.get("WatchdogSec"), unit.get("WatchdogSignal")) == ("30", "SIGKILL")
                assert watched != (name.removesuffix(".service") in rendered.wiring["bedplate_healed"]), name


def test_services_without_a_watchdog_are_asked(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        services = {name.removesuffix(".service") for name in rendered.units if name.endswith(".service")}
        healed = rendered.wiring["bedplate_healed"]
        assert healed.keys() == HEALED & services
        for name, settings in healed.items():
            # The unit's start has asked the same service.
            place = settings["url"].rpartition("/")[0]
            assert f" {place}" in rendered.units[f"{name}.service"], name
            assert settings["busy_seconds"] == (300 if name == "ollama" else 0)


def test_every_unit_is_marked_as_managed_and_belongs_to_the_target(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for name, text in rendered.units.items():
            assert text.startswith("# Managed by Bedplate.\n"), name
            if name not in (
                "bedplate.target",
                "bedplate-drift.service",
                "bedplate-heal@.service",
                "bedplate-heal@.timer",
                "ollama-preload.service",
                "ollama-guard.service",
                "ollama-guard.timer",
                "edge-certificate.service",
                "host-facts.service",
                "traffic-canary.service",
            ):
                assert "\nPartOf=bedplate.target\n" in text
                assert "\nWantedBy=bedplate.target\n" in text


def test_each_writer_of_host_metrics_may_write_its_own_only(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        folders = {"host-facts": "host", "traffic-canary": "canary", "bedplate-drift": "drift"}
        for name, folder in folders.items():
            unit = directives(rendered.units.get(f"{name}.service", ""))
            if unit:
                assert unit["ReadWritePaths"] == f"/var/lib/node-exporter/{folder}"
                assert "SupplementaryGroups" not in unit


def test_nothing_is_left_unrendered(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for name, text in {**rendered.units, **rendered.files}.items():
            # Prometheus expands the rest of its rules itself.
            left = r"\[\[|\]\]|\[%" if name.endswith(".rules.yml") else "{{|}}|{%"
            assert not re.search(rf"{left}|\bNone\b|Undefined", text), name


DEVICES = {
    "cuda": ["char-nvidiactl", "char-nvidia-frontend", "char-nvidia-uvm", "char-nvidia-caps"],
    "rocm": ["char-kfd", "char-drm"],
    "cpu": [],
}


def test_ollama_may_open_its_backends_devices_and_waits_for_them(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        if "ollama.service" not in rendered.units:
            continue
        unit, backend = rendered.units["ollama.service"], rendered.wiring["ollama_gpu_backend"]
        assert re.findall(r"^DeviceAllow=(\S+) rw$", unit, re.MULTILINE) == DEVICES[backend]
        assert ("\nDevicePolicy=closed\n" in unit) == (backend != "cpu")
        assert ("\nPrivateDevices=yes\n" in unit) == (backend == "cpu")
        assert ("\nAfter=gpu-devices.service\n" in unit) == (backend != "cpu")
        assert ("gpu-devices.service" in rendered.units) == (backend != "cpu")
        assert ("\nSupplementaryGroups=render video\n" in unit) == (backend == "rocm")
        exporter = rendered.units["bedplate-exporter.service"]
        assert ("char-nvidiactl" in exporter) == (backend == "cuda")
        assert ("PrivateDevices=yes" in exporter) == (backend != "cuda")


def test_the_exporter_gets_the_expected_number_of_gpus(stack: Stack) -> None:
    expected = {"one-box": "", "three-hosts": "", "two-engines": "nvidia=2"}[stack.name]
    host = "box" if stack.name == "one-box" else "gpu1"
    assert f'\nBEDPLATE_EXPECTED_GPUS="{expected}"\n' in stack.hosts[host].files["exporter.env"]


def test_ollama_is_closed_to_other_hosts(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        if "ollama.service" not in rendered.units:
            continue
        clients = rendered.wiring["ollama_allowed_clients"]
        listen = rendered.wiring["ollama_listen_address"]
        port = rendered.wiring["ollama_url"].rpartition(":")[2]
        assert f"OLLAMA_HOST={listen}:{port}\n" in rendered.files["ollama.env"]
        assert "OLLAMA_NO_CLOUD=1\n" in rendered.files["ollama.env"]
        assert bool(clients) == (listen != "127.0.0.1")
        engine = rendered.units["ollama.service"]
        assert ("ExecStartPre=+/usr/sbin/nft -f" in engine) == bool(clients)
        assert ("ollama-guard.timer" in rendered.units) == bool(clients)
        # A stop of the guard or of nftables must not stop the engine.
        assert not re.search(r"^(Requires|BindsTo|Requisite|PartOf)=.*(guard|nftables)", engine, re.MULTILINE)
        if clients:
            others = f'tcp dport {port} iifname != "lo" ip saddr != {{ {", ".join(clients)} }} reject'
            assert others in rendered.files["clients.nft"]


def test_nftables_loads_ollamas_table_after_each_of_its_commands(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        if "ollama-guard.service" not in rendered.units:
            continue
        drop_in = rendered.files["nftables.conf"]
        commands = dict(re.findall(r"^(Exec\w+)=-/usr/sbin/nft -f (\S+)$", drop_in, re.MULTILINE))
        assert commands.keys() == {"ExecStartPost", "ExecReload", "ExecStopPost"}
        assert set(commands.values()) == {"/etc/bedplate/ollama/clients.nft"}
        guard = rendered.units["ollama-guard.service"]
        assert "\nCapabilityBoundingSet=CAP_NET_ADMIN\n" in guard
        assert "\nExecStopPost=/usr/sbin/nft -f /etc/bedplate/ollama/clients.nft\n" in guard


def allowed(unit: str) -> list[str]:
    """Return the addresses that a unit may exchange packets with; fails if it denies no others."""
    assert "\nIPAddressDeny=any\n" in unit
    (addresses,) = re.findall(r"^IPAddressAllow=(.*)$", unit, re.MULTILINE)
    return str(addresses).split()


def test_metrics_are_open_only_to_monitoring(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        for service, role in (("node-exporter", "node_exporter"), ("bedplate-exporter", "exporter")):
            unit = rendered.units.get(f"{service}.service")
            if unit is not None:
                assert allowed(unit) == ["localhost", *rendered.wiring[f"{role}_allowed_clients"]]


def test_services_exchange_packets_only_with_their_peers(stack: Stack) -> None:
    found = {
        name
        for rendered in stack.hosts.values()
        for name, variable in (
            ("bedplate-gateway", "gateway"),
            ("litellm", "litellm"),
            ("traffic-canary", "traffic_canary"),
            ("prometheus", "prometheus"),
            ("bedplate-dashboard", "dashboard"),
        )
        if f"{name}.service" in rendered.units
        and allowed(rendered.units[f"{name}.service"]) == rendered.wiring[f"{variable}_allowed_addresses"]
    }
    assert found == {"bedplate-gateway", "litellm", "traffic-canary", "prometheus", "bedplate-dashboard"}


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_proxies_are_used_only_for_downloads(stack: Stack) -> None:
    with_proxy = {
        name
        for rendered in stack.hosts.values()
        for name, text in {**rendered.units, **rendered.files}.items()
        if "10.2.0.9:3128" in text
    }
    # The engine itself pulls its models.
    assert with_proxy == {"ollama.env"}


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_no_service_gets_a_proxy_with_a_password(stack: Stack) -> None:
    """Ollama writes its proxies to the journal at its start."""
    for rendered in stack.hosts.values():
        for text in [*rendered.units.values(), *rendered.files.values()]:
            assert "word-of-the-proxy" not in text
            assert "APT_CONFIG" not in text


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_models_on_another_disk(stack: Stack) -> None:
    unit = stack.hosts["gpu1"].units["ollama.service"]
    assert "\nRequiresMountsFor=/srv/models\n" in unit
    assert "\nReadWritePaths=/srv/models\n" in unit
    assert "ReadWritePaths" not in stack.hosts["gpu2"].units["ollama.service"]


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_samples_on_another_disk(stack: Stack) -> None:
    unit = stack.hosts["front"].units["prometheus.service"]
    assert "--storage.tsdb.path=/srv/samples " in unit
    assert "\nRequiresMountsFor=/srv/samples\n" in unit
    assert "\nReadWritePaths=/srv/samples\n" in unit


def gateway(stack: Stack) -> Rendered:
    """Return the rendered files of the stack's gateway host."""
    (rendered,) = (rendered for rendered in stack.hosts.values() if "gateway.json" in rendered.files)
    return rendered


def test_the_gateway_reads_its_settings(stack: Stack) -> None:
    rendered = gateway(stack)
    settings = Settings.model_validate_json(rendered.files["gateway.json"])
    dumped = settings.model_dump(exclude_defaults=True, mode="json")
    engines = [engine for engine in dumped["engines"] if engine["kind"] != "litellm"]
    assert engines == rendered.wiring["gateway_engines"]
    assert settings.api == UnixListener(path=Path(rendered.wiring["gateway_socket"]))
    assert settings.metrics.allowed_clients == {*rendered.wiring["gateway_metrics_allowed_clients"]}
    # The role's defaults equal the gateway's.
    more = {"api", "metrics", "engines", "litellm", "keys_file", "state_dir"}
    if stack.name == "two-engines":
        assert dumped["models"] == {"llama3.2:3b": {"tpm": 50000, "max_output_tokens": 2048}}
        assert dumped["queues"] == {"low": {"size": 50, "seconds": 600}}
        assert settings.refuse_truncation
        assert settings.fallbacks == {"other": ("cloud",)}
        assert settings.provider_models == {"cloud"}
    elif stack.name == "three-hosts":
        assert dumped.keys() == more | {"traces"}
    else:
        assert dumped.keys() == more


def test_the_gateway_reads_its_keys(stack: Stack) -> None:
    keys = {key.alias: key for key in KeysFile.model_validate_json(gateway(stack).files["keys.json"]).keys}
    service = {"verify", "verify-limit", "dashboard", "canary"}
    assert (keys["default"].rpm, keys["default"].tpm, keys["default"].max_parallel) == (100, 1000, None)
    assert (keys["verify-limit"].rpm, keys["verify-limit"].tpm) == (10, None)
    if stack.name == "two-engines":
        assert keys.keys() == {"default", "night", "gone", *service}
        assert keys["night"].priority_class == "low"
        assert keys["night"].models == {"other"}
        assert str(keys["night"].expires) == "2027-01-31 00:00:00+00:00"
        assert keys["gone"].revoked
    else:
        assert keys.keys() == {"default", *service}


def test_the_key_of_an_engine_is_only_in_the_settings(stack: Stack) -> None:
    files = [
        name
        for rendered in stack.hosts.values()
        for name, text in {**rendered.units, **rendered.files}.items()
        if "sk-of-another-server" in text
    ]
    assert files == (["gateway.json"] if stack.name == "two-engines" else [])


def test_the_dashboard_reads_its_settings(stack: Stack, tmp_path: Path) -> None:
    (rendered,) = (rendered for rendered in stack.hosts.values() if "config.json" in rendered.files)
    (tmp_path / "config.json").write_text(rendered.files["config.json"])
    settings = load({"BEDPLATE_DASHBOARD_CONFIG": str(tmp_path / "config.json")})
    assert [host.name for host in settings.inference_hosts] == [
        host["name"] for host in rendered.wiring["dashboard_inference_hosts"]
    ]


def test_promtool_accepts_the_configuration(stack: Stack, tmp_path: Path, repo_root: Path) -> None:
    (rendered,) = (rendered for rendered in stack.hosts.values() if "prometheus.yml" in rendered.files)
    text = rendered.files["prometheus.yml"].replace("/etc/bedplate/prometheus/", "")
    for name in ("recording.rules.yml", "alerts.rules.yml"):
        (tmp_path / name).write_text(rendered.files[name])

    def promtool(config: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "prometheus.yml").write_text(config)
        return subprocess.run(
            [repo_root / "tests/tools/promtool", "check", "config", tmp_path / "prometheus.yml"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    done = promtool(text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert promtool(text.replace("scrape_timeout: 10s", "scrape_timeout: 99s")).returncode == 1
    jobs = yaml.safe_load(text)["scrape_configs"]
    addresses = [target for job in jobs for static in job["static_configs"] for target in static["targets"]]
    assert sorted(addresses) == sorted(t["address"] for t in rendered.wiring["prometheus_targets"])
    limits = {job["job_name"]: job["sample_limit"] for job in jobs}
    assert limits.pop("other", 70) == 70
    assert set(limits.values()) == {5000}


def test_prometheus_stores_no_buckets_of_litellm(stack: Stack) -> None:
    (rendered,) = (rendered for rendered in stack.hosts.values() if "prometheus.yml" in rendered.files)
    configs = yaml.safe_load(rendered.files["prometheus.yml"])["scrape_configs"]
    jobs = {job["job_name"]: job for job in configs}
    assert jobs["litellm"]["metrics_path"] == "/metrics/litellm"
    # Prometheus matches whole names.
    dropped = {
        name: [
            metric
            for metric in (
                "litellm_request_total_latency_metric_bucket",
                "litellm_spend_metric_created",
                "litellm_request_total_latency_metric_sum",
                "process_resident_memory_bytes",
            )
            if any(re.fullmatch(rule["regex"], metric) for rule in job["metric_relabel_configs"])
        ]
        for name, job in jobs.items()
    }
    assert dropped.pop("litellm") == [
        "litellm_request_total_latency_metric_bucket",
        "litellm_spend_metric_created",
    ]
    assert set(map(tuple, dropped.values())) == {("litellm_spend_metric_created",)}


def test_only_targets_behind_an_edge_get_the_password(stack: Stack) -> None:
    (rendered,) = (rendered for rendered in stack.hosts.values() if "prometheus.yml" in rendered.files)
    jobs = yaml.safe_load(rendered.files["prometheus.yml"])["scrape_configs"]
    assert {job["job_name"] for job in jobs if "basic_auth" in job} == {"prometheus", "dashboard"}
    schemes = {config["labels"].get("__scheme__") for job in jobs for config in job["static_configs"]}
    assert schemes == {None, "http" if stack.name == "one-box" else "https"}


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_alertmanager_sends_to_all_configured_receivers(stack: Stack) -> None:
    rendered = stack.hosts["front"]
    config = yaml.safe_load(rendered.files["alertmanager.yml"])
    _, receiver = config["receivers"]
    assert [hook["url"] for hook in receiver["webhook_configs"]] == [
        "http://10.2.0.11/hook",
        "http://10.2.0.12/hook",
    ]
    assert (
        receiver["webhook_configs"][0]["http_config"]["authorization"]["credentials"] == "token-of-the-hook"
    )
    (mail,) = receiver["email_configs"]
    assert (mail["to"], mail["smarthost"], mail["require_tls"]) == ("ops@example.net", "10.2.0.13:587", True)
    assert (mail["auth_username"], mail["auth_password"]) == ("bedplate", "word-of-mail")
    assert config["route"]["repeat_interval"] == "4h"
    assert config["route"]["routes"][1]["repeat_interval"] == "3600s"
    assert yaml.safe_load(rendered.files["prometheus.yml"])["alerting"]["alertmanagers"] == [
        {"static_configs": [{"targets": ["127.0.0.1:19093"]}]}
    ]


def test_a_stack_without_alertmanager(stack: Stack) -> None:
    for rendered in stack.hosts.values():
        if stack.name != "two-engines":
            assert "alertmanager.service" not in rendered.units
            assert "alerting" not in rendered.files.get("prometheus.yml", "")


@pytest.mark.parametrize("stack", ["two-engines"], indirect=True)
def test_the_watchdog_goes_outside_and_to_nobody_else(stack: Stack) -> None:
    config = yaml.safe_load(stack.hosts["front"].files["alertmanager.yml"])
    watch = config["receivers"][0]
    assert (watch["name"], len(watch)) == ("watchdog", 2)
    (hook,) = watch["webhook_configs"]
    assert (hook["url"], hook["send_resolved"]) == ("https://watch.example.net/ping/1", False)
    assert hook["http_config"]["authorization"]["credentials"] == "token-of-the-watch"
    route = config["route"]["routes"][0]
    assert (route["matchers"], route["receiver"]) == (['alertname="Watchdog"'], "watchdog")
    # At each look at its group, so once a minute.
    assert (route["group_wait"], route["group_interval"], route["repeat_interval"]) == ("0s", "1m", "1s")
    assert "continue" not in route
