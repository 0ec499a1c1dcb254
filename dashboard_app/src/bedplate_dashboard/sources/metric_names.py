"""The metrics that the dashboard reads from the gateway, from LiteLLM and from node exporters."""

# Counters whose increase over the last minute is reported.
COUNTERS = (
    "bedplate_gateway_requests_total",
    "bedplate_gateway_refusals_total",
    "bedplate_gateway_prompt_tokens_total",
    "bedplate_gateway_completion_tokens_total",
    "bedplate_gateway_service_seconds_sum",
    "bedplate_gateway_lane_requests_total",
    "bedplate_gateway_time_to_first_token_seconds_bucket",
    "bedplate_gateway_request_seconds_bucket",
)
GATEWAY_METRICS = frozenset(
    {
        "process_start_time_seconds",
        *COUNTERS,
        "bedplate_gateway_info",
        "bedplate_gateway_last_request_timestamp_seconds",
        "bedplate_gateway_last_answer_tokens_per_second",
        "bedplate_gateway_engine_serves",
        "bedplate_gateway_drain_timestamp_seconds",
        "bedplate_gateway_slots",
        "bedplate_gateway_slots_busy",
        "bedplate_gateway_queue_requests",
        "bedplate_gateway_queue_oldest_wait_seconds",
        "bedplate_gateway_limit",
        "bedplate_gateway_limit_used",
        "bedplate_gateway_litellm_up",
    }
)
LITELLM_COUNTERS = (
    "litellm_request_total_latency_metric_sum",
    "litellm_request_total_latency_metric_count",
    "litellm_llm_api_latency_metric_sum",
    "litellm_llm_api_latency_metric_count",
)
LITELLM_METRICS = frozenset(
    {"process_start_time_seconds", "process_resident_memory_bytes", *LITELLM_COUNTERS}
)
NODE_METRICS = frozenset(
    {
        "node_exporter_build_info",
        "node_filesystem_avail_bytes",
        "node_filesystem_size_bytes",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_systemd_unit_state",
        "node_systemd_service_restart_total",
        "bedplate_host_drift",
        "bedplate_host_drift_differences",
        "bedplate_host_drift_timestamp_seconds",
        "bedplate_host_reboot_required",
        "bedplate_traffic_canary_success",
        "bedplate_traffic_canary_result",
        "bedplate_traffic_canary_last_run_timestamp_seconds",
        "bedplate_traffic_canary_last_answer_timestamp_seconds",
        "bedplate_traffic_canary_seconds",
    }
)
NODE_COLLECTORS = ("filesystem", "meminfo", "systemd", "textfile")
