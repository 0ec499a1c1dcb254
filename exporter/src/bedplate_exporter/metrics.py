"""The engine's state as Prometheus metrics; each scrape polls the engine once."""

import math
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from bedplate_exporter.ollama import Engine, State


class EngineCollector(Collector):
    """Collects `bedplate_ollama_…`; a model's metrics are there only while the engine is up."""

    def __init__(self, engine: Engine) -> None:
        """`engine` is polled at each collection, never before."""
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Poll the engine and yield its metrics."""
        return families(self._engine.poll())


def families(state: State) -> Iterator[Metric]:
    """Yield the metric families of one state."""
    yield GaugeMetricFamily("bedplate_ollama_up", "1 if the engine answered.", value=int(state.up))
    yield GaugeMetricFamily(
        "bedplate_ollama_scrape_duration_seconds",
        "Time the engine took to answer.",
        value=state.latency_seconds,
    )
    if state.version is not None:
        yield InfoMetricFamily("bedplate_ollama", "The engine's version.", value={"version": state.version})
    present = _per_model("bedplate_ollama_model_present", "1 for each model on the engine's disk.")
    size = _per_model("bedplate_ollama_model_size_bytes", "Size on disk.")
    loaded = _per_model("bedplate_ollama_model_loaded", "1 if the model is in memory.")
    memory = _per_model(
        "bedplate_ollama_model_memory_bytes", "Memory of the loaded model, GPU memory included."
    )
    gpu_memory = _per_model("bedplate_ollama_model_gpu_memory_bytes", "GPU memory of the loaded model.")
    context = _per_model("bedplate_ollama_model_context_length_tokens", "Context of the loaded model.")
    unload = _per_model(
        "bedplate_ollama_model_unload_seconds",
        "Time until the engine unloads the model; +Inf if it never does.",
    )
    for model in state.models:
        label = [model.name]
        present.add_metric(label, 1)
        size.add_metric(label, model.size_bytes)
        loaded.add_metric(label, int(model.loaded))
        memory.add_metric(label, model.memory_bytes)
        gpu_memory.add_metric(label, model.gpu_memory_bytes)
        if model.loaded:
            context.add_metric(label, model.context_length or 0)
            expires_at = model.expires_at
            unload.add_metric(label, (expires_at - state.at).total_seconds() if expires_at else math.inf)
    yield from (present, size, loaded, memory, gpu_memory, context, unload)


def _per_model(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model"])
