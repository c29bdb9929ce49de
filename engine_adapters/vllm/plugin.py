"""Entry point `astrolabe` of the group `vllm.general_plugins`: the trace with no flag on vLLM's command line.

Installed, it does nothing until the environment says `ASTROLABE_TRACE_PLUGIN=1`. Then the scheduler class that vLLM's
configuration names, the user's own included, is traced. It uses the one seam there is for that without a flag: the
method of the configuration that answers which class to build.
"""

from __future__ import annotations

import logging
import os

ENV_SWITCH = "ASTROLABE_TRACE_PLUGIN"
log = logging.getLogger("vllm.astrolabe")


def register() -> None:
    """Called by vLLM in each of its processes, possibly more than once. Never raises."""
    if os.environ.get(ENV_SWITCH) != "1":
        return
    try:
        _register()
    except Exception as error:
        log.warning("astrolabe: no trace of this engine: %s", error)


def _register() -> None:
    from vllm.config import SchedulerConfig  # type: ignore[import-not-found,unused-ignore]

    chosen = SchedulerConfig.get_scheduler_cls
    if getattr(chosen, "traced_by_astrolabe", False):
        return

    def get_scheduler_cls(self: object) -> type:
        base: type = chosen(self)
        try:
            from vllm.v1.core.sched.scheduler import (  # type: ignore[import-not-found,unused-ignore]
                Scheduler,
            )

            from engine_adapters.vllm.scheduler import traced

            # By its own word: the class may come from `astrolabe-trace` while this plugin is that of `astrolabe`.
            if getattr(base, "traced_by_astrolabe", False):
                return base
            if not (isinstance(base, type) and issubclass(base, Scheduler)):
                log.warning("astrolabe: no trace: %r is no subclass of vLLM's own scheduler", base)
                return base
            return traced(base)
        except Exception as error:
            log.warning("astrolabe: no trace of this engine: %s", error)
            return base

    get_scheduler_cls.traced_by_astrolabe = True  # type: ignore[attr-defined]
    SchedulerConfig.get_scheduler_cls = get_scheduler_cls
