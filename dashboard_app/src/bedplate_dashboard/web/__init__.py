"""Shows what `health` judged: the page, plain text, the API, events and metrics."""
