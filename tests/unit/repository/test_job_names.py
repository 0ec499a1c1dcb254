"""The gateway's job was `litellm` before it was `gateway`: no query may lose the samples of either name."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bedplate_dashboard.sources.history import DAYS_LEFT, QUERIES

ROOT = Path(__file__).resolve().parents[3]
NAMES = ("gateway", "litellm")
# These mean LiteLLM itself, whose job is now `litellm`.
ABOUT_LITELLM = {"TargetDown", "LitellmMemory", "LitellmBusy"}
MATCHER = re.compile(r'\bjob\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
GROUPING = re.compile(r"\b(?:by|on|group_left|group_right)\s*\(([^)]*)\)")
EXPRESSION = re.compile(r"expr: (?:\|-)?(.*?)(?=\n\s+(?:for|labels|annotations):|\n\s*\n|\Z)", re.DOTALL)


def selects(operator: str, value: str, name: str) -> bool:
    """Return whether a matcher of the label `job` selects a name, as Prometheus does."""
    matches = re.fullmatch(value, name) is not None if "~" in operator else value == name
    return matches != operator.startswith("!")


def find_problems(query: str) -> list[str]:
    """Return the parts of a query that treat the two names of the job differently."""
    problems = [
        match[0]
        for match in MATCHER.finditer(query)
        if len({selects(match[1], match[2], name) for name in NAMES}) > 1
    ]
    return problems + [match[0] for match in GROUPING.finditer(query) if re.search(r"\bjob\b", match[1])]


def collect_queries() -> Iterator[tuple[str, str]]:
    """Yield every query of the dashboard, of Grafana and of the rules, with the place where it is."""
    yield from ((f"dashboard {name}", query) for name, query in QUERIES.items())
    yield "dashboard days left", DAYS_LEFT
    for panel in json.loads((ROOT / "grafana/bedplate.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield f"grafana {panel['title']}", target["expr"]
    for path in sorted((ROOT / "roles/prometheus/templates").glob("*.rules.yml.j2")):
        for number, rule in enumerate(re.split(r"- (?:alert|record):", path.read_text())[1:]):
            expression = EXPRESSION.search(rule)
            assert expression, rule
            name = rule.split()[0]
            if name not in ABOUT_LITELLM:
                yield f"{path.name} {number} {name}", expression[1]


@pytest.mark.parametrize(("place", "query"), list(collect_queries()))
def test_no_query_selects_only_one_name_of_the_gateways_job(place: str, query: str) -> None:
    assert find_problems(query) == [], place


@pytest.mark.parametrize(
    ("query", "problems"),
    [
        ('up{job="gateway"}', 1),
        ('up{job="litellm",host="a"}', 1),
        ('up{job!="gateway"}', 1),
        ('up{job=~"gate.*"}', 1),
        ('up{job!~"litellm|node"}', 1),
        ("sum by (job) (up)", 1),
        ("a / on (host, job) b", 1),
        ('up{job=~"gateway|litellm"}', 0),
        ('up{job!~"gateway|litellm"}', 0),
        ('up{job="node"}', 0),
        ("sum by (host) (up)", 0),
        ("max without (job) (up)", 0),
    ],
)
def test_a_query_that_loses_samples_is_found(query: str, problems: int) -> None:
    assert len(find_problems(query)) == problems
