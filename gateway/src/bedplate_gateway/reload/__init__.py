"""A reload without a gap, and systemd."""
