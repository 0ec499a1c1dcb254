"""What a lab host takes over from this machine so that it reaches the same package sources.

Everything is read at run time and written into images and hosts only, never into the repository.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from .errors import LabError
from .tools import run, say, write_whole

CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
LOCAL_CAS = Path("/usr/local/share/ca-certificates")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN_ALIASES = ("stable", "oldstable", "testing")
PROXY_NAMES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
APT_SETTING = re.compile(
    r'Acquire::(https?(::[^ ]+)?|Check-Valid-Until|Check-Date|Retries|ForceIPv[46]) "(?P<value>[^"]*)";'
)


def codename() -> str:
    """Return this machine's Debian code name, such as bookworm."""
    for line in Path("/etc/os-release").read_text().splitlines():
        if line.startswith("VERSION_CODENAME="):
            return line.partition("=")[2].strip('"')
    raise LabError(
        "/etc/os-release names no VERSION_CODENAME; the lab needs Debian 12 or 13 as the machine under it"
    )


def _stanzas(text: str) -> Iterable[dict[str, str]]:
    """Yield the stanzas of a deb822 file as fields; continuation lines keep their line ends."""
    for block in re.split(
        r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    ):
        fields: dict[str, str] = {}
        last = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[last] += "\n" + line
            elif ":" in line:
                last, _, value = line.partition(":")
                fields[last] = value.strip()
        if fields:
            yield fields


def _one_line_sources(text: str) -> Iterable[dict[str, str]]:
    """Yield the `deb [options] URI SUITE COMPONENT...` lines of a classic sources.list in deb822's fields."""
    for line in text.splitlines():
        found = re.match(
            r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>[^#]+)", line
        )
        if not found:
            continue
        fields = {
            "Types": "deb",
            "URIs": found["uri"],
            "Suites": found["suite"],
            "Components": found["parts"].strip(),
        }
        for option in (found["options"] or "").split():
            key, _, value = option.partition("=")
            fields[{"signed-by": "Signed-By", "trusted": "Trusted"}.get(key.lower(), key)] = value
        yield fields


def read_sources(folder: Path = Path("/etc/apt")) -> list[dict[str, str]]:
    """Return every binary package source of this machine as deb822 fields."""
    found: list[dict[str, str]] = []
    for path in sorted([folder / "sources.list", *folder.glob("sources.list.d/*")]):
        if path.suffix == ".sources":
            found += _stanzas(path.read_text())
        elif path.suffix == ".list" and path.is_file():
            found += _one_line_sources(path.read_text())
    return [fields for fields in found if "deb" in fields.get("Types", "").split()]


def sources_for(suite: str, own: str, sources: Iterable[Mapping[str, str]]) -> str:
    """Return a deb822 file that offers `suite` where `sources` offer `own`, the machine's release.

    Sources of other projects, whose suites aren't the release's, are left out; LabError if none is left.
    """
    wanted = re.compile(
        rf"({'|'.join((own, *DEBIAN_ALIASES))})(?P<part>(-(updates|security|backports))?(/updates)?)"
    )
    stanzas = []
    for fields in sources:
        suites = [
            match["part"] for name in fields.get("Suites", "").split() if (match := wanted.fullmatch(name))
        ]
        if not suites or fields.get("Enabled", "yes") == "no":
            continue
        kept = dict(fields, Types="deb", Suites=" ".join(suite + part for part in suites))
        # The archive's keyring has other names on newer releases; this one exists in both suites.
        if "debian-archive-keyring" in kept.get("Signed-By", ""):
            kept["Signed-By"] = KEYRING
        stanzas.append("".join(f"{key}: {value}\n" for key, value in kept.items()))
    if not stanzas:
        raise LabError(
            f"no file in /etc/apt/sources.list.d offers Debian's {own}, so there is no place for {suite}; "
            "add the Debian archive that this machine may use there"
        )
    return "\n".join(stanzas)


def apt_settings() -> str:
    """Return the machine's apt settings that decide how an archive is reached: proxies, checks, retries."""
    lines = [
        line for line in run(["apt-config", "dump", "Acquire"]).splitlines() if APT_SETTING.fullmatch(line)
    ]
    return "".join(line + "\n" for line in lines if not line.endswith(' "";'))


def has_own_ca() -> bool:
    """Tell whether this machine trusts certificates that a stock Debian does not."""
    return bool(os.environ.get("SSL_CERT_FILE")) or any(LOCAL_CAS.glob("**/*.crt"))


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", "./", "file:"))


def pip_configuration(files: Iterable[Path] = (Path("/etc/pip.conf"), Path("~/.config/pip/pip.conf"))) -> str:
    """Return a pip.conf with the machine's index settings, without those that name files of this machine."""
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        parser.read(path.expanduser())
        if parser.has_section("global"):
            settings |= {key: value for key, value in parser.items("global") if not _is_path(value)}
    if has_own_ca():
        settings["cert"] = str(CA_BUNDLE)
    return (
        "".join(["[global]\n", *(f"{key} = {value}\n" for key, value in settings.items())])
        if settings
        else ""
    )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that logins on a host need to reach the same indexes through the same proxies.

    `own` is the environment of this process. Variables that name files of this machine are left out; the
    CA bundle is named for the tools that bring certificates of their own.
    """
    passed = {
        key: value
        for key, value in own.items()
        if (key.lower() in PROXY_NAMES or key.startswith(("PIP_", "UV_")))
        and value
        and not _is_path(value)
        # uv's and pip's own folders, switches and credentials of other commands are no business of a host.
        and (
            key.lower() in PROXY_NAMES
            or re.search(r"INDEX|TRUSTED_HOST|INSECURE_HOST|PROXY|TIMEOUT|RETRIES", key)
        )
    }
    if has_own_ca():
        passed |= {"SSL_CERT_FILE": str(CA_BUNDLE), "REQUESTS_CA_BUNDLE": str(CA_BUNDLE)}
    return passed


def resolver() -> str:
    """Return a resolv.conf whose name servers a host with an own network can reach."""
    upstream = Path("/run/systemd/resolve/resolv.conf")
    text = Path("/etc/resolv.conf").read_text()
    if re.search(r"^nameserver\s+127\.", text, re.MULTILINE):
        if not upstream.exists():
            say(
                "warning: this machine's name server is on loopback, which lab hosts can't reach; "
                "name lookups in them fail until /etc/resolv.conf names another one"
            )
        else:
            text = upstream.read_text()
    return text


def seed(root: Path) -> None:
    """Write the machine's package configuration into the file tree `root` of a host."""
    write_whole(root / "etc/apt/apt.conf.d/90lab", apt_settings())
    for path in (Path("/etc/apt/auth.conf"), *Path("/etc/apt/auth.conf.d").glob("*.conf")):
        if path.is_file():
            write_whole(root / str(path)[1:], path.read_text(), 0o600)
    for fields in read_sources():
        keyring = Path(fields.get("Signed-By", "").strip())
        if "/" in str(keyring) and keyring.is_file() and "debian-archive-keyring" not in keyring.name:
            _copy(keyring, root)
    if has_own_ca():
        _copy(CA_BUNDLE, root)
        for certificate in LOCAL_CAS.glob("**/*.crt"):
            _copy(certificate, root)
    write_whole(root / "etc/pip.conf", pip_configuration())
    if Path("/etc/uv/uv.toml").is_file():
        _copy(Path("/etc/uv/uv.toml"), root)
    write_whole(
        root / "etc/environment",
        "".join(f'{key}="{value}"\n' for key, value in environment(os.environ).items()),
    )


def _copy(path: Path, root: Path) -> None:
    target = root / str(path)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
