"""What a server's Prometheus page and our own account say of an engine, as a snapshot. Pure.

Three dialects: vLLM, SGLang and TGI. A page tells how many requests run and wait and how full the KV cache is, not
whose; our own requests are known one by one, and what the counts exceed them by is filled with made-up strangers whose
sizes follow from the KV tokens that are not ours. Absent series stay unknown: they are never taken for "idle".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from simcore.trace import TraceSnapshot
from simcore.types import EngineConfig, RequestState

STRANGER_PROMPT_TOKENS = 512
"""Assumed length of the prompt of somebody else's waiting request."""
STRANGER_OUTPUT_TOKENS = 1024
"""Assumed limit on its answer; what it will really produce is the prior's business."""


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


DIALECTS = (
    Dialect(
        name="vllm",
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        kv_used_share=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        preemptions=("vllm:num_preemptions_total", "vllm:num_preemptions"),
    ),
    Dialect(
        name="sglang",
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_used_share=("sglang:token_usage",),
        kv_tokens=("sglang:max_total_num_tokens",),
    ),
    Dialect(name="tgi", running=("tgi_batch_current_size",), waiting=("tgi_queue_size",)),
)


_CACHE_CONFIG = "vllm:cache_config_info"
_NAMES = frozenset(
    {_CACHE_CONFIG}.union(*({*d.running, *d.waiting, *d.kv_used_share, *d.preemptions, *d.kv_tokens} for d in DIALECTS))
)
"""All that is looked for: a page has hundreds of other lines, and is read several times a second."""


class Aggregates(msgspec.Struct, frozen=True, kw_only=True):
    """A page, read. None: the page does not say."""

    dialect: str
    running: int
    waiting: int
    kv_used_share: float | None = None
    preemptions: int | None = None
    num_blocks: int | None = None
    block_size_tokens: int | None = None


class OwnRequest(msgspec.Struct, kw_only=True):
    """One request that went through us."""

    request_id: str
    prompt_tokens: int
    max_output_tokens: int
    output_tokens: int = 0
    priority: int = 0
    sent_s: float = 0.0


def parse_page(text: str, names: Collection[str] | None = None) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by name, of these names only where some are given. Lines that are no samples are skipped."""
    samples: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        name = line.partition("{")[0].split(maxsplit=1)[:1]
        if not name or name[0].startswith("#") or (names is not None and name[0] not in names):
            continue
        try:
            # A line at a time: whole pages are refused for one bad line, and counters get other names.
            families = list(text_string_to_metric_families(line))
        except ValueError:
            continue
        for family in families:
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((dict(sample.labels), float(sample.value)))
    return samples


def read_page(text: str) -> Aggregates:
    """Raises MetricsError if none of the dialects fits."""
    samples = parse_page(text, _NAMES)
    for dialect in DIALECTS:
        running = _total(samples, dialect.running)
        if running is None:
            continue
        waiting = _total(samples, dialect.waiting)
        if waiting is None:
            raise MetricsError(f"the page has {dialect.running[0]} but none of {', '.join(dialect.waiting)}")
        used = _total(samples, dialect.kv_used_share, largest=True)
        preemptions = _total(samples, dialect.preemptions)
        blocks, size = _cache_of(samples, dialect)
        return Aggregates(
            dialect=dialect.name,
            running=max(0, round(running)),
            waiting=max(0, round(waiting)),
            kv_used_share=None if used is None else min(1.0, max(0.0, used)),
            preemptions=None if preemptions is None else max(0, round(preemptions)),
            num_blocks=blocks,
            block_size_tokens=size,
        )
    known = ", ".join(d.running[0] for d in DIALECTS)
    raise MetricsError(f"no series of a known engine on the page (looked for {known}); is --enable-metrics missing?")


def estimated_snapshot(
    page: Aggregates, own: Iterable[OwnRequest], config: EngineConfig, *, seq: int, at_s: float
) -> TraceSnapshot:
    """The engine as it may stand: own requests, then strangers up to the counts."""
    mine = list(own)
    running = [r for r in mine if r.output_tokens]
    pending = [r for r in mine if not r.output_tokens]
    # Those without a first token are in a prefill or in the queue: as many wait as the page says at most.
    waiting_here = min(len(pending), page.waiting)
    running += pending[: len(pending) - waiting_here]
    waiting = pending[len(pending) - waiting_here :]
    size = config.block_size_tokens
    share = page.kv_used_share
    own_tokens = sum(r.prompt_tokens + r.output_tokens for r in running)
    strangers = max(0, page.running - len(running))
    left_tokens = 0 if share is None else max(0, round(share * config.num_blocks * size) - own_tokens)
    each = left_tokens // strangers if strangers and share is not None else STRANGER_PROMPT_TOKENS
    each = max(1, min(each, config.max_model_len_tokens - 2))
    states = [_own_state(r, running=True) for r in running]
    states += [_stranger(f"running-{i}", each, computed=each - 1, config=config) for i in range(strangers)]
    queue = [_own_state(r, running=False) for r in waiting]
    prompt = max(1, min(STRANGER_PROMPT_TOKENS, config.max_model_len_tokens - 2))
    others = max(0, page.waiting - len(waiting))
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


def _total(
    samples: Mapping[str, Sequence[tuple[dict[str, str], float]]], names: Iterable[str], *, largest: bool = False
) -> float | None:
    """Over all label sets (models, ranks) of the first name that is there."""
    for name in names:
        values = [v for _, v in samples.get(name, ()) if v == v]
        if values:
            return max(values) if largest else sum(values)
    return None


def _cache_of(
    samples: Mapping[str, Sequence[tuple[dict[str, str], float]]], dialect: Dialect
) -> tuple[int | None, int | None]:
    for labels, _ in samples.get(_CACHE_CONFIG, ()):
        blocks, size = labels.get("num_gpu_blocks", ""), labels.get("block_size", "")
        if blocks.isdigit() and size.isdigit() and int(blocks) > 1:
            return int(blocks) - 1, int(size)
    tokens = _total(samples, dialect.kv_tokens)
    return (int(tokens), 1) if tokens else (None, None)
