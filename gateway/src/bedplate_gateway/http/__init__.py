"""HTTP towards the clients."""
