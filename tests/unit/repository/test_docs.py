"""The documentation matches the code: link targets, make targets, settings and metrics exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("roles/*/README.md")}
)
PAGES = [page for page in PAGES if not page.relative_to(ROOT).parts[0].startswith(".")]
# The pages for users and contributors; the READMEs of folders have wide tables.
MANUAL = [page for page in PAGES if page.parent == ROOT or page.is_relative_to(ROOT / "docs")]
# bench/*.md are reports that programs write.
WRITTEN = [page for page in PAGES if page.parent != ROOT / "bench"]
ARCHITECTURE = ROOT / "docs/design/architecture.md"
LONGEST_LINE = 140
# Words that a stranger has to guess, and the word to use.
UNCLEAR = {
    r"doors?": "listener, endpoint, port",
    r"tells?|told": "reports, shows, returns",
    r"mend(s|ed|ing)?": "fix, repair",
    r"besides?": "next to, compared with, in addition to",
    r"lately": "recently",
    r"whose turn": "schedules, priority",
    r"let in|lets in": "accepts",
    r"leavers?": "disconnected client",
    r"heirs?": "successor",
    r"ledgers?": "usage log",
    r"(is|are|was|were) so|all is well|what happens": "name the thing",
    r"as (it|they) stands?|stands? (there|there twice|above|in)": "is",
    r"for want of": "for lack of",
    r"anew": "again",
}
SPECS = sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))
SETTINGS = {
    name
    for spec in SPECS
    for name in yaml.safe_load(spec.read_text())["argument_specs"]["main"].get("options", {})
}
# Similar names that are no settings: a pattern, and packages of this repository.
OTHERS = {
    "bedplate_x",
    "dashboard_app",
    "bedplate_exporter",
    "bedplate_dashboard",
    "bedplate_gateway",
    "bedplate_lab",
    "bedplate_traffic",
}
# prometheus_client adds these suffixes to the names of counters and infos.
ENDINGS = {"Counter": "_total", "CounterMetricFamily": "_total", "InfoMetricFamily": "_info"}
METRICS = {
    name + ENDINGS.get(kind, "")
    for source in [
        *ROOT.glob("*/src/**/metrics.py"),
        *ROOT.glob("*/src/**/canary.py"),
        *ROOT.glob("roles/*/files/*.py"),
        *ROOT.glob("playbooks/module_utils/*.py"),
    ]
    for kind, name in re.findall(r'(?:(\w+)\(\s*)?"(bedplate_[a-z_]+)"', source.read_text())
}
RULES = ROOT / "roles/prometheus/templates/recording.rules.yml.j2"
RECORDS = set(re.findall(r"record: (\S+)", RULES.read_text()))
ROLES = "bedplate|ollama|gateway|litellm|traffic|prometheus|alertmanager|node_exporter|exporter|dashboard"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings as GitHub generates them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_link_targets_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    table = yaml.safe_load((ROOT / "playbooks/group_vars/all/services.yml").read_text())["bedplate_services"]
    services = "|".join(table).replace("bedplate-", "(bedplate-)?")
    for verb in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE):
        assert verb in verbs or re.fullmatch(
            rf"(start|stop|restart|status|logs|health)-({services})", verb
        ), verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_exist(page: Path) -> None:
    # A setting in backticks, or one that an example sets; metrics have similar names.
    text = page.read_text()
    named = re.findall(rf"`((?:{ROLES})_[a-z_]+)[`:]", text) if page.name != "metrics.md" else []
    example = re.findall(rf"^((?:{ROLES})_[a-z_]+):", text, re.MULTILINE)
    assert {*named, *example} - SETTINGS - METRICS - OTHERS == set()


def test_all_own_metrics_are_documented() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    assert set(re.findall(r"`(bedplate_[a-z_]+)`", page)) == METRICS
    assert set(re.findall(r"`(bedplate:[a-z0-9_:]+)`", page)) == RECORDS


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a page without code blocks, code and quoted messages."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, re.sub(r"`[^`]*`|(?<![*\w])\*[^*]+\*(?!\*)|\]\([^)]*\)", "", line)


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_words_are_plain(page: Path) -> None:
    for number, line in prose(page):
        for words, better in UNCLEAR.items():
            match = re.search(rf"\b({words})\b", line, re.IGNORECASE)
            assert not match, f"{page.relative_to(ROOT)}:{number}: {match and match[0]!r}; better: {better}"


@pytest.mark.parametrize("page", MANUAL, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        assert fenced or len(line) <= LONGEST_LINE, (
            f"{page.relative_to(ROOT)}:{number} has {len(line)} characters"
        )


@pytest.mark.parametrize("package", ["gateway", "dashboard_app", "traffic", "lab"])
def test_a_package_describes_each_module(package: str) -> None:
    text = (ROOT / package / "README.md").read_text()
    modules = {path.stem for path in (ROOT / package / "src").rglob("*.py")} - {"__init__", "__main__"}
    assert {name for name in modules if not re.search(rf"`([a-z_]+/)?{name}(\.py)?`", text)} == set()


def test_every_scenario_and_script_is_described() -> None:
    for folder, names in (
        ("molecule", [path.parent.name for path in ROOT.glob("molecule/*/molecule.yml")]),
        ("scripts", [path.name for path in ROOT.glob("scripts/*") if path.name != "README.md"]),
    ):
        rows = re.findall(r"^\| (`.*?) \|", (ROOT / folder / "README.md").read_text(), re.MULTILINE)
        assert sorted(re.findall(r"`([^`]+)`", " ".join(rows))) == sorted(
            name for name in names if not name.startswith("__")
        )


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs/README.md"
    linked = {
        (index.parent / target.partition("#")[0]).resolve()
        for target in re.findall(r"\]\(([^)\s]+)\)", index.read_text())
    }
    assert set(ROOT.glob("docs/**/*.md")) - {index} <= linked


def test_design_notes_are_numbered_in_order() -> None:
    names = sorted(path.name for path in ARCHITECTURE.parent.glob("[0-9]*.md"))
    for number, name in enumerate(names, 1):
        assert name.startswith(f"{number:03}-"), name
        assert (ARCHITECTURE.parent / name).read_text().startswith(f"# {number}. "), name


def places() -> list[str]:
    """The paths in the second column of the tables under "Where do I change"."""
    section = ARCHITECTURE.read_text().partition("\n## Where do I change")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| .* \| (.*) \|$", section, re.MULTILINE)
    return [path for row in rows for path in re.findall(r"`([^`\s]*[/.][^`\s]*|Makefile)`", row)]


@pytest.mark.parametrize("place", places())
def test_the_places_in_the_architecture_exist(place: str) -> None:
    assert (ROOT / place).exists(), f"docs/design/architecture.md names {place}, which is not there"


def test_the_architecture_has_places() -> None:
    assert len(places()) > 50


def test_chips_of_extra_cards_are_those_of_the_table() -> None:
    page = (ROOT / "docs/reference/gpu-drivers.md").read_text()
    section = page.partition("\n## Chips\n")[2].partition("\n## ")[0]
    tables = yaml.safe_load((ROOT / "roles/gpu_driver/vars/main.yml").read_text())["__gpu_driver_tables"]
    rows = [*tables["nvidia_chips"], *tables["amd_chips"]]
    # A refused family, and a chip that is one of two.
    usable = {
        row["chip"]
        for row in rows
        if not row.get("integrated") and " or " not in row["chip"] and row["family"] != "GCN 1 to 3"
    }
    listed = set(re.findall(r"`([A-Z][^`]+)`", section))
    assert usable <= listed
    assert listed <= {row["chip"] for row in rows}
