# mypy: disable-error-code="import-not-found,misc"
"""Runs inside a vLLM environment: what the plugin makes of the scheduler class that a configuration names.

Prints one JSON object: for each case the name of the class that vLLM would build.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def main() -> None:
    from vllm.config import SchedulerConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler

    from engine_adapters.vllm.plugin import register

    class Own(AsyncScheduler):
        """A user's own."""

    class Alien:
        """No scheduler of vLLM's."""

    def chosen(scheduler_cls: object, *, asynchronous: bool = True) -> str:
        config = object.__new__(SchedulerConfig)
        object.__setattr__(config, "scheduler_cls", scheduler_cls)
        object.__setattr__(config, "async_scheduling", asynchronous)
        return str(config.get_scheduler_cls().__name__)

    register()
    off = chosen(None)
    os.environ["ASTROLABE_TRACE_PLUGIN"] = "1"
    register()
    register()
    named = "engine_adapters.vllm.scheduler.TraceScheduler"
    cases = {
        "off": off,
        "async": chosen(None),
        "sync": chosen(None, asynchronous=False),
        "own": chosen(Own),
        "alien": chosen(Alien),
        "flag too": chosen(named),
    }
    sys.stdout.write(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
