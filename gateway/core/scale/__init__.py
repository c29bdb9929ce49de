"""Scaling: how many nodes of which group, and which leave. Pure rules and one controller, in both worlds."""
