"""The models and GPUs of an inference host, as Prometheus metrics and as JSON."""
