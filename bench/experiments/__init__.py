"""Experiments of published systems: one TOML each, simulated, the published numbers beside ours."""
