"""Scaling for real: connectors that start and stop nodes, and the runtime that does what the scaler wants. Shell."""
