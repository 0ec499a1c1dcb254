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
}
# prometheus_client adds the endings of counters and of infos.
ENDINGS = {
    "bedplate_ollama": "bedplate_ollama_info",
    "bedplate_dashboard_polls": "bedplate_dashboard_polls_total",
    **{
        f"bedplate_gateway_{name}": f"bedplate_gateway_{name}_total"
        for name in (
            *("requests", "refusals", "prompt_tokens", "completion_tokens", "estimated_requests"),
            *("retries", "truncations", "lost_leases"),
        )
    },
}
METRICS = {
    ENDINGS.get(name, name)
    for source in [
        *ROOT.glob("exporter/src/*/metrics.py"),
        *ROOT.glob("dashboard_app/src/*/web.py"),
        *ROOT.glob("gateway/src/*/metrics.py"),
    ]
    for name in re.findall(r'"(bedplate_[a-z_]+)"', source.read_text())
}
ROLES = "bedplate|ollama|litellm|prometheus|node_exporter|exporter|dashboard"


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
    services = "ollama|litellm|prometheus|(bedplate-)?(node-)?exporter|(bedplate-)?dashboard"
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
    described = re.findall(r"`(bedplate_[a-z_]+)`", (ROOT / "docs/metrics.md").read_text())
    assert set(described) == METRICS
