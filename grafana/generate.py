"""Write a dashboard for Grafana with Grafana's own builders: `python grafana/generate.py`."""

import json
import sys
from pathlib import Path
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode, LegendDisplayMode
from grafana_foundation_sdk.models.dashboard import DataSourceRef

DATASOURCE = DataSourceRef(type_val="prometheus", uid="bedplate")
"""The data source of datasource.yml."""


class Graph(NamedTuple):
    """One panel: its unit in Grafana, and its queries by legend; `{{label}}` is the value of a label."""

    title: str
    unit: str
    queries: dict[str, str]
    description: str = ""


NOW = [
    Graph("Alerts", "short", {"": 'count(ALERTS{alertstate="firing"}) or vector(0)'}),
    Graph("Targets down", "short", {"": "count(up == 0) or vector(0)"}),
    Graph("Served models", "short", {"": "sum(bedplate_gateway_engine_serves)"}),
    Graph("Waiting requests", "short", {"": "sum(bedplate_gateway_queue_requests)"}),
    Graph("Success ratio", "percentunit", {"": "min(bedplate:success:ratio5m)"}),
    Graph("Time since the last verify", "s", {"": "time() - bedplate_dashboard_verify_timestamp_seconds"}),
]
ROWS = {
    "Traffic": [
        Graph(
            "Requests", "reqps", {"{{alias}} {{status}}": "sum by (alias, status) (bedplate:requests:rate5m)"}
        ),
        Graph("Refusals", "reqps", {"{{reason}}": "bedplate:refusals:rate5m"}),
        Graph(
            "Tokens per second",
            "short",
            {
                "in, {{model}}": "sum by (model) (bedplate:prompt_tokens:rate5m)",
                "out, {{model}}": "sum by (model) (bedplate:completion_tokens:rate5m)",
            },
        ),
        Graph(
            "Limit usage",
            "percentunit",
            {"{{name}} {{unit}}": "bedplate:limit_used:ratio"},
            "The share of its requests (RPM) and tokens (TPM) a minute that each key or model has used.",
        ),
    ],
    "Times": [
        Graph(
            "Time to first token (streams)",
            "s",
            {
                "p50, {{class}} {{model}}": "bedplate:time_to_first_token_seconds:p50_5m",
                "p95, {{class}} {{model}}": "bedplate:time_to_first_token_seconds:p95_5m",
            },
        ),
        Graph(
            "Response time",
            "s",
            {
                "p50, {{class}} {{model}}": "bedplate:request_seconds:p50_5m",
                "p95, {{class}} {{model}}": "bedplate:request_seconds:p95_5m",
            },
        ),
        Graph("Queue wait, p95", "s", {"{{class}}": "bedplate:wait_seconds:p95_5m"}),
        Graph(
            "Streams with a late first token",
            "percentunit",
            {"{{model}}": "bedplate:first_token_late:ratio5m"},
        ),
    ],
    "Engines": [
        Graph("Busy slots", "percentunit", {"{{engine}} {{model}}": "bedplate:slots_busy:ratio"}),
        Graph("Queue", "short", {"{{class}}": "sum by (class) (bedplate_gateway_queue_requests)"}),
        Graph(
            "Memory of loaded models",
            "bytes",
            {
                "total, {{host}} {{model}}": "bedplate_ollama_model_memory_bytes > 0",
                "GPU, {{host}} {{model}}": "bedplate_ollama_model_gpu_memory_bytes > 0",
            },
        ),
        Graph("Loaded models", "bool_yes_no", {"{{host}} {{model}}": "bedplate_ollama_model_loaded"}),
    ],
    "LiteLLM": [
        Graph(
            "Requests by way",
            "reqps",
            {"{{lane}}": "sum by (lane) (rate(bedplate_gateway_lane_requests_total[5m]))"},
            "bypass: directly to the engine, because LiteLLM did not answer; direct: because of a setting.",
        ),
        Graph(
            "Time that LiteLLM adds to a request",
            "s",
            {
                "{{host}}": "(sum by (host) (rate(litellm_request_total_latency_metric_sum[5m])) "
                "- sum by (host) (rate(litellm_llm_api_latency_metric_sum[5m]))) "
                "/ sum by (host) (rate(litellm_request_total_latency_metric_count[5m]))"
            },
        ),
        Graph("Answers the gateway", "bool_yes_no", {"{{host}}": "bedplate_gateway_litellm_up"}),
        Graph("Running requests", "short", {"{{host}}": "litellm_in_flight_requests"}),
    ],
    "GPUs": [
        Graph(
            "Utilization", "percentunit", {"{{host}} {{vendor}} {{gpu}}": "bedplate_gpu_utilization_ratio"}
        ),
        Graph(
            "Memory",
            "percentunit",
            {"{{host}} {{vendor}} {{gpu}}": "bedplate_gpu_memory_used_bytes / bedplate_gpu_memory_bytes"},
        ),
        Graph("Temperature", "celsius", {"{{host}} {{vendor}} {{gpu}}": "bedplate_gpu_temperature_celsius"}),
        Graph("Power", "watt", {"{{host}} {{vendor}} {{gpu}}": "bedplate_gpu_power_watts"}),
    ],
    "Hosts": [
        Graph(
            "CPU utilization",
            "percentunit",
            {"{{host}}": '1 - avg by (host) (rate(node_cpu_seconds_total{mode="idle"}[5m]))'},
        ),
        Graph(
            "Memory used",
            "percentunit",
            {"{{host}}": "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes"},
        ),
        Graph(
            "Disk used",
            "percentunit",
            {"{{host}} {{mountpoint}}": "1 - node_filesystem_avail_bytes / node_filesystem_size_bytes"},
        ),
        Graph(
            "Automatic restarts by systemd",
            "short",
            {"{{host}} {{name}}": "node_systemd_service_restart_total"},
        ),
    ],
}


def build_queries(graph: Graph) -> list[prometheus.Dataquery]:
    """Return the queries of a panel, named by letters."""
    return [
        prometheus.Dataquery().ref_id(chr(ord("A") + number)).expr(expr).legend_format(legend)
        for number, (legend, expr) in enumerate(graph.queries.items())
    ]


def build() -> str:
    """Return the dashboard as JSON."""
    board = (
        dashboard.Dashboard("Bedplate")
        .uid("bedplate")
        .tags(["bedplate"])
        .time("now-3h", "now")
        .refresh("30s")
        .readonly()
    )
    for graph in NOW:
        board.with_panel(
            stat.Panel()
            .title(graph.title)
            .unit(graph.unit)
            .datasource(DATASOURCE)
            .targets([*build_queries(graph)])
            .graph_mode(BigValueGraphMode.AREA)
            .span(4)
            .height(4)
        )
    for title, graphs in ROWS.items():
        board.with_row(dashboard.Row(title))
        for graph in graphs:
            board.with_panel(
                timeseries.Panel()
                .title(graph.title)
                .description(graph.description)
                .unit(graph.unit)
                .min(0)
                .fill_opacity(10)
                .datasource(DATASOURCE)
                .targets([*build_queries(graph)])
                .legend(common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).show_legend(True))
                .span(12)
                .height(8)
            )
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    target = Path(__file__).parent / "bedplate.json"
    target.write_text(build())
    sys.stdout.write(f"wrote {target.name}.\n")
