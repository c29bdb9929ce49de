"""Connectors, one file each, by name in `registry`."""
