# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM environment: drives a traced scheduler by hand and compares what readers see with its own lists.

    python -m tests.vllm.scheduler_driver --seed 1 --operations 500 --mode async --policy fcfs

Prints one JSON object. No model, no device; any vLLM whose scheduler imports will do.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import json
import os
import random
import socket
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
}
os.environ.update({k: v for k, v in ENVIRONMENT.items() if k not in os.environ})

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1 << 20,
    "vocab_size": 260,
    "torch_dtype": "bfloat16",
}


def accepted(function: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that this version's function knows."""
    known = inspect.signature(function).parameters
    return {k: v for k, v in options.items() if k in known}


class Engine:
    """A real scheduler with up to two steps in flight, as vLLM's engine core runs it."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        import torch
        from vllm.engine.arg_utils import EngineArgs
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.core.sched.async_scheduler import AsyncScheduler
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        try:
            from vllm.utils.hashing import sha256
        except ImportError:
            from vllm.utils import sha256
        from engine_adapters.vllm.scheduler import traced

        model = Path(tempfile.mkdtemp(prefix="astrolabe-driver-"))
        (model / "config.json").write_text(json.dumps(MODEL))
        options = {
            "model": str(model),
            "skip_tokenizer_init": True,
            "enforce_eager": True,
            "max_model_len": 4096,
            "max_num_seqs": arguments.max_num_seqs,
            "max_num_batched_tokens": arguments.budget,
            "scheduling_policy": arguments.policy,
            "async_scheduling": arguments.mode == "async",
            "enable_prefix_caching": True,
        }
        config = copy.deepcopy(EngineArgs(**accepted(EngineArgs.__init__, options)).create_engine_config())
        config.cache_config.block_size = 16
        config.cache_config.num_gpu_blocks = arguments.blocks + 1
        if arguments.max_loras:
            from vllm.config.lora import LoRAConfig

            config.lora_config = LoRAConfig(max_loras=arguments.max_loras)
        if arguments.drafts:
            from vllm.config.speculative import SpeculativeConfig

            config.speculative_config = SpeculativeConfig(
                method="ngram", num_speculative_tokens=arguments.drafts, prompt_lookup_max=2
            )
            if arguments.lookahead:
                config.speculative_config.method = "eagle"
        groups = [
            KVCacheGroupSpec(
                ["l0"],
                FullAttentionSpec(
                    **accepted(
                        FullAttentionSpec.__init__,
                        {
                            "block_size": 16,
                            "num_kv_heads": 2,
                            "head_size": 64,
                            "dtype": torch.float16,
                            "use_mla": False,
                        },
                    )
                ),
            )
        ]
        init_none_hash(sha256)
        self.hasher = get_request_block_hasher(16, sha256)
        base = AsyncScheduler if arguments.mode == "async" else Scheduler
        self.depth = 2 if arguments.mode == "async" else 1
        kind = base if arguments.plain else traced(base)
        self.scheduler = kind(
            **accepted(
                Scheduler.__init__,
                {
                    "vllm_config": config,
                    "kv_cache_config": KVCacheConfig(
                        num_blocks=arguments.blocks + 1, kv_cache_tensors=[], kv_cache_groups=groups
                    ),
                    "structured_output_manager": StructuredOutputManager(config),
                    "block_size": 16,
                    "log_stats": False,
                },
            )
        )
        self.drafts = arguments.drafts
        self.rng = random.Random(arguments.seed)
        self.ends: dict[str, int] = {}
        self.flying: deque[tuple[Any, Any]] = deque()

    def add(
        self, name: str, *, prompt: list[int], max_tokens: int, priority: int, ends_at: int, adapter: int = 0
    ) -> None:
        """`adapter`: number of its LoRA adapter; 0: none."""
        from vllm.lora.request import LoRARequest
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        self.ends[name] = ends_at
        options = {
            "request_id": name,
            "prompt_token_ids": prompt,
            "sampling_params": SamplingParams(max_tokens=max_tokens, stop_token_ids=[7]),
            "pooling_params": None,
            "eos_token_id": None,
            "arrival_time": time.time(),
            "priority": priority,
            "block_hasher": self.hasher,
            "lora_request": LoRARequest(f"adapter-{adapter}", adapter, "/adapter") if adapter else None,
        }
        self.scheduler.add_request(Request(**accepted(Request.__init__, options)))

    def abort(self, names: list[str]) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(names, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        """One turn of the engine's loop."""
        if self.scheduler.has_requests():
            self.flying.append(self._plan())
            if len(self.flying) < self.depth:
                return
        self.land()

    def land(self) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        if not self.flying:
            return
        plan, samples = self.flying.popleft()
        ids = list(plan.num_scheduled_tokens)
        options = {
            "req_ids": ids,
            "req_id_to_index": {r: i for i, r in enumerate(ids)},
            "sampled_token_ids": [self._sampled(r, samples[r]) for r in ids],
            "logprobs": None,
            "prompt_logprobs_dict": {},
            "pooler_output": [],
        }
        known = accepted(ModelRunnerOutput.__init__, options)
        self.scheduler.update_from_output(plan, ModelRunnerOutput(**known))
        if self.drafts and self.depth == 1:
            from vllm.v1.outputs import DraftTokenIds

            drafts = [[9] * self.rng.randint(0, self.drafts) for _ in ids]
            self.scheduler.update_draft_token_ids(DraftTokenIds(ids, drafts))

    def _sampled(self, name: str, tokens: int) -> list[int]:
        request = self.scheduler.requests.get(name)
        known = request.num_output_tokens if request is not None else 0
        return [7 if known + k >= self.ends[name] else 9 for k in range(1, tokens + 1)]

    def _plan(self) -> tuple[Any, dict[str, int]]:
        """What is planned, and how many tokens it yields for each request: one, and drafts that are right."""
        plan = self.scheduler.schedule()
        drafted = getattr(plan, "scheduled_spec_decode_tokens", {})
        samples: dict[str, int] = {}
        for name in plan.num_scheduled_tokens:
            r = self.scheduler.requests[name]
            waiting_for = getattr(r, "num_output_placeholders", 0)
            complete = r.num_computed_tokens >= r.num_tokens + max(0, waiting_for - 1)
            samples[name] = 1 + self.rng.randint(0, len(drafted.get(name, ()))) if complete else 0
        return plan, samples

    def cached_tokens(self, prompt: list[int]) -> int:
        """What a request with this prompt would find in the prefix cache now."""
        from vllm.sampling_params import SamplingParams
        from vllm.v1.request import Request

        options = {
            "request_id": "probe",
            "prompt_token_ids": prompt,
            "sampling_params": SamplingParams(max_tokens=1),
            "pooling_params": None,
            "eos_token_id": None,
            "block_hasher": self.hasher,
        }
        probe = Request(**accepted(Request.__init__, options))
        return int(self.scheduler.kv_cache_manager.get_computed_blocks(probe)[1])

    def lists(self) -> dict[str, Any]:
        s = self.scheduler
        waiting = [r for n in ("kv_holding_waiting", "skipped_waiting", "waiting") for r in getattr(s, n, ())]
        return {
            "running": [(r.request_id, r.num_output_tokens, r.num_computed_tokens) for r in s.running],
            "waiting": [r.request_id for r in waiting],
            "free_blocks": s.kv_cache_manager.block_pool.get_num_free_blocks(),
            "adapters": {i: r.lora_request.lora_name if r.lora_request else "" for i, r in s.requests.items()},
        }


class TraceReader:
    """A daemon's side of the socket, blocking."""

    def __init__(self, path: str) -> None:
        from engine_adapters.vllm import frames
        from predictor.core.mirror import NodeMirror
        from predictor.core.prefix_content import PrefixContent

        self._frames = frames
        self._mirror_of = NodeMirror
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(path)
        self.socket.sendall(frames.frame(frames.Attach(frames.SCHEMA, True, "driver")))
        self.reader = frames.Reader()
        self.mirror: Any = None
        self.cache = PrefixContent(block_size_tokens=16, most_blocks=1 << 20)
        self.durations: list[float] = []
        self.batches: list[Any] = []
        self.drafts = 0

    def read_one(self) -> None:
        from simcore.trace import CacheDelta, TraceDelta, TraceSnapshot

        header = self._receive(self._frames.HEADER.size)
        length, checksum = self._frames.parse_header(header)
        record = self.reader.read(self._frames.parse_payload(self._receive(length), checksum))
        if isinstance(record, TraceSnapshot):
            self.mirror = self._mirror_of(record)
        elif isinstance(record, CacheDelta):
            assert not self.cache.apply(record), f"a gap before change {record.number} of the cache"
        elif isinstance(record, TraceDelta):
            outcome = self.mirror.apply(record)
            assert outcome.value == "applied", f"delta {record.seq} after {self.mirror.seq}: {outcome}"
            if record.batch.total_tokens:
                self.batches.append(record.batch)
            self.durations.append(record.duration_s)
            self.drafts += sum(part.drafts for part in record.scheduled)

    def read_until(self, fits: Any) -> None:
        """Reads until the mirror fits; each wait ends in a timeout if it never does."""
        deadline = time.monotonic() + 20
        while not fits(self.mirror):
            assert time.monotonic() < deadline, "the mirror does not come to fit the engine"
            self.read_one()

    def _receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            assert more, "the engine closed the trace"
            data += more
        return data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=500)
    parser.add_argument("--mode", choices=["sync", "async"], default="sync")
    parser.add_argument("--policy", choices=["fcfs", "priority"], default="fcfs")
    parser.add_argument("--max-num-seqs", type=int, default=16)
    parser.add_argument("--budget", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=120)
    parser.add_argument("--max-loras", type=int, default=0, help="requests use one adapter of four, or none")
    parser.add_argument("--drafts", type=int, default=0, help="speculative decoding: the most in a step")
    parser.add_argument("--lookahead", action="store_true", help="by a method that keeps KV of its own")
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="astrolabe-trace-")
    os.environ["ASTROLABE_TRACE"] = f"unix:{folder}/trace.sock"
    engine = Engine(arguments)
    trace = TraceReader(f"{folder}/trace.sock")
    sys.stdout.write(json.dumps(run(engine, trace, arguments)) + "\n")
    sys.stdout.flush()
    os._exit(0)  # vLLM's own threads would keep the process


