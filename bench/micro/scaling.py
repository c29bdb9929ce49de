"""What a decision of the scaling rule `forecast` costs: `python -m bench.micro.scaling [--nodes 4 12 100 400]`.

A mixed fleet in the middle of its load, and arrivals that ask for more nodes, for none, and for fewer: each tick builds
the fleet ahead and searches. Printed: milliseconds of processor time of a tick (median, worst) and how many fleets were
simulated in it.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time

import numpy as np

from engine_adapters.profile_file import load_any_profile
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from gateway.core.scale.config import Objective, ScaleConfig, ScaleGroup
from gateway.core.scale.events import RequestCame, RequestDone
from gateway.core.scale.fleet import FleetState, GroupState, SeenNode
from gateway.core.scale.rules.registry import make_rule
from simcore.types import EngineConfig, NodeLoad

MIX = {"a30": (0.5, 0.7), "l40s": (0.25, 1.0), "a100": (1 / 6, 1.8), "h100": (1 / 12, 3.0)}
"""Share of the nodes and price of each group."""
MEAN_PROMPT, MEAN_ANSWER = 246, 326
RATE_PER_NODE = 9.0
"""At which the mixed fleet is in the middle of its load."""


def group_state(name: str, count: int, price: float, share: float) -> GroupState:
    profile = load_any_profile(f"{name}/llama-3.1-8b")
    config = EngineConfig(model="m", max_num_seqs=128, max_num_batched_tokens=2048, num_blocks=profile.kv.num_blocks)
    pace = profile.step_time_model().pace(config)
    running = round(share * 100)
    used = running * (MEAN_PROMPT + MEAN_ANSWER // 2) // config.block_size_tokens
    serving = tuple(
        SeenNode(
            node_id=f"{name}-{i}",
            state="up",
            empty=False,
            view=NodeView(
                node_id=f"{name}-{i}",
                config=config,
                load=NodeLoad(
                    node_id=f"{name}-{i}",
                    trace_seq=1,
                    state_age_s=0.0,
                    running=running,
                    waiting=0,
                    free_blocks=max(0, config.num_blocks - used),
                    total_blocks=config.num_blocks,
                    waiting_prompt_blocks=0,
                    unprocessed_tokens=running * MEAN_ANSWER // 2,
                    preemptions_total=0,
                ),
                in_flight=running,
                dispatches_60s=0,
                pace=Pace(pace, config.max_num_seqs),
            ),
        )
        for i in range(count)
    )
    group = ScaleGroup(
        name=name, model="m", min=1, max=4 * count, price_per_hour=price, engine=config, pace=pace, cold_start_s=60.0
    )
    return GroupState(group=group, serving=serving, draining=(), starting=(), start_p50_s=60.0, start_p90_s=90.0)


def measure(nodes: int, load: float, ticks: int, seed: int) -> tuple[float, float, float, str]:
    """(Median and worst ms of a tick, fleets simulated, what was said last)."""
    counts = {name: max(1, round(nodes * share)) for name, (share, _) in MIX.items()}
    states = tuple(group_state(name, count, MIX[name][1], load) for name, count in counts.items())
    config = ScaleConfig(
        rule="forecast", groups=tuple(state.group for state in states), objective=Objective(tpot_s=0.1), seed=seed
    )
    rule = make_rule(config)
    rng = np.random.default_rng(seed)
    rate = RATE_PER_NODE * nodes * load
    took, simulated, why, now_s = [], [], "", 0.0
    for tick in range(ticks + 12):
        for at_s in np.sort(rng.uniform(now_s, now_s + 5.0, rng.poisson(5.0 * rate))):
            rule.came(RequestCame(prompt_tokens=MEAN_PROMPT, expected_tokens=MEAN_ANSWER), float(at_s))
        for _ in range(60):
            prompt, answer = int(rng.exponential(MEAN_PROMPT)) + 1, int(rng.exponential(MEAN_ANSWER)) + 1
            rule.done(
                RequestDone(
                    node_id="a30-0", prompt_tokens=prompt, output_tokens=answer, waited_s=0.0, ttft_s=0.2, e2e_s=9.0
                ),
                now_s,
            )
        now_s += 5.0
        fleet = FleetState(now_s=now_s, groups=states)
        began = time.process_time()
        wish = rule.tick(fleet, now_s)
        if tick >= 12 and wish is not None:
            took.append(1e3 * (time.process_time() - began))
            simulated.append(wish.seen.get("simulated", 0.0))
            why = wish.why
    return statistics.median(took), max(took), statistics.mean(simulated), why


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4, 12, 100, 400])
    parser.add_argument("--ticks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"seed {given.seed}, {given.ticks} ticks each"
    )
    print(f"{'nodes':>6} {'load':>6} {'median ms':>10} {'worst ms':>9} {'fleets':>7}  what was said last")
    for nodes in given.nodes:
        for load in (0.3, 0.7, 1.2):
            middle, worst, simulated, why = measure(nodes, load, given.ticks, given.seed)
            print(f"{nodes:6d} {load:6.1f} {middle:10.1f} {worst:9.1f} {simulated:7.1f}  {why}")


if __name__ == "__main__":
    main()
