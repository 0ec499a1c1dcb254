"""The state of engine and GPUs as Prometheus metrics; each scrape polls both once."""

import math
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from bedplate_exporter.gpu import Answer, Gpu, Gpus
from bedplate_exporter.ollama import Engine, State


class EngineCollector(Collector):
    """Collects `bedplate_ollama_…`; each scrape polls the engine. Models have metrics only while it is up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        """Poll the engine and yield its metrics."""
        return build_engine_families(self._engine.poll())


class GpuCollector(Collector):
    """Collects `bedplate_gpu_…`; each scrape polls the GPUs. A host without GPUs reports 0 devices."""

    def __init__(self, gpus: Gpus) -> None:
        self._gpus = gpus

    def collect(self) -> Iterator[Metric]:
        """Poll the GPUs and yield their metrics."""
        return build_gpu_families(self._gpus.poll())


def build_gpu_families(answers: tuple[Answer, ...]) -> Iterator[Metric]:
    """Yield the metric families of the drivers' answers."""
    devices = GaugeMetricFamily("bedplate_gpu_devices", "GPUs that the driver lists.", labels=["vendor"])
    expected = GaugeMetricFamily(
        "bedplate_gpu_expected",
        "GPUs that were found, or declared, when the host was installed.",
        labels=["vendor"],
    )
    failed = GaugeMetricFamily(
        "bedplate_gpu_failed",
        "1 if the GPU driver does not answer correctly.",
        labels=["vendor"],
    )
    matches = GaugeMetricFamily(
        "bedplate_gpu_driver_matches",
        "1 if kernel module and library have the same version.",
        labels=["vendor"],
    )
    driver = GaugeMetricFamily(
        "bedplate_gpu_driver_info", "Always 1.", labels=["vendor", "module_version", "library_version"]
    )
    info = GaugeMetricFamily("bedplate_gpu_info", "Always 1.", labels=["vendor", "gpu", "name"])
    for answer in answers:
        expected.add_metric([answer.vendor], answer.expected)
        devices.add_metric([answer.vendor], len(answer.gpus))
        failed.add_metric([answer.vendor], answer.failed)
        if answer.driver_matches is not None:
            matches.add_metric([answer.vendor], answer.driver_matches)
        if answer.module_version or answer.library_version:
            driver.add_metric([answer.vendor, answer.module_version or "", answer.library_version or ""], 1)
        for gpu in answer.gpus:
            info.add_metric([gpu.vendor, gpu.number, gpu.name], 1)
    yield from (expected, devices, failed, matches, driver, info)
    fields: list[tuple[str, str, Callable[[Gpu], float | None]]] = [
        (
            "bedplate_gpu_utilization_ratio",
            "Share of time in use.",
            lambda gpu: gpu.utilization_ratio,
        ),
        ("bedplate_gpu_memory_used_bytes", "Memory in use.", lambda gpu: gpu.memory_used_bytes),
        ("bedplate_gpu_memory_bytes", "Total memory.", lambda gpu: gpu.memory_bytes),
        ("bedplate_gpu_temperature_celsius", "Temperature.", lambda gpu: gpu.temperature_celsius),
        ("bedplate_gpu_power_watts", "Power drawn.", lambda gpu: gpu.power_watts),
    ]
    for name, text, value in fields:
        family = GaugeMetricFamily(name, text, labels=["vendor", "gpu"])
        for answer in answers:
            for gpu in answer.gpus:
                if (number := value(gpu)) is not None:
                    family.add_metric([gpu.vendor, gpu.number], number)
        yield family


def build_engine_families(state: State) -> Iterator[Metric]:
    """Yield the metric families of one state."""
    yield GaugeMetricFamily("bedplate_ollama_up", "1 if the engine answered.", value=int(state.up))
    yield GaugeMetricFamily(
        "bedplate_ollama_scrape_duration_seconds",
        "Time the engine took to answer.",
        value=state.latency_seconds,
    )
    if state.version is not None:
        yield InfoMetricFamily("bedplate_ollama", "The engine's version.", value={"version": state.version})
    present = _new_family("bedplate_ollama_model_present", "1 for each model on the engine's disk.")
    size = _new_family("bedplate_ollama_model_size_bytes", "Size on disk.")
    loaded = _new_family("bedplate_ollama_model_loaded", "1 if the model is in memory.")
    memory = _new_family(
        "bedplate_ollama_model_memory_bytes", "Memory of the loaded model, GPU memory included."
    )
    gpu_memory = _new_family("bedplate_ollama_model_gpu_memory_bytes", "GPU memory of the loaded model.")
    context = _new_family("bedplate_ollama_model_context_length_tokens", "Context of the loaded model.")
    unload = _new_family(
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


def _new_family(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["model"])
