"""What an inference host holds and has loaded, as Prometheus metrics and as JSON."""
