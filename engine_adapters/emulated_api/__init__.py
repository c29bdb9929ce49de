"""The HTTP API of an emulated engine, in-process: calls as vLLM's server takes and answers them, with words made up.

Generation and prefill go through the engine's scheduler, so that times, queueing and the trace are those of other work.
"""
