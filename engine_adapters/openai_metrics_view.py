"""What a server's Prometheus page and our own account say of an engine, as a snapshot. Pure.

Three dialects: vLLM, SGLang and TGI. A page tells how many requests run and wait and how full the KV cache is, not
whose; our own requests are known one by one, and what the counts exceed them by is filled with made-up strangers whose
sizes follow from the KV tokens that are not ours. Absent series stay unknown: they are never taken for "idle".
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable

import msgspec

from engine_adapters.metrics_page import Samples, mean, parse_page, total, total_of
from simcore.trace import TraceSnapshot
from simcore.types import EngineConfig, RequestState

STRANGER_PROMPT_TOKENS = 512
"""Assumed length of the prompt of somebody else's waiting request."""
STRANGER_OUTPUT_TOKENS = 1024
"""Assumed limit on its answer; what it will really produce is the prior's business."""
MOST_STRANGERS = 2048
"""More are not made up: a page is read four times a second."""
MOST_REQUESTS = 1_000_000
MOST_COUNTED = 2**40


class MetricsError(ValueError):
    """Not a Prometheus page of an engine that we know."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """Names of one kind of server's series, newest first."""

    name: str
    running: tuple[str, ...]
    waiting: tuple[str, ...]
    kv_used_share: tuple[str, ...] = ()
    preemptions: tuple[str, ...] = ()
    kv_tokens: tuple[str, ...] = ()
    """Size of the KV cache, in tokens."""
    progress: tuple[str, ...] = ()
    """Those that move while the engine works, from step to step or nearly so."""

    @property
    def prefix(self) -> str:
        """How all of its own series begin."""
        return re.split(r"(?<=[:_])", self.running[0], maxsplit=1)[0]


DIALECTS = (
    Dialect(
        name="vllm",
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        kv_used_share=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        preemptions=("vllm:num_preemptions_total", "vllm:num_preemptions"),
        progress=("vllm:iteration_tokens_total_count", "vllm:generation_tokens_total"),
    ),
    Dialect(
        name="sglang",
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_used_share=("sglang:token_usage",),
        kv_tokens=("sglang:max_total_num_tokens",),
        progress=("sglang:gen_throughput", "sglang:token_usage"),
    ),
    Dialect(
        name="tgi",
        running=("tgi_batch_current_size",),
        waiting=("tgi_queue_size",),
        progress=("tgi_batch_inference_count",),
    ),
)


_CACHE_CONFIG = "vllm:cache_config_info"
_LORA = "vllm:lora_requests_info"
_ENGINE_LABELS = frozenset(
    {"engine", "engine_id", "dp_rank", "data_parallel_rank", "model_name", "replica", "instance"}
)
_NAMES = frozenset(
    {_CACHE_CONFIG, _LORA}.union(
        *({*d.running, *d.waiting, *d.kv_used_share, *d.preemptions, *d.kv_tokens} for d in DIALECTS)
    )
)
"""All that is looked for: a page has hundreds of other lines, and is read several times a second."""


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """A page, read. None: the page does not say."""

    dialect: str
    running: int | None
    waiting: int | None
    kv_used_share: float | None = None
    preemptions: int | None = None
    num_blocks: int | None = None
    block_size_tokens: int | None = None
    progress: int | None = None
    """A number that changes with whatever the engine says of itself; None: what it says may stay while it works."""
    adapters: tuple[str, ...] | None = None
    """LoRA adapters that running and waiting requests use."""


class OwnRequest(msgspec.Struct, kw_only=True):
    """One request that went through us."""

    request_id: str
    prompt_tokens: int
    max_output_tokens: int
    output_tokens: int = 0
    priority: int = 0
    sent_s: float = 0.0


def read_page(text: str) -> Aggregates:
    """Raises MetricsError if none of the dialects fits."""
    samples = parse_page(text, _NAMES)
    for dialect in DIALECTS:
        if not any(name in samples for name in dialect.running):
            continue
        if not any(name in samples for name in dialect.waiting):
            raise MetricsError(f"the page has {dialect.running[0]} but none of {', '.join(dialect.waiting)}")
        used = mean(samples, dialect.kv_used_share)
        blocks, size = _cache_of(samples, dialect)
        return Aggregates(
            dialect=dialect.name,
            running=_whole(total(samples, dialect.running), MOST_REQUESTS),
            waiting=_whole(total(samples, dialect.waiting), MOST_REQUESTS),
            kv_used_share=None if used is None else min(1.0, max(0.0, used)),
            preemptions=_whole(total(samples, dialect.preemptions), MOST_COUNTED),
            num_blocks=blocks,
            block_size_tokens=size,
            progress=_progress(text, dialect),
            adapters=_adapters_of(samples),
        )
    known = ", ".join(d.running[0] for d in DIALECTS)
    raise MetricsError(f"no series of a known engine on the page (looked for {known}); is --enable-metrics missing?")


