"""The settings of this machine that hosts copy, so that they reach the same package sources.

They are read at run time and written into images and hosts only, never into the repository.
"""

import configparser
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from bedplate_lab.errors import LabError
from bedplate_lab.tools import run, say, write_file

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
    raise LabError("/etc/os-release has no VERSION_CODENAME; the lab needs a machine with Debian 12 or 13")


def _stanzas(text: str) -> Iterable[dict[str, str]]:
    """Yield the stanzas of a deb822 file as fields; continuation lines keep their line breaks."""
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
    """Yield the lines `deb [options] URI SUITE COMPONENT...` of a classic sources.list as deb822 fields."""
    for line in text.splitlines():
        match = re.match(
            r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<parts>[^#]+)", line
        )
        if not match:
            continue
        fields = {
            "Types": "deb",
            "URIs": match["uri"],
            "Suites": match["suite"],
            "Components": match["parts"].strip(),
        }
        for option in (match["options"] or "").split():
            key, _, value = option.partition("=")
            fields[{"signed-by": "Signed-By", "trusted": "Trusted"}.get(key.lower(), key)] = value
        yield fields


def read_sources(folder: Path = Path("/etc/apt")) -> list[dict[str, str]]:
    """Return every binary package source of this machine as deb822 fields."""
    sources: list[dict[str, str]] = []
    for path in sorted([folder / "sources.list", *folder.glob("sources.list.d/*")]):
        if path.suffix == ".sources":
            sources += _stanzas(path.read_text())
        elif path.suffix == ".list" and path.is_file():
            sources += _one_line_sources(path.read_text())
    return [fields for fields in sources if "deb" in fields.get("Types", "").split()]


def sources_for(suite: str, own: str, sources: Iterable[Mapping[str, str]]) -> str:
    """Return a deb822 file that offers `suite` from those `sources` that offer `own`, the machine's release.

    Sources of other projects, whose suites have other names, are omitted; raises LabError if none remains.
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
        # The archive's keyring has other names on newer releases; this name exists in both suites.
        if "debian-archive-keyring" in kept.get("Signed-By", ""):
            kept["Signed-By"] = KEYRING
        stanzas.append("".join(f"{key}: {value}\n" for key, value in kept.items()))
    if not stanzas:
        raise LabError(
            f"no file in /etc/apt/sources.list.d offers Debian's {own}, so there is no source for {suite}; "
            "add the Debian archive that this machine may use there"
        )
    return "\n".join(stanzas)


def apt_settings() -> str:
    """Return the machine's apt settings for reaching an archive: proxies, checks, retries."""
    lines = [
        line for line in run(["apt-config", "dump", "Acquire"]).splitlines() if APT_SETTING.fullmatch(line)
    ]
    return "".join(line + "\n" for line in lines if not line.endswith(' "";'))


def has_own_ca() -> bool:
    """Return whether this machine trusts certificates that a stock Debian does not."""
    return bool(os.environ.get("SSL_CERT_FILE")) or any(LOCAL_CAS.glob("**/*.crt"))


def _is_path(value: str) -> bool:
    return value.startswith(("/", "~", "./", "file:"))


def pip_configuration(files: Iterable[Path] = (Path("/etc/pip.conf"), Path("~/.config/pip/pip.conf"))) -> str:
    """Return a pip.conf with this machine's index settings, except those that name files of this machine."""
    settings: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        parser.read(path.expanduser())
        if parser.has_section("global"):
            settings |= {key: value for key, value in parser.items("global") if not _is_path(value)}
    return (
        "".join(["[global]\n", *(f"{key} = {value}\n" for key, value in settings.items())])
        if settings
        else ""
    )


def environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which logins on a host reach the same indexes through the same proxies.

    `own` is the environment of this process. Variables that name files of this machine are omitted.
    """
    return {
        key: value
        for key, value in own.items()
        if (key.lower() in PROXY_NAMES or key.startswith(("PIP_", "UV_")))
        and value
        and not _is_path(value)
        # Other variables are uv's and pip's folders, switches and credentials, which a host must not get.
        and (
            key.lower() in PROXY_NAMES
            or re.search(r"INDEX|TRUSTED_HOST|INSECURE_HOST|PROXY|TIMEOUT|RETRIES", key)
        )
    }


def resolver() -> str:
    """Return a resolv.conf with name servers that a host can reach from its own network."""
    upstream = Path("/run/systemd/resolve/resolv.conf")
    text = Path("/etc/resolv.conf").read_text()
    if re.search(r"^nameserver\s+127\.", text, re.MULTILINE):
        if not upstream.exists():
            say(
                "warning: this machine's name server is on loopback, which lab hosts can't reach; "
                "name lookups on them fail until /etc/resolv.conf names another server"
            )
        else:
            text = upstream.read_text()
    return text


def seed(root: Path) -> None:
    """Write this machine's package configuration into the file tree `root` of a host."""
    write_file(root / "etc/apt/apt.conf.d/90lab", apt_settings())
    for path in (Path("/etc/apt/auth.conf"), *Path("/etc/apt/auth.conf.d").glob("*.conf")):
        if path.is_file():
            write_file(root / str(path)[1:], path.read_text(), 0o600)
    for fields in read_sources():
        keyring = Path(fields.get("Signed-By", "").strip())
        if "/" in str(keyring) and keyring.is_file() and "debian-archive-keyring" not in keyring.name:
            _copy(keyring, root)
    if has_own_ca():
        _copy(CA_BUNDLE, root)
        for certificate in LOCAL_CAS.glob("**/*.crt"):
            _copy(certificate, root)
    write_file(root / "etc/pip.conf", pip_configuration())
    if Path("/etc/uv/uv.toml").is_file():
        _copy(Path("/etc/uv/uv.toml"), root)
    write_file(
        root / "etc/environment",
        "".join(f'{key}="{value}"\n' for key, value in environment(os.environ).items()),
    )


def _copy(path: Path, root: Path) -> None:
    target = root / str(path)[1:]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
