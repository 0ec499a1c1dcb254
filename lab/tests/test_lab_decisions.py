"""The lab's decisions before it changes the machine."""

import os
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from bedplate_lab import cgroups, cli, engine, fake_pci, images, network, supervision, this_machine, tools
from bedplate_lab.cgroups import Layout
from bedplate_lab.errors import LabError
from bedplate_lab.paths import Lab, check_name

LAB = Lab("main", Path("/srv/bedplate"))
DEB822 = """\
# A comment.
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.pgp

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: https://tools.example/apt
Suites: tools-bookworm
Components: main
"""


def sources(tmp_path: Path, **files: str) -> list[dict[str, str]]:
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        (tmp_path / "sources.list.d" / name.replace("_", ".")).write_text(text)
    return this_machine.read_sources(tmp_path)


def test_sources_are_adapted_to_the_other_suite(tmp_path: Path) -> None:
    text = this_machine.sources_for("trixie", "bookworm", sources(tmp_path, debian_sources=DEB822))
    assert "Suites: trixie trixie-updates\n" in text
    assert "Suites: trixie-security\n" in text
    assert "deb-src" not in text
    assert "bookworm" not in text
    assert "tools.example" not in text


def test_the_keyring_is_one_that_both_suites_have(tmp_path: Path) -> None:
    text = this_machine.sources_for("bookworm", "bookworm", sources(tmp_path, debian_sources=DEB822))
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n" in text


def test_classic_source_lines_are_read(tmp_path: Path) -> None:
    line = (
        "deb [signed-by=/etc/key.gpg trusted=yes] http://mirror.example/debian bookworm main contrib # ours\n"
    )
    text = this_machine.sources_for("trixie", "bookworm", sources(tmp_path, own_list=line))
    for expected in (
        "Suites: trixie\n",
        "Components: main contrib\n",
        "Signed-By: /etc/key.gpg\n",
        "Trusted: yes\n",
    ):
        assert expected in text


def test_a_machine_without_debian_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"sources\.list\.d offers Debian's noble"):
        this_machine.sources_for("trixie", "noble", sources(tmp_path, debian_sources=DEB822))


def test_a_disabled_source_is_left_out(tmp_path: Path) -> None:
    disabled = DEB822.replace("Types: deb deb-src", "Enabled: no\nTypes: deb")
    text = this_machine.sources_for("trixie", "bookworm", sources(tmp_path, debian_sources=disabled))
    assert "mirror.example/debian\n" not in text


def test_index_settings_pass_and_files_of_this_machine_do_not() -> None:
    own = {
        "PIP_INDEX_URL": "http://index.example/simple",
        "UV_DEFAULT_INDEX": "http://index.example/simple",
        "https_proxy": "http://proxy.example:3128",
        "PIP_FIND_LINKS": "/opt/wheels",
        "UV_EXTRA_INDEX_URL": "file:///opt/index",
        "PIP_CERT": "/etc/own.pem",
        "SSL_CERT_FILE": "/etc/own.pem",
        "UV_CACHE_DIR": "relative",
        "HOME": "/root",
    }
    assert sorted(this_machine.environment(own)) == ["PIP_INDEX_URL", "UV_DEFAULT_INDEX", "https_proxy"]


def test_pip_configuration_has_no_file_of_this_machine(tmp_path: Path) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = http://index.example/a%20b\nfind-links = /opt/wheels\ncert = /a\n")
    text = this_machine.pip_configuration([file, tmp_path / "missing"])
    assert text == "[global]\nindex-url = http://index.example/a%20b\n"
    assert this_machine.pip_configuration([tmp_path / "missing"]) == ""


def test_the_subnet_avoids_every_route() -> None:
    free = network.pick(LAB.id, [])
    assert free.prefixlen == 24
    assert network.pick(LAB.id, []) == free
    assert network.pick(LAB.id, [free]) != free
    assert network.pick(LAB.id, [IPv4Network("10.0.0.0/8")]).overlaps(IPv4Network("172.16.0.0/12"))
    with pytest.raises(LabError, match="remove a route that is too wide"):
        network.pick(LAB.id, network.POOLS)


def test_every_subnet_of_a_pool_is_tried_once() -> None:
    tried = list(network.candidates("abcdef"))
    assert len(tried) == len(set(tried)) == 65536 + 4096 + 256


def test_names_fit_the_kernel_and_differ_between_checkouts_and_labs() -> None:
    assert max(len(LAB.bridge), len(network.veth(LAB, 199))) <= 15
    others = [Lab("main", Path("/srv/other")), Lab("second", Path("/srv/bedplate"))]
    assert len({LAB.id, *(other.id for other in others)}) == 3


@pytest.mark.parametrize("name", ["", "Web", "-a", "a-", "a_b", "ä", "a" * 32, "../x"])
def test_unusable_names_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="is not usable"):
        check_name("the host name", name)


def test_the_image_key_follows_its_sources_and_suite() -> None:
    key = images.key("trixie", "a")
    assert images.key("trixie", "a") == key
    assert len({key, images.key("trixie", "b"), images.key("bookworm", "a")}) == 3


