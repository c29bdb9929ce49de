"""Real vLLM: the trace plugin that runs inside a stock engine, and the adapter that stands beside it.

Inside the engine (imports msgspec and the records of simcore, nothing else): `scheduler` (what `--scheduler-cls`
names), `plugin` (what `vllm.general_plugins` names), `recorder`, `account`, `publisher`, `frames`, `address`.
In the daemon: `probe` (reads the trace), `client` (HTTP), `adapter` (both, behind the Protocols of `base`).
"""
