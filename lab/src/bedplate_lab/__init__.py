"""Throwaway systemd hosts on one machine: images, network, hosts, faults, engine, model."""
