"""Scaling rules, one file each, by name in `registry`."""
