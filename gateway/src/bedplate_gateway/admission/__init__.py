"""Which request may start, and when."""
