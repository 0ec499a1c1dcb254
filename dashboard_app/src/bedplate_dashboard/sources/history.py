"""Queries to Prometheus: the series of the plots, and how fast disks fill."""

import asyncio
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlencode

import httpx

from bedplate_dashboard.settings import Settings
from bedplate_dashboard.sources import collect
from bedplate_dashboard.sources.collect import Contact
from bedplate_dashboard.sources.payloads import QueryResult, Series

SCHEMA = 1
DaysLeft = Mapping[tuple[str, str], float]
"""Days until a file system is full, by host and mount point."""

Range = Literal["1h", "1d"]


@dataclass(frozen=True)
class Span:
    """The length of a range and the distance of its points, in seconds."""

    seconds: int
    step: int


SPANS: dict[Range, Span] = {"1h": Span(3600, 20), "1d": Span(86400, 480)}
ANSWER_SECONDS = 5.0
FAILURE_SECONDS = 5.0
"""How long a failure is returned again without a new query."""


def _build_quantile(share: float, buckets: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate({buckets}[$window])))"


def _build_rate(counter: str) -> str:
    # A counter has no series until its first event; while the gateway is scraped, that means 0.
    return f"sum(rate({counter}[$window])) or 0 * count(bedplate_gateway_slots)"


QUERIES = {
    "requests_per_second": _build_rate('bedplate_gateway_requests_total{model!="-"}'),
    "tokens_in_per_second": _build_rate("bedplate_gateway_prompt_tokens_total"),
    "tokens_out_per_second": _build_rate("bedplate_gateway_completion_tokens_total"),
    "ttft_p50_seconds": _build_quantile(0.5, "bedplate_gateway_time_to_first_token_seconds_bucket"),
    "ttft_p95_seconds": _build_quantile(0.95, "bedplate_gateway_time_to_first_token_seconds_bucket"),
    "latency_p50_seconds": _build_quantile(0.5, "bedplate_gateway_request_seconds_bucket"),
    "latency_p95_seconds": _build_quantile(0.95, "bedplate_gateway_request_seconds_bucket"),
    "refused_429_per_second": _build_rate('bedplate_gateway_requests_total{model!="-",status="429"}'),
    "refused_503_per_second": _build_rate('bedplate_gateway_requests_total{model!="-",status="503"}'),
    "queue_waiting": "sum(bedplate_gateway_queue_requests)",
    "slots_busy": "sum(bedplate_gateway_slots_busy)",
    "gpu_utilization_ratio": "max(bedplate_gpu_utilization_ratio)",
}
# Not for the first three hours of a disk, when packages and models are installed.
DAYS_LEFT = (
    "node_filesystem_avail_bytes / -deriv(node_filesystem_avail_bytes[6h]) / 86400 > 0 "
    "and node_filesystem_avail_bytes offset 3h"
)


class History:
    """The series of each range, cached until the next point is due; readers share one query at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._locks: dict[Range, threading.Lock] = {name: threading.Lock() for name in SPANS}
        self._kept: dict[Range, tuple[float, dict[str, Any]]] = {}

    def fetch(self, name: Range) -> dict[str, Any]:
        """Return the body of /api/history.json; an `error` is one sentence."""
        with self._locks[name]:
            until, document = self._kept.get(name, (0.0, {}))
            if time.monotonic() >= until:
                document = asyncio.run(self._query_range(name))
                keep = FAILURE_SECONDS if document["error"] else SPANS[name].step
                self._kept[name] = time.monotonic() + keep, document
            return document

    async def _query_range(self, name: Range) -> dict[str, Any]:
        span = SPANS[name]
        end = math.floor(time.time() / span.step) * span.step
        times = list(range(end - span.seconds, end + 1, span.step))
        window = f"{max(span.step, round(4 * self._settings.scrape_seconds))}s"
        async with collect.new_client(self._settings) as client:
            answers = await asyncio.gather(
                *(
                    _query(
                        client,
                        f"{self._settings.prometheus_url}/api/v1/query_range",
                        query=query.replace("$window", window),
                        start=times[0],
                        end=end,
                        step=span.step,
                    )
                    for query in QUERIES.values()
                )
            )
        failed = next((contact for contact, _ in answers if not contact.ok), None)
        return {
            "schema": SCHEMA,
            "range": name,
            "at": datetime.now(UTC),
            "step_seconds": span.step,
            "error": f"Could not read the history from Prometheus ({failed.error})." if failed else None,
            "times": [] if failed else times,
            "series": {}
            if failed
            else {
                key: _align_points(result, times) for key, (_, result) in zip(QUERIES, answers, strict=True)
            },
        }


async def query_days_left(client: httpx.AsyncClient, settings: Settings) -> DaysLeft:
    """Query when each file system will be full if it keeps the growth of the last six hours."""
    _, result = await _query(client, f"{settings.prometheus_url}/api/v1/query", query=DAYS_LEFT)
    return {
        (series.metric.get("host", ""), series.metric.get("mountpoint", "")): number
        for series in result
        if series.value and (number := _parse_number(series.value[1])) is not None
    }


async def _query(
    client: httpx.AsyncClient, url: str, **parameters: str | int
) -> tuple[Contact, Sequence[Series]]:
    contact, body = await collect.get(client, f"{url}?{urlencode(parameters)}", ANSWER_SECONDS)
    contact, answer = collect.parse_answer(
        contact, body, QueryResult.model_validate_json, "answered without a result"
    )
    return contact, answer.data.result if answer else ()


def _align_points(result: Sequence[Series], times: Sequence[int]) -> list[float | None]:
    """Return the first series' values at `times`, None where it has none."""
    values = {round(at): _parse_number(text) for at, text in result[0].values} if result else {}
    return [values.get(at) for at in times]


def _parse_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
