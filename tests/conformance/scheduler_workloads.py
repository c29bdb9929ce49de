"""Random workloads for scheduler comparisons, and what is observed of each step.

A workload is a list of actions between steps: which requests arrive, which are aborted. It depends on its seed only.
"""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec

from simcore.adapters import adapter_number
from simcore.drafts import DraftOdds
from simcore.prefix import block_hashes
from simcore.types import EngineConfig

UNIQUE_TOKEN_BASE = 1_000_000


class OracleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as every scheduler under comparison understands it."""

    request_id: str
    prompt_tokens: int
    output_tokens: int
    max_output_tokens: int = 0
    """Limit it carries; 0: its answer is as long as it may be. Above `output_tokens`: it ends of itself."""
    priority: int = 0
    shared_prefix: str = ""
    """Name of the text that its prompt (and, where that is shorter, its answer) begins with."""
    shared_tokens: int = 0
    adapter: str = ""
    """Its LoRA adapter; empty: none."""

    @property
    def most_tokens(self) -> int:
        return self.max_output_tokens or self.output_tokens

    def token_ids(self) -> list[int]:
        """Of prompt and answer: those of the shared text first, then one that no other request has."""
        group = int(self.shared_prefix.removeprefix("g") or 0)
        total = self.prompt_tokens + self.output_tokens
        shared = min(self.shared_tokens, total)
        unique = UNIQUE_TOKEN_BASE + int(self.request_id.removeprefix("r"))
        return [10_000 * group + i for i in range(shared)] + [unique] * (total - shared)

    def block_hashes(self, block_size_tokens: int) -> tuple[int, ...]:
        """Of all blocks that another request may have too; none if it shares nothing."""
        if not self.shared_tokens:
            return ()
        names = block_hashes(self.token_ids(), block_size_tokens)
        # What an adapter computes is its own.
        return tuple(name ^ adapter_number(self.adapter) for name in names)


class Observation(NamedTuple):
    """One step as seen from outside. Everything must be equal between schedulers."""

    scheduled: tuple[tuple[str, int, int, int], ...]
    """(request, tokens, tokens produced, tokens found cached at admission), in batch order."""
    preempted: tuple[str, ...]
    """Sorted; the order shows in `waiting`. By the plans made in this step."""
    finished: tuple[str, ...]
    """Sorted."""
    running: tuple[tuple[str, int, int], ...]
    """(request, computed tokens, output tokens), in the scheduler's order, after the step. Tokens in flight count as
    computed."""
    waiting: tuple[str, ...]
    free_blocks: int


class Actions(NamedTuple):
    """What happens before one step."""

    arrivals: tuple[OracleRequest, ...] = ()
    aborts: tuple[str, ...] = ()


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """Actions by step number, under one configuration."""

    seed: int
    config: EngineConfig
    actions: dict[int, Actions]
    draft_odds: DraftOdds | None = None


SHAREGPT_400 = (4898, 262)
"""Steps and preemptions of `sharegpt_at_once(…, 400)`, as vLLM 0.32 counts them. Plain textbook rules (recompute from
zero, admit when the chunk fits) preempt several times as often."""


class Scheduler(Protocol):
    """What a scheduler must offer to be compared."""

    @property
    def has_work(self) -> bool: ...

    def add(self, request: OracleRequest, arrival_s: float) -> None: ...

    def abort(self, request_id: str) -> None: ...

    def step(self) -> Observation: ...


def random_workload(
    seed: int, *, shared_prefixes: bool = False, async_scheduling: bool = False, requests: int = 0
) -> Workload:
    """A configuration and a stream of requests, both drawn from the seed."""
    rng = random.Random(seed)
    size = rng.choice((16, 16, 32))
    max_len = rng.choice((256, 1024, 2048, 4096))
    budget = rng.choice((64, 128, 256, 512, 512, 1024, 2048, 8192))
    seqs = rng.choice((1, 2, 8, 16, 48, 48, 128, 256))
    tightness = rng.choice((1.05, 1.5, 3.0, 6.0, 20.0))
    n = requests or rng.choice((10, 20, 30, 40, 120))
    longest_blocks = -(-max_len // size)
    config = EngineConfig(
        model="oracle",
        max_num_seqs=seqs,
        max_num_batched_tokens=max(budget, seqs),
        block_size_tokens=size,
        num_blocks=max(2, int(longest_blocks * tightness)),
        max_model_len_tokens=max_len,
        long_prefill_token_threshold_tokens=rng.choice((0, 0, 0, 48, 200)),
        enable_prefix_caching=rng.random() < 0.8,
        scheduling_policy="priority" if rng.random() < 0.25 else "fcfs",
        async_scheduling=async_scheduling,
    )
    mean_prompt = rng.choice((8, 60, 250, 700))
    mean_output = rng.choice((5, 60, 200))
    gap = rng.choice((0.0, 0.0, 0.3, 2.0, 10.0))
    abort_rate = rng.choice((0.0, 0.0, 0.1, 0.3))
    step = 0.0
    actions: dict[int, tuple[list[OracleRequest], list[str]]] = {}
    for i in range(n):
        request = _random_request(rng, config, i, mean_prompt, mean_output, shared_prefixes=shared_prefixes)
        actions.setdefault(int(step), ([], []))[0].append(request)
        if rng.random() < abort_rate:
            actions.setdefault(int(step) + rng.randint(0, 60), ([], []))[1].append(request.request_id)
        step += rng.expovariate(1 / gap) if gap else 0.0
    return Workload(
        seed=seed,
        config=config,
        actions={k: Actions(tuple(v[0]), tuple(v[1])) for k, v in sorted(actions.items())},
    )


def with_adapters(workload: Workload) -> Workload:
    """The same requests, most of them with LoRA adapters of which an engine can use few in a batch."""
    rng = random.Random(workload.seed)
    adapters = [f"adapter-{i}" for i in range(rng.choice((2, 3, 5, 20)))]
    share = rng.choice((0.5, 0.9, 1.0))

    def adapted(request: OracleRequest) -> OracleRequest:
        # Some are asked for more often than others.
        adapter = adapters[min(rng.randrange(len(adapters)), rng.randrange(len(adapters)))]
        return msgspec.structs.replace(request, adapter=adapter) if rng.random() < share else request

    actions = {
        step: Actions(tuple(map(adapted, done.arrivals)), done.aborts) for step, done in workload.actions.items()
    }
    config = msgspec.structs.replace(workload.config, max_loras=rng.choice((1, 1, 2, 4)))
    return msgspec.structs.replace(workload, config=config, actions=actions)


def with_adaptive_threshold(workload: Workload) -> Workload:
    """The same requests on an engine whose prefill threshold grows to an even share of the budget."""
    threshold = random.Random(workload.seed).choice((8, 48, 200))
    config = msgspec.structs.replace(
        workload.config, long_prefill_token_threshold_tokens=threshold, long_prefill_adaptive=True
    )
    return msgspec.structs.replace(workload, config=config)


def with_windows(workload: Workload) -> Workload:
    """The same requests on an engine whose layers, some or all, attend to a sliding window."""
    rng = random.Random(workload.seed)
    window = rng.choice((2, 9, 16, 17, 40, 128, 128, 512))
    # Mistral, gpt-oss, Gemma 3, and a model with more full layers than others.
    groups = rng.choice(((window,), (window, 0), (0, window), (window,) * 5 + (0,), (0, 0, window)))
    old = workload.config
    config = msgspec.structs.replace(old, kv_windows_tokens=groups)
    most = config.blocks_for(old.max_model_len_tokens)
    share = old.num_blocks / old.blocks_for(old.max_model_len_tokens)
    config = msgspec.structs.replace(config, num_blocks=max(most, int(most * share * rng.choice((0.4, 1.0)))))
    return msgspec.structs.replace(workload, config=config)


def with_speculation(workload: Workload) -> Workload:
    """The same requests on an engine that decodes speculatively, well or badly, by a method of either kind."""
    rng = random.Random(workload.seed)
    most = rng.choice((1, 2, 3, 5))
    lookahead = rng.choice((0, most))
    always_all = workload.config.async_scheduling or rng.random() < 0.5
    lines = [(drafts, right) for drafts in range(most + 1) for right in range(drafts + 1)]
    odds = DraftOdds(
        tuple((drafts, right, rng.random()) for drafts, right in lines if drafts == most or not always_all)
    )
    config = msgspec.structs.replace(
        workload.config,
        num_speculative_tokens=most,
        num_lookahead_tokens=lookahead,
        drops_cached_block=lookahead > 0 and rng.random() < 0.7,
        # What fits without drafts fits with them.
        num_blocks=workload.config.num_blocks + workload.config.blocks_for(2 * most + lookahead),
    )
    return msgspec.structs.replace(workload, config=config, draft_odds=odds)


def scheduled(workload: Workload, *, asynchronous: bool) -> Workload:
    """The workload under one of the two schedulers."""
    config = msgspec.structs.replace(workload.config, async_scheduling=asynchronous)
    return msgspec.structs.replace(workload, config=config)


def sharegpt_at_once(data_dir: Path, requests: int) -> Workload:
    """The first requests of Block's ShareGPT rows, all at once, on its A30 configuration (0-token prompts count 1)."""
    with gzip.open(data_dir / "block_a30" / "sharegpt_val_10k_llama2.csv.gz", "rt") as file:
        rows = [r for _, r in zip(range(requests), csv.DictReader(file), strict=False)]
    arrivals = tuple(
        OracleRequest(
            request_id=f"r{i}",
            prompt_tokens=max(1, int(r["num_prefill_tokens"])),
            output_tokens=int(r["num_decode_tokens"]),
        )
        for i, r in enumerate(rows)
    )
    config = EngineConfig(model="oracle", max_num_seqs=48, max_num_batched_tokens=512, num_blocks=1052)
    return Workload(seed=0, config=config, actions={0: Actions(arrivals)})


