"""Micro-benchmark: what a decision costs the gateway's core as the fleet grows. `python -m bench.micro.scale`.

Processor time of the router alone, from an arrival to its dispatch and end, questions and answers included, with every
node's load told between the decisions as often as the nodes' engines step. Transport and the nodes' simulations come
on top: both grow with the number of questions, which is printed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from bench.measure.results import spread
from bench.run.provenance import machine
from gateway.core import events as ev
from gateway.core.decision.policies.estimated_latency import EstimatedLatency
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from gateway.core.router import Router, RouterConfig
from simcore.types import EngineConfig, Forecast, LengthBelief, NodeLoad, NodePace, Outcome, Quantiles

ENGINE = EngineConfig(model="m", max_num_seqs=48, max_num_batched_tokens=512, num_blocks=1052)
PACE = NodePace(
    batches=(1, 8, 16, 32, 48),
    step_s=(0.023, 0.024, 0.025, 0.026, 0.027),
    kv_s_per_token=6e-7,
    prefill_s_per_token=1.3e-4,
)
"""About that of a 7B model on an A30."""
BELIEF = LengthBelief((30, 80, 150, 250, 400, 700))


def load_of(node_id: str, rng: random.Random) -> NodeLoad:
    """A node somewhere between a third full and full."""
    running = rng.randrange(16, 47)
    return NodeLoad(
        node_id=node_id,
        trace_seq=1,
        state_age_s=0.0,
        running=running,
        waiting=0,
        free_blocks=1052 - 20 * running,
        total_blocks=1052,
        waiting_prompt_blocks=0,
        unprocessed_tokens=150 * running,
        preemptions_total=0,
    )


def answer_to(ask: ev.AskForecast, rng: random.Random) -> ev.ForecastArrived:
    def one(value: float) -> Quantiles:
        return Quantiles(value, value, value)

    e2e_s = 8.0 + 4.0 * rng.random()
    forecast = Forecast(
        request_id=ask.candidate.request_id,
        node_id=ask.node_id,
        ttft_s=one(0.1),
        tpot_s=one(0.03),
        e2e_s=one(e2e_s),
        preemptions=0.0,
        kv_headroom_blocks=100,
        harm_s=one(1.0),
        trace_seq=1,
        state_age_s=0.0,
    )
    return ev.ForecastArrived(ask_id=ask.ask_id, node_id=ask.node_id, forecast=forecast)


def measure(nodes: int, *, policy: str, ask: int, decisions: int, seed: int) -> tuple[float, float, float]:
    """Median and 99th percentile of processor microseconds per decision, and questions per decision."""
    rng = random.Random(seed)
    router = Router(RouterConfig(policy=policy, ask=ask, seed=seed, explain_keep=1000))
    names = [f"n{i}" for i in range(nodes)]
    for name in names:
        router.handle(ev.NodeJoined(node_id=name, config=ENGINE), 0.0)
        router.handle(ev.PaceTold(node_id=name, pace=PACE), 0.0)
        router.handle(ev.LoadNoted(load=load_of(name, rng), dispatch_seq=0), 0.0)
    # 2.6 requests and 33 steps a second and node: so many notes fall between two decisions.
    notes = 13
    costs_us: list[float] = []
    asked = 0
    seq: dict[str, int] = dict.fromkeys(names, 0)
    for i in range(decisions):
        now_s = 1.0 + i / (2.6 * nodes)
        for name in rng.sample(names, min(notes, nodes)):
            router.handle(ev.LoadNoted(load=load_of(name, rng), dispatch_seq=seq[name]), now_s)
        shape = ev.RequestShape(request_id=f"r{i}", prompt_tokens=250, max_output_tokens=700, belief=BELIEF)
        begin_s = time.process_time()
        actions = router.handle(ev.Arrived(request=shape), now_s)
        spent_s = time.process_time() - begin_s
        answers = [answer_to(action, rng) for action in actions if isinstance(action, ev.AskForecast)]
        asked += len(answers)
        begin_s = time.process_time()
        for answer in answers:
            actions = router.handle(answer, now_s)
        spent_s += time.process_time() - begin_s
        (sent,) = [action for action in actions if isinstance(action, ev.Dispatch)]
        seq[sent.node_id] = sent.dispatch_seq
        costs_us.append(1e6 * spent_s)
        router.handle(ev.StreamEnded(request_id=f"r{i}", node_id=sent.node_id, outcome=Outcome.STOP), now_s)
    cost_us = spread(costs_us[decisions // 10 :])
    assert cost_us is not None, "there are decisions"
    return cost_us.p50, cost_us.p99, asked / decisions


def estimate_us(nodes: int, *, seed: int, rounds: int = 300) -> float:
    """Median processor microseconds of the estimate of one request's cost at so many nodes, of which 13 have told a new
    load since the last."""
    rng = random.Random(seed)
    pace, policy = Pace(PACE, ENGINE.max_num_seqs), EstimatedLatency()
    shape = ev.RequestShape(request_id="r", prompt_tokens=250, max_output_tokens=700, belief=BELIEF)

    def view(i: int) -> NodeView:
        return NodeView(
            node_id=f"n{i}",
            config=ENGINE,
            load=load_of(f"n{i}", rng),
            in_flight=0,
            dispatches_60s=0,
            pace=pace,
        )

    views = [view(i) for i in range(nodes)]
    costs_us = []
    for _ in range(rounds):
        for i in rng.sample(range(nodes), min(13, nodes)):
            views[i] = view(i)
        begin_s = time.process_time()
        policy.costs(shape, views, {})
        costs_us.append(1e6 * (time.process_time() - begin_s))
    return statistics.median(costs_us)


def main() -> None:
    """Prints machine, command and one line per fleet size and way to choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", default="4,12,50,100,300,1000")
    parser.add_argument("--decisions", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"python -m bench.micro.scale --nodes {options.nodes} --decisions {options.decisions} --seed {options.seed}")
    print(", ".join(f"{name} {value}" for name, value in machine().items()) + "; one core used")
    print(f"\n{'nodes':>6s} {'way':34s}{'asked':>7s}{'p50 µs':>9s}{'p99 µs':>9s}")
    for nodes in (int(word) for word in options.nodes.split(",")):
        for way, policy, ask in (
            ("min_total_latency, asks 4", "min_total_latency", 4),
            ("min_total_latency, asks all", "min_total_latency", 0),
            ("estimated_latency", "estimated_latency", 0),
            ("llumnix_freeness", "llumnix_freeness", 0),
            ("least_requests", "least_requests", 0),
        ):
            p50_us, p99_us, asked = measure(
                nodes, policy=policy, ask=ask, decisions=options.decisions, seed=options.seed
            )
            print(f"{nodes:6d} {way:34s}{asked:7.1f}{p50_us:9.0f}{p99_us:9.0f}", flush=True)
        print(
            f"{nodes:6d} {'the estimate alone':34s}{0.0:7.1f}{estimate_us(nodes, seed=options.seed):9.0f}", flush=True
        )


if __name__ == "__main__":
    main()
