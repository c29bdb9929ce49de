"""What a move costs: the client that moves, in the gap between its tokens, and those at the destination, in their pace.

Two emulated nodes and a gateway, each a process of its own; clients stream from both nodes all the time. For each
length, answers with prompts of so many tokens are moved to the other node as soon as they have begun, as fast as it can
be (as off a node that is drained) and gently (as a rule's moves are). Gap: the longest between two tokens of the moved
answer from the beginning of the move to three tokens after it; step: the median one. Bystanders: time per token of
those at the destination while requests move, all moves together, against the same clients before and after each move.

    python -m bench.micro.moves --lengths 256,8192 --moves 5
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from deploy.local_cluster import ClusterSpec, LocalCluster
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb

BEFORE_TOKENS = 24
AFTER_TOKENS = 3
LONGEST_S = 120.0
QUIET_S = 2.0
"""Before each move and after it, without the one that moved: what the bystanders' pace is compared with. Both, as their
contexts grow meanwhile."""
SETTLED_S = 0.5


class TimedAnswer(threading.Thread):
    """One streamed answer, and when each of its tokens came."""

    def __init__(self, stub: Any, name: str, prompt: Sequence[int], max_tokens: int) -> None:
        super().__init__(daemon=True)
        sampling = types_pb.SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
        request = pb.GenerateRequest(request_id=name, token_ids=pb.TokenIds(ids=prompt), sampling=sampling)
        self.name, self.node_id = name, ""
        self.times_s: list[float] = []
        self._call = stub.Generate(request, timeout=3600.0)

    def run(self) -> None:
        try:
            for chunk in self._call:
                self.node_id = self.node_id or chunk.node_id
                self.times_s.extend([time.monotonic()] * len(chunk.token_ids))
        except Exception:
            return

    def has(self, tokens: int) -> bool:
        return len(self.times_s) >= tokens

    def stop(self) -> None:
        self._call.cancel()

    def tokens(self, from_s: float, to_s: float) -> int:
        times_s = list(self.times_s)
        return bisect_right(times_s, to_s) - bisect_right(times_s, from_s)

    def gaps_s(self, from_s: float, after_s: float) -> list[float]:
        """Between its tokens from a moment to a few tokens after another."""
        times_s = list(self.times_s)
        last = next((i for i, at_s in enumerate(times_s) if at_s > after_s), len(times_s) - 1) + AFTER_TOKENS
        return [b - a for a, b in pairwise(times_s[: last + 1]) if b >= from_s]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end_s = time.monotonic() + LONGEST_S
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit(f"error: not within {LONGEST_S:g} s: {what}")
        time.sleep(0.005)


class Moved(NamedTuple):
    """One move as it was seen from outside."""

    told: pb.MoveInfo
    gap_s: float
    step_s: float
    quiet: tuple[float, int]
    """Seconds of clients at the destination before the move and after it, and the tokens that came in them."""
    during: tuple[float, int]
    """And while it lasted."""


def moved(
    stub: Any, name: str, tokens: int, bystanders: Sequence[TimedAnswer], rng: random.Random, *, gently: bool
) -> Moved:
    client = TimedAnswer(stub, name, [rng.randrange(97, 123) for _ in range(tokens)], 4000)
    client.start()
    wait_for(lambda: client.has(BEFORE_TOKENS), f"{BEFORE_TOKENS} tokens of {name}")
    # What it took to compute the prompt is over by now, and the destination has had nothing to do with it.
    time.sleep(QUIET_S)
    destination = "node-1" if client.node_id == "node-0" else "node-0"
    began_s = time.monotonic()
    stub.Move(pb.MoveRequest(request_id=name, node=destination, gently=gently), timeout=10.0)
    told = pb.MoveInfo()

    def is_over() -> bool:
        told.CopyFrom(stub.Explain(pb.ExplainRequest(request_id=name), timeout=10.0).moves[-1])
        return told.outcome not in ("under_way", "moved") or told.HasField("gap_s")

    while not is_over():
        time.sleep(0.02)
    if told.outcome != "moved":
        raise SystemExit(f"error: {name} stays: {told.outcome}: {told.detail}")
    cut_s = began_s + told.took_s
    seen = len(client.times_s)
    wait_for(lambda: client.has(seen + 2 * AFTER_TOKENS), f"tokens of {name} after its move")
    gaps_s = client.gaps_s(began_s, cut_s + told.gap_s)
    client.stop()
    there = [one for one in bystanders if one.node_id == destination]

    def seen_in(from_s: float, to_s: float) -> tuple[float, int]:
        return (to_s - from_s) * len(there), sum(one.tokens(from_s, to_s) for one in there)

    time.sleep(SETTLED_S + QUIET_S)
    stopped_s = time.monotonic() - QUIET_S
    before, after = seen_in(began_s - QUIET_S, began_s), seen_in(stopped_s, stopped_s + QUIET_S)
    return Moved(
        told=told,
        gap_s=max(gaps_s),
        step_s=statistics.median(gaps_s),
        quiet=(before[0] + after[0], before[1] + after[1]),
        during=seen_in(began_s, cut_s),
    )


def slower(done: Sequence[Moved]) -> float:
    """By how much a token of the bystanders took longer while requests moved."""
    quiet_s, quiet = (sum(column) for column in zip(*(one.quiet for one in done), strict=True))
    during_s, during = (sum(column) for column in zip(*(one.during for one in done), strict=True))
    return (during_s / max(during, 1)) / (quiet_s / quiet) - 1


def measure(options: argparse.Namespace, stub: Any) -> None:
    rng = random.Random(options.seed)
    lengths = [int(length) for length in options.lengths.split(",")]
    bystanders = [
        TimedAnswer(stub, f"by{i}", [rng.randrange(97, 123) for _ in range(rng.randrange(50, 500))], 1_000_000)
        for i in range(2 * options.bystanders)
    ]
    for one in bystanders:
        one.start()
    for one in bystanders:
        wait_for(lambda one=one: one.has(5), "bystanders stream")  # type: ignore[misc]
    print(
        f"{options.bystanders} bystanders a node, seed {options.seed}, time scale {options.time_scale:g}, "
        f"share {options.share:g}"
    )
    for gently in (False, True):
        print("gently" if gently else "as fast as it can be")
        for length in lengths:
            done = [
                moved(stub, f"m{gently:d}-{length}-{i}", length, bystanders, rng, gently=gently)
                for i in range(options.moves)
            ]
            gap_s = statistics.median(one.gap_s for one in done)
            step_s = statistics.median(one.step_s for one in done)
            print(
                f"  {length:6d} tokens: gap {gap_s * 1000:6.1f} ms (worst {max(o.gap_s for o in done) * 1000:6.1f}), "
                f"{gap_s / step_s:4.2f} steps of {step_s * 1000:5.1f} ms; took "
                f"{statistics.median(o.told.took_s for o in done):6.2f} s in "
                f"{statistics.median(o.told.stages for o in done):g} stages; bystanders {slower(done):+.1%}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="256,1024,2048,4096,8192", help="prompt tokens")
    parser.add_argument("--moves", type=int, default=5, help="of each length")
    parser.add_argument("--bystanders", type=int, default=8, help="streams at each node")
    parser.add_argument("--time-scale", type=float, default=1.0)
    parser.add_argument("--share", type=float, default=0.1, help="[router.moves] share")
    parser.add_argument("--profile", default="a30/llama-2-7b")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    predictor = {
        "tokenizer": "bytes",
        "profile": options.profile,
        "time_scale": options.time_scale,
        "max_model_len_tokens": 2_000_000,
        "num_blocks": 40_000,
    }
    gateway = {"tokenizer": "bytes", "policy": "least_requests", "moves_give_up_s": 600.0, "moves_share": options.share}
    with tempfile.TemporaryDirectory() as folder:
        spec = ClusterSpec(nodes=2, gateway_port=0, first_node_port=0, predictor=predictor, gateway=gateway)
        with LocalCluster(spec, Path(folder)) as cluster, cluster.stub() as stub:
            measure(options, stub)


if __name__ == "__main__":
    main()