def run(engine: Engine, trace: TraceReader, arguments: argparse.Namespace) -> dict[str, Any]:
    from simcore.prefix import block_hashes

    rng = random.Random(arguments.seed)
    shared = [rng.randrange(10, 200) for _ in range(200)]
    steps = compared = preemptions = arrivals = aborts = 0
    prompts: list[list[int]] = []
    hits: list[int] = []

    def compare_caches() -> None:
        """A few prompts, old and new, would find as many tokens as the trace says."""
        asked = [rng.choice(prompts) for _ in range(min(4, len(prompts)))]
        asked += [p + [rng.randrange(10, 200) for _ in range(rng.randrange(40))] for p in asked[:2]]
        want = [engine.cached_tokens(p) for p in asked]
        hits.extend(want)
        # With a method that keeps KV of its own the last block found is computed anew.
        dropped = 16 if arguments.lookahead else 0
        trace.read_until(
            lambda _: [max(0, trace.cache.cached_tokens(block_hashes(p, 16), len(p)) - dropped) for p in asked] == want
        )

    def fits(mirror: Any) -> bool:
        if mirror is None:
            return False
        want = engine.lists()
        running = [(r.request_id, r.output_tokens, r.computed_tokens) for r in mirror.running()]
        waiting = [r.request_id for r in mirror.waiting()]
        adapters = {r.request_id: r.adapter for r in (*mirror.running(), *mirror.waiting())}
        seen = {
            "running": running,
            "waiting": waiting,
            "free_blocks": mirror.free_blocks,
            "adapters": adapters,
        }
        return seen == want

    for operation in range(arguments.operations):
        draw = rng.random()
        if draw < 0.25 and len(engine.scheduler.requests) < 60:
            arrivals += 1
            length = rng.randrange(1, 400)
            prefix = shared[: rng.choice([0, 0, 32, 160])][: max(0, length - 1)]
            most = rng.randrange(1, 200)
            prompts.append(prefix + [rng.randrange(10, 200) for _ in range(length - len(prefix))])
            if len(prompts) > 5 and rng.random() < 0.2:
                prompts[-1] = rng.choice(prompts)
            engine.add(
                f"r{operation}",
                prompt=prompts[-1],
                max_tokens=most,
                priority=rng.choice([0, 0, 1, 5]) if arguments.policy == "priority" else 0,
                ends_at=rng.choice([most + 1, rng.randrange(1, most + 1)]),
                adapter=rng.randrange(5) if arguments.max_loras else 0,
            )
        elif draw < 0.32 and engine.scheduler.requests:
            names = rng.sample(
                sorted(engine.scheduler.requests), k=min(len(engine.scheduler.requests), rng.choice([1, 1, 3]))
            )
            aborts += len(names)
            engine.abort(names)
        else:
            engine.step()
            steps += 1
            if arguments.mode == "sync" or rng.random() < 0.05:
                while engine.flying:
                    engine.land()
                # Arrivals are told of with the next step, so compare only right after one.
                if engine.scheduler.has_requests() or trace.mirror is not None:
                    engine.step()
                    while engine.flying:
                        engine.land()
                    trace.read_until(fits)
                    compare_caches()
                    compared += 1
    while engine.scheduler.has_requests():
        engine.step()
    while engine.flying:
        engine.land()
    trace.read_until(fits)
    assert engine.lists()["free_blocks"] == arguments.blocks, engine.lists()
    preemptions = trace.mirror.preemptions_total
    return {
        "version": trace.reader.hello.config.engine_version if trace.reader.hello else "",
        "notes": list(trace.reader.hello.config.outside_rules) if trace.reader.hello else [],
        "steps": steps,
        "arrivals": arrivals,
        "aborts": aborts,
        "compared": compared + 1,
        "preemptions": preemptions,
        "deltas": len(trace.durations),
        "cache_hits": sum(h > 0 for h in hits),
        "cache_misses": sum(h == 0 for h in hits),
        "drafts": trace.drafts,
        "prefill_tokens": sum(b.prefill_tokens for b in trace.batches),
    }


if __name__ == "__main__":
    main()
