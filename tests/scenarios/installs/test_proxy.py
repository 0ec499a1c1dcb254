"""Downloads through a proxy with a password, which no process, journal or file shows afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.password_proxy import PasswordProxy, password_proxy
from tests.support.secrets import Watch, installed_secrets, lines_with_secrets, log_in_with_sudo, watching
from tests.support.stack import Stack

# What apt, pip and uv then have to install again; without its program, the canary would fail.
REMOVE = """
systemctl stop traffic-canary.timer
apt-get -q purge --yes zstd
apt-get clean
rm --recursive /opt/bedplate/uv /opt/bedplate/traffic
"""
# 0600 and for the time until the next restart only.
FILE_FOR_APT = "/run/bedplate-download/apt.conf"


@pytest.fixture(scope="module")
def proxy(stack: Stack) -> Iterator[PasswordProxy]:
    """A proxy on this machine, at the address that is the host's gateway."""
    route = json.loads(stack("ip -json route show default"))
    with password_proxy(route[0]["gateway"]) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def searched(stack: Stack, proxy: PasswordProxy) -> dict[str, str]:
    """The secrets of the installation and of the proxy, by their names."""
    own = {"the proxy's password": proxy.password, "the proxy's header": proxy.login}
    return {**installed_secrets(stack), **own}


@pytest.fixture(scope="module")
def watched(
    stack: Stack, proxy: PasswordProxy, searched: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Watch:
    """What a search of all processes finds during an installation by a user with sudo, through the proxy."""
    folder = tmp_path_factory.mktemp("login")
    login = log_in_with_sudo(stack, folder)
    searched["sudo's password"] = login.password
    # A file, because the arguments of this run are searched, too.
    settings = folder / "proxy.json"
    # What a login reads; sudo does not pass it on.
    lines = stack("cat /etc/environment").replace('"', "").splitlines()
    variables = {
        **dict(line.split("=", 1) for line in lines),
        "http_proxy": proxy.url,
        "https_proxy": proxy.url,
    }
    settings.touch(mode=0o600)
    settings.write_text(json.dumps({"bedplate_proxy_environment": variables}))
    stack(REMOVE)
    with watching(stack, searched) as watch:
        stack.play(login.option, f"--extra-vars=@{settings}")
    return watch


@pytest.mark.usefixtures("watched")
def test_apt_pip_and_uv_download_through_the_proxy(stack: Stack, proxy: PasswordProxy) -> None:
    print(f"\n{sorted(proxy.programs)}")
    # pip's request to the proxy names no program.
    assert proxy.programs == {"Debian APT-HTTP", "", "uv"}
    assert proxy.refused == 0
    stack("zstd --version && /opt/bedplate/uv/current/bin/uv --version && traffic --help")


def test_no_process_has_a_secret_in_its_arguments_or_environment(watched: Watch) -> None:
    assert watched.found == []


@pytest.mark.usefixtures("watched")
def test_only_the_file_for_apt_keeps_the_password(
    stack: Stack, proxy: PasswordProxy, searched: dict[str, str]
) -> None:
    assert lines_with_secrets(stack, searched) == 0
    folders = "/etc /opt/bedplate /run /var/lib /var/log /home /root /tmp"
    search = f"grep --recursive --files-with-matches --fixed-strings --file=- --devices=skip {folders}"
    found = stack(f"{search} 2>/dev/null || true", stdin=f"{proxy.password}\n").splitlines()
    assert found == [FILE_FOR_APT]
    assert stack(f"stat --format='%a %U' {FILE_FOR_APT}").strip() == "600 root"