@pytest.mark.parametrize(
    ("files", "systemd", "kind"),
    [
        (["cgroup.controllers"], True, Layout.SYSTEMD),
        (["cgroup.controllers"], False, Layout.UNIFIED),
        (["unified/cgroup.procs"], False, Layout.HYBRID),
    ],
)
def test_the_cgroup_layout_of_a_machine_is_detected(
    tmp_path: Path, files: list[str], systemd: bool, kind: Layout
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert cgroups.layout(tmp_path, tmp_path if systemd else tmp_path / "none") is kind


def test_a_machine_without_version_2_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no cgroup version 2"):
        cgroups.layout(tmp_path)


def test_a_host_gets_a_group_in_every_hierarchy_that_limits_it(tmp_path: Path) -> None:
    for folder in ("unified/run", "systemd", "memory/job", "cpuset", "cpu,cpuacct"):
        (tmp_path / folder).mkdir(parents=True)
    text = "9:name=systemd:/\n4:memory:/job\n3:cpuset:/\n2:cpu,cpuacct:/\n1:pids:/gone\n0::/run\n"
    groups = cgroups.own_groups(Layout.HYBRID, text, tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in groups] == [
        "unified/run",
        "systemd",
        "memory/job",
        "cpu,cpuacct",
    ]


def test_only_a_hybrid_machine_needs_the_labs_init(tmp_path: Path) -> None:
    process = supervision.HostProcess(
        name="web",
        unit="bedplate-x-web",
        folder=tmp_path / "a:b",
        lower=[Path("/base"), Path("/layer")],
        namespace="bp-x-web",
    )
    assert supervision.nspawn_command(process, Layout.HYBRID)[-1].endswith("lab-init")
    plain = supervision.nspawn_command(process, Layout.SYSTEMD)
    assert plain[-1] == "--boot"
    assert f"--overlay=/base:/layer:{tmp_path}/a\\:b/upper:/" in plain


def test_a_host_with_a_fake_card_uses_the_labs_init_on_every_machine() -> None:
    process = supervision.HostProcess(
        name="gpu1",
        unit="unit",
        folder=Path("/lab/gpu1"),
        lower=[Path("/base")],
        namespace="ns",
        fake_gpus=["10de:2684"],
    )
    for kind in Layout:
        assert supervision.nspawn_command(process, kind)[-1].endswith("lab-init")


def test_a_fake_card_has_the_files_of_a_real_one(tmp_path: Path) -> None:
    fake_pci.write(tmp_path, ["10de:2330:0302", "1002:744c"])
    devices = tmp_path / fake_pci.TREE
    assert sorted(path.name for path in devices.iterdir()) == ["0000:00:00.0", "0000:01:00.0", "0000:02:00.0"]
    h100 = devices / "0000:01:00.0"
    assert [(h100 / name).read_text() for name in ("vendor", "device", "class")] == [
        "0x10de\n",
        "0x2330\n",
        "0x030200\n",
    ]
    assert (h100 / "modalias").read_text() == "pci:v000010DEd00002330sv000010DEsd00000001bc03sc02i00\n"
    assert (h100 / "config").read_bytes()[:12] == bytes.fromhex("de10 3023 0000 0000 0000 0203")
    fake_pci.write(tmp_path, [])
    assert not devices.exists()


@pytest.mark.parametrize("card", ["rtx4090", "10DE:2684", "10de:2684:3", "10de"])
def test_an_invalid_pci_id_is_refused(card: str) -> None:
    with pytest.raises(LabError, match=f"--fake-gpu '{card}' is not a PCI id; give VENDOR:DEVICE"):
        fake_pci.check(f"1002:744c,{card}")


def test_the_compiler_option_follows_the_cpu() -> None:
    assert engine.march("amd64", {*engine.X86_64_V3, "sse"}) == "-march=x86-64-v3"
    assert engine.march("amd64", {"sse"}) == ""
    assert engine.march("arm64", engine.X86_64_V3) == ""


@pytest.mark.parametrize("version", ["0.17.0", "0.30.0", "latest", "0.24"])
def test_versions_that_cannot_be_built_are_refused(version: str) -> None:
    with pytest.raises(LabError):
        engine.check_version(version)


def test_a_given_archive_is_used_unchanged(tmp_path: Path) -> None:
    archive = tmp_path / "engine.tar.zst"
    archive.write_bytes(b"abc")
    given = engine.use_archive(archive, "0.35.1")
    assert given.checksum == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(LabError, match="does not exist"):
        engine.use_archive(tmp_path / "missing", "0.35.1")


def test_a_failed_command_is_reported_in_one_sentence() -> None:
    with pytest.raises(LabError, match=r"`sh -c .*failed with exit status 3: last words"):
        tools.run(["sh", "-c", "echo first >&2; echo last words >&2; exit 3"])
    with pytest.raises(LabError, match="lab/lab deps"):
        tools.run(["no-such-command-of-the-lab"])


def test_without_hosts_the_inventory_has_empty_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["inventory", "--list"]) == 0
    assert '"hosts": []' in capsys.readouterr().out
    assert cli.main(["guard"]) == 1
    assert capsys.readouterr().err == "lab: lab 'main' has no network yet; run `lab/lab up NAME` first\n"


def test_verbs_that_change_the_machine_require_root(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["up", "a"], ["down"], ["purge"], ["deps"], ["fault", "heal"]):
        assert cli.main(words) == 1
        assert "needs root" in capsys.readouterr().err
