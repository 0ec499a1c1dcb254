"""The pages say what is there: links lead somewhere; verbs, settings and metrics exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("*/*.md"), *ROOT.glob("roles/*/README.md")])
PAGES = [page for page in PAGES if not page.relative_to(ROOT).parts[0].startswith(".")]
SPECS = sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))
SETTINGS = {
    name
    for spec in SPECS
    for name in yaml.safe_load(spec.read_text())["argument_specs"]["main"].get("options", {})
}
# Names of the same form that are no settings: a pattern, and packages of this repository.
OTHERS = {
    "bedplate_x",
    "dashboard_app",
    "bedplate_exporter",
    "bedplate_dashboard",
    "bedplate_gateway",
    "bedplate_lab",
    "bedplate_traffic",
}
# prometheus_client adds these to the names of counters and of infos.
ENDINGS = {"Counter": "_total", "CounterMetricFamily": "_total", "InfoMetricFamily": "_info"}
METRICS = {
    name + ENDINGS.get(kind, "")
    for source in [
        *ROOT.glob("*/src/*/metrics.py"),
        *ROOT.glob("dashboard_app/src/*/web.py"),
        *ROOT.glob("roles/node_exporter/files/*.py"),
        ROOT / "traffic/src/bedplate_traffic/commands/canary.py",
    ]
    for kind, name in re.findall(r'(?:(\w+)\(\s*)?"(bedplate_[a-z_]+)"', source.read_text())
}
RULES = ROOT / "roles/prometheus/templates/recording.rules.yml.j2"
RECORDS = set(re.findall(r"record: (\S+)", RULES.read_text()))
ROLES = "bedplate|ollama|gateway|traffic|prometheus|alertmanager|node_exporter|exporter|dashboard"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    verbs = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    (units,) = re.findall(r"^UNITS := (.+)$", makefile, re.MULTILINE)
    services = "|".join(units.replace("bedplate-", "(bedplate-)?").split())
    for verb in re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE):
        assert verb in verbs or re.fullmatch(
            rf"(start|stop|restart|status|logs|health)-({services})", verb
        ), verb


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_exist(page: Path) -> None:
    # A setting in backticks, or one that an example sets; metrics have names of the same kind.
    text = page.read_text()
    named = re.findall(rf"`((?:{ROLES})_[a-z_]+)[`:]", text) if page.name != "metrics.md" else []
    example = re.findall(rf"^((?:{ROLES})_[a-z_]+):", text, re.MULTILINE)
    assert {*named, *example} - SETTINGS - METRICS - OTHERS == set()


def test_metrics_of_ours_are_all_described() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"`(bedplate_[a-z_]+)`", page)) == METRICS
    assert set(re.findall(r"`(bedplate:[a-z0-9_:]+)`", page)) == RECORDS
