"""Measurements that need a real vLLM: what the trace costs the engine, and how far forecasts are from what happens."""
