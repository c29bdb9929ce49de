# mypy: disable-error-code="import-not-found,misc,no-any-return,has-type"
"""vLLM's own schedulers plus a trace: `--scheduler-cls engine_adapters.vllm.scheduler.TraceScheduler`.

Every method does what vLLM's does and takes notes before and after. Nothing of vLLM is replaced.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from engine_adapters.vllm.address import address_for_engine, listen
from engine_adapters.vllm.cache_watch import can_watch, watch
from engine_adapters.vllm.describe import computes_nothing, config_of, keeps_no_kv, missing_parts
from engine_adapters.vllm.publisher import Publisher
from engine_adapters.vllm.recorder import StepRecorder

log = logging.getLogger("vllm.astrolabe")

ENV_PREFIX_CACHE = "ASTROLABE_TRACE_PREFIX_CACHE"
"""`0`: what enters and leaves the prefix cache is not published. `events`: by vLLM's own KV events, which cost more."""


class _Events:
    """Stands where vLLM's publisher of KV events stands, and passes them on to it."""

    def __init__(self, recorder: StepRecorder, inner: Any) -> None:
        self._recorder = recorder
        self._inner = inner

    def publish(self, events: Any) -> None:
        self._recorder.guarded(self._recorder.stored, events.events)
        self._inner.publish(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@functools.cache
def traced(base: type) -> type:
    """A subclass of a vLLM scheduler class that publishes its trace."""

    class Traced(base):
        traced_by_astrolabe = True

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._astrolabe: StepRecorder | None = None
            self._astrolabe_publisher: Publisher | None = None
            super().__init__(*args, **kwargs)
            try:
                self._astrolabe_open()
            except Exception as error:
                log.warning("astrolabe: no trace of this engine: %s", error)
                self._astrolabe = None

        def _astrolabe_open(self) -> None:
            missing = missing_parts(self)
            if missing:
                log.warning("astrolabe: no trace: this vLLM's scheduler has no %s", ", ".join(missing))
                return
            rank = getattr(self.vllm_config.parallel_config, "data_parallel_rank", 0) or 0
            address = address_for_engine(sys.argv, os.environ).for_rank(rank)
            watched = self._astrolabe_watches_cache()
            config = config_of(self, prefix_cache_traced=watched or self._astrolabe_cache_events())
            server = listen(address)
            publisher = Publisher(config=config, address=address, settable_length=computes_nothing(self))
            publisher.start(server)
            self._astrolabe_publisher = publisher
            free = (lambda: config.num_blocks) if keeps_no_kv(self) else None
            self._astrolabe = recorder = StepRecorder(self, publisher, free_blocks=free)
            if watched and config.prefix_cache_traced:
                watch(self.kv_cache_manager.block_pool, recorder)
            elif config.prefix_cache_traced:
                self.kv_event_publisher = _Events(recorder, self.kv_event_publisher)
            for note in config.outside_rules:
                log.warning("astrolabe: forecasts for this engine are approximate: %s", note)
            log.info("astrolabe: trace of vLLM %s at %s", config.engine_version, address)

        def _astrolabe_watches_cache(self) -> bool:
            """Whether we note ourselves what enters and leaves the prefix cache."""
            wanted = os.environ.get(ENV_PREFIX_CACHE) not in ("0", "events")
            return wanted and self.cache_config.enable_prefix_caching and can_watch(self)

        def _astrolabe_cache_events(self) -> bool:
            """Whether vLLM collects KV events; asked to by the environment, it does so for us alone."""
            wanted = os.environ.get(ENV_PREFIX_CACHE)
            if getattr(self, "kv_event_publisher", None) is None or not self.cache_config.enable_prefix_caching:
                return False
            if wanted == "0":
                return False
            if wanted == "events":
                self.kv_cache_manager.block_pool.enable_kv_cache_events = True
            return bool(self.kv_cache_manager.block_pool.enable_kv_cache_events)

        def schedule(self, *args: Any, **kwargs: Any) -> Any:
            recorder = self._astrolabe
            if recorder is None or not recorder.on:
                return super().schedule(*args, **kwargs)
            try:
                recorder.begin()
            except Exception:
                recorder.failed()
                return super().schedule(*args, **kwargs)
            plan = super().schedule(*args, **kwargs)
            try:
                recorder.planned(plan)
            except Exception:
                recorder.failed()
            return plan

        def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            recorder = self._astrolabe
            if recorder is None or not recorder.on:
                return super().update_from_output(scheduler_output, *args, **kwargs)
            at_s = time.monotonic()
            outputs = super().update_from_output(scheduler_output, *args, **kwargs)
            try:
                recorder.ended(scheduler_output, outputs, at_s)
            except Exception:
                recorder.failed()
            return outputs

        def add_request(self, request: Any) -> None:
            super().add_request(request)
            if self._astrolabe is not None:
                self._astrolabe.guarded(self._astrolabe.arrived, request)

        def finish_requests(self, request_ids: Any, *args: Any, **kwargs: Any) -> Any:
            if self._astrolabe is not None:
                if isinstance(request_ids, str):
                    request_ids = (request_ids,)
                elif request_ids is not None:
                    request_ids = list(request_ids)
                self._astrolabe.guarded(self._astrolabe.aborting, request_ids)
            return super().finish_requests(request_ids, *args, **kwargs)

        def _preempt_request(self, request: Any, *args: Any, **kwargs: Any) -> Any:
            if self._astrolabe is not None:
                self._astrolabe.guarded(self._astrolabe.preempting, request)
            return super()._preempt_request(request, *args, **kwargs)

        def shutdown(self) -> None:
            if self._astrolabe_publisher is not None:
                self._astrolabe_publisher.close()
            super().shutdown()

    Traced.__name__ = Traced.__qualname__ = f"Traced{base.__name__}"
    return Traced


class TraceScheduler:
    """For `--scheduler-cls`: the traced form of the scheduler that vLLM would have chosen itself."""

    traced_by_astrolabe = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        config = kwargs["vllm_config"] if "vllm_config" in kwargs else args[0]
        base = AsyncScheduler if config.scheduler_config.async_scheduling else Scheduler
        return traced(base)(*args, **kwargs)