def _progress(text: str, dialect: Dialect) -> int | None:
    """Of all series of the engine's own: those of its HTTP server move with every page that is asked for."""
    lines = [line for line in text.split("\n") if line.startswith(dialect.prefix)]
    if not any(line.startswith(name) for line in lines for name in dialect.progress):
        return None
    return zlib.crc32("\n".join(lines).encode())


def estimated_snapshot(
    page: Aggregates, own: Iterable[OwnRequest], config: EngineConfig, *, seq: int, at_s: float
) -> TraceSnapshot:
    """The engine as it may stand: own requests, then strangers up to the counts; none where a count is not known."""
    mine = list(own)
    running = [r for r in mine if r.output_tokens]
    pending = [r for r in mine if not r.output_tokens]
    # Those without a first token are in a prefill or in the queue: as many wait as the page says at most.
    waiting_here = min(len(pending), page.waiting or 0)
    running += pending[: len(pending) - waiting_here]
    waiting = pending[len(pending) - waiting_here :]
    size = config.block_size_tokens
    share = page.kv_used_share
    own_tokens = sum(r.prompt_tokens + r.output_tokens for r in running)
    strangers = min(MOST_STRANGERS, max(0, (page.running or 0) - len(running)))
    left_tokens = 0 if share is None else max(0, round(share * config.num_blocks * size) - own_tokens)
    each = left_tokens // strangers if strangers and share is not None else STRANGER_PROMPT_TOKENS
    each = max(1, min(each, config.max_model_len_tokens - 2))
    states = [_own_state(r, running=True) for r in running]
    states += [_stranger(f"running-{i}", each, computed=each - 1, config=config) for i in range(strangers)]
    queue = [_own_state(r, running=False) for r in waiting]
    prompt = max(1, min(STRANGER_PROMPT_TOKENS, config.max_model_len_tokens - 2))
    others = min(MOST_STRANGERS, max(0, (page.waiting or 0) - len(waiting)))
    queue += [_stranger(f"waiting-{i}", prompt, computed=0, config=config) for i in range(others)]
    held = sum(-(-max(1, s.computed_tokens) // size) for s in states)
    used = held if share is None else round(share * config.num_blocks)
    return TraceSnapshot(
        seq=seq,
        at_s=at_s,
        config=config,
        running=tuple(states),
        waiting=tuple(queue),
        free_blocks=max(0, config.num_blocks - used),
        preemptions_total=page.preemptions or 0,
    )


def _own_state(r: OwnRequest, *, running: bool) -> RequestState:
    return RequestState(
        request_id=r.request_id,
        prompt_tokens=r.prompt_tokens,
        output_tokens=r.output_tokens,
        # The last token's KV is computed with the next step; before the first one, how far a prefill is is not known.
        computed_tokens=r.prompt_tokens + r.output_tokens - 1 if running and r.output_tokens else 0,
        max_output_tokens=r.max_output_tokens,
        priority=r.priority,
        arrival_s=r.sent_s,
    )


def _stranger(name: str, tokens: int, *, computed: int, config: EngineConfig) -> RequestState:
    return RequestState(
        request_id=f"unknown-{name}",
        prompt_tokens=tokens,
        output_tokens=1 if computed else 0,
        computed_tokens=tokens if computed else 0,
        max_output_tokens=max(2, min(STRANGER_OUTPUT_TOKENS, config.max_model_len_tokens - tokens)),
    )


def _whole(value: float | None, most: int) -> int | None:
    """A count; one beyond all reason is not known."""
    return None if value is None or value > most else max(0, round(value))


def _cache_of(samples: Samples, dialect: Dialect) -> tuple[int | None, int | None]:
    """Blocks of all engines together, and tokens in a block."""
    caches: list[tuple[dict[str, str], float]] = []
    sizes: list[int] = []
    for labels, _ in samples.get(_CACHE_CONFIG, ()):
        blocks, size = _digits(labels.get("num_gpu_blocks", "")), _digits(labels.get("block_size", ""))
        if blocks > 1 and size > 0:
            # All the configuration stands in the labels: which engine's it is, only a few of them say.
            whose = {name: value for name, value in labels.items() if name in _ENGINE_LABELS}
            caches.append((whose, blocks - 1))
            sizes.append(size)
    if sizes:
        return _whole(total_of(caches), MOST_COUNTED), sizes[0]
    tokens = _whole(total(samples, dialect.kv_tokens), MOST_COUNTED)
    return (tokens, 1) if tokens else (None, None)


def _digits(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _adapters_of(samples: Samples) -> tuple[str, ...] | None:
    """Each state that there ever was is a series of its own, with the time at which it held as its value."""
    told = [(value, labels) for labels, value in samples.get(_LORA, ()) if math.isfinite(value)]
    if not told:
        return None
    _, last = max(told, key=lambda entry: entry[0])
    names = f"{last.get('running_lora_adapters', '')},{last.get('waiting_lora_adapters', '')}".split(",")
    return tuple(sorted({name.strip() for name in names} - {""}))
