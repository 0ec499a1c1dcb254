"""The endpoints' bodies: what a client may send, and what it gets in return."""