def _random_request(
    rng: random.Random, config: EngineConfig, i: int, mean_prompt: int, mean_output: int, *, shared_prefixes: bool
) -> OracleRequest:
    longest = min(config.max_model_len_tokens, config.num_blocks * config.block_size_tokens)
    shape = rng.random()
    if shape < 0.03:
        prompt, output = 1, 1
    elif shape < 0.06:
        prompt = longest - 1
        output = 1
    elif shape < 0.09:
        prompt = 1
        output = min(longest - 1, 600)
    else:
        prompt = max(1, min(int(rng.expovariate(1 / mean_prompt)), longest - 1))
        output = max(1, min(int(rng.expovariate(1 / mean_output)), longest - prompt))
    group, shared = "", 0
    if shared_prefixes and rng.random() < 0.7:
        group = f"g{rng.randint(1, 3)}"
        shared = rng.choice((15, 16, 64, 100, 333, 9_000))
        if rng.random() < 0.8:
            shared = min(prompt, shared)
    return OracleRequest(
        request_id=f"r{i}",
        prompt_tokens=prompt,
        output_tokens=output,
        max_output_tokens=rng.choice((0, 0, output + 1, config.max_model_len_tokens - prompt)),
        priority=rng.choice((0, 0, 1, 2)) if config.scheduling_policy == "priority" else 0,
        shared_prefix=group,
        shared_tokens=shared,
    )


def first_difference(workload: Workload, ours: Scheduler, theirs: Scheduler) -> str:
    """Runs both side by side; empty if every step is equal, else the first diverging step with both sides."""
    last = max(workload.actions, default=-1)
    step = 0
    while ours.has_work or theirs.has_work or step <= last:
        actions = workload.actions.get(step)
        if actions is not None:
            for i, request in enumerate(actions.arrivals):
                # No two at the same instant: vLLM breaks such ties by comparing ids as text.
                arrival_s = step + i * 1e-6
                ours.add(request, arrival_s)
                theirs.add(request, arrival_s)
            for request_id in actions.aborts:
                ours.abort(request_id)
                theirs.abort(request_id)
        if ours.has_work != theirs.has_work:
            return f"seed {workload.seed}, step {step}: has_work {ours.has_work} against {theirs.has_work}"
        if ours.has_work:
            a, b = ours.step(), theirs.step()
            if a != b:
                fields = [
                    f"  {name}:\n    ours   {x}\n    theirs {y}"
                    for name, x, y in zip(Observation._fields, a, b, strict=True)
                    if x != y
                ]
                return "\n".join((f"seed {workload.seed}, step {step}, {workload.config}:", *fields))
        step += 1
    return ""
