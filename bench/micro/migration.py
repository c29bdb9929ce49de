"""What a move costs its client and the others, in simulation, beside figure 10 of Llumnix (OSDI '24).

    python -m bench.micro.migration [--output FILE]

Two A10 with LLaMA-7B. Both decode a batch of about 8,192 tokens, of requests as long as the one that moves. Downtime is
the gap between two tokens at the client, in the mean of moves that begin at several moments of a step; the decode step
is that of the destination from the first stage to the cut, against the same node without a move. The lines:

- *stages*: ours on any engine, at two shares of the destination's time (`moves.share`), and *at once*, as when a node
  is drained;
- *transfer*: KV copied beside decoding, as Llumnix does it, in the time that its own blocking copy takes;
- *blocking copy* and *recompute*: the source stops first.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.run.spec import packaged_path
from bench.simcluster import NodeSpec, SimCluster
from bench.workload.item import WorkloadItem
from gateway.core import events as ev
from gateway.core.moves.config import MovesConfig, TransferConfig
from gateway.core.router import RouterConfig
from simcore.cost.profile import decode_profile
from simcore.types import EngineConfig

LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
BATCH_TOKENS = 8192
COPY = TransferConfig(fixed_s=0.016, s_per_1000_tokens=0.203)
"""Llumnix, figure 10: the blocking copy of 7B takes 68 ms at 256 tokens and 1,682 at 8,192."""
PUBLISHED_MS: dict[str, tuple[float, ...]] = {
    "Llumnix, migration": (13, 12, 15, 16, 22, 26),
    "Llumnix, blocking copy": (68, 129, 226, 451, 909, 1682),
    "Llumnix, recompute": (58, 110, 220, 436, 940, 1995),
}
PUBLISHED_STEP_MS = {
    "migrating": (53.6, 47.8, 45.5, 44.7, 44.0, 44.5),
    "normal": (52.0, 47.0, 44.3, 43.6, 43.3, 43.5),
}
ASKED_S = 6.0
PHASES = 3
ANSWER_TOKENS = 3000
BLOCKS, BLOCK_TOKENS = 4000, 16
BLOCKING = msgspec.structs.replace(COPY, overlap=False)
STILL = MovesConfig(rule="llumnix", options={"out_below": -1e9}, every_s=0.1)
"""Nothing moves, and what nodes tell is heard as often."""
SPREAD, THIN, AT_ONCE = "stages, 10 % of the time", "stages, 3 %", "stages at once"


class MeasuredMove(msgspec.Struct, frozen=True, kw_only=True):
    """One move. Times in seconds."""

    line: str
    tokens: int
    downtime_s: float
    move_s: float
    """From the first stage, or the cut where there is none, to the cut."""
    stages: int
    step_s: float
    """A step of the destination meanwhile, in the mean; 0 where there was no stage."""
    normal_step_s: float


class _Watch:
    """When the move began and was cut, and how many steps the destination had run by when."""

    def __init__(self) -> None:
        self.began_s: float | None = None
        self.cut_s: float | None = None
        self.stages = 0
        self.request_id = ""
        self.steps: list[tuple[float, int]] = []

    def __call__(self, at_s: float, event: ev.AnyEvent, actions: Any) -> None:
        if isinstance(event, ev.LoadNoted) and event.load.node_id == "destination":
            self.steps.append((at_s - event.load.state_age_s, event.load.trace_seq))
        for action in actions:
            if isinstance(action, ev.Dispatch) and action.attempt > 1 and self.cut_s is None:
                self.began_s = at_s if self.began_s is None else self.began_s
                if action.stage:
                    self.stages += 1
                else:
                    self.cut_s, self.request_id = at_s, action.request_id

    def step_s(self, from_s: float, to_s: float) -> float:
        """Mean step of the destination between two moments."""
        inside = [(at_s, seq) for at_s, seq in self.steps if from_s <= at_s <= to_s]
        (first_s, first), (last_s, last) = inside[0], inside[-1]
        return (last_s - first_s) / (last - first) if last > first else 0.0


def measure(
    line: str, tokens: int, moves: MovesConfig, phase: int = 0, *, caching: bool = True, gently: bool = False
) -> MeasuredMove:
    """One move of a request with so many tokens, begun `phase` fractions of a step later."""
    asked_s = ASKED_S + 0.045 * phase / PHASES
    asked = ev.MoveAsked(request_id="moved", node_id="destination", gently=gently)
    watch = _run(tokens, moves, [(asked_s, asked)], caching=caching)
    began_s, cut_s, found = watch.began_s, watch.cut_s, watch.downtime_s
    if began_s is None or cut_s is None or found is None:
        raise AssertionError(f"{line} at {tokens}: nothing has moved")
    return MeasuredMove(
        line=line,
        tokens=tokens,
        downtime_s=found,
        move_s=cut_s - began_s,
        stages=watch.stages,
        step_s=watch.step_s(began_s, cut_s) if watch.stages and moves.transfer is None else 0.0,
        normal_step_s=_still(tokens, caching).step_s(began_s, max(cut_s, began_s + 2.0)),
    )


@functools.cache
def _still(tokens: int, caching: bool) -> _Run:
    return _run(tokens, STILL, [], caching=caching)


class _Run(_Watch):
    downtime_s: float | None = None


def _run(tokens: int, moves: MovesConfig, world: Sequence[tuple[float, ev.AnyEvent]], *, caching: bool) -> _Run:
    profile = decode_profile(Path(packaged_path("experiments/a10-llama-7b.json")).read_bytes())
    config = EngineConfig(
        model="llama-7b",
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        block_size_tokens=BLOCK_TOKENS,
        num_blocks=BLOCKS,
        max_model_len_tokens=32768,
        enable_prefix_caching=caching,
    )
    nodes = [
        NodeSpec(node_id=name, config=config, step_time=profile.step_time_model()) for name in ("source", "destination")
    ]
    each = max(1, BATCH_TOKENS // tokens)
    # In turn to source and destination, and one more to the source: the shortest there, which moves.
    items = [_item(f"r{i}", tokens) for i in range(2 * each)]
    items.append(_item("moved", tokens - 16))
    watch = _Run()
    cluster = SimCluster(
        nodes, RouterConfig(policy="round_robin", moves=moves), observe=watch, max_output_tokens=ANSWER_TOKENS
    )
    found = cluster.run(items, world)
    if watch.request_id:
        watch.downtime_s = next(row.downtime_s for row in found.results if row.request_id == watch.request_id)
    return watch


def _item(name: str, tokens: int) -> WorkloadItem:
    return WorkloadItem(request_id=name, arrival_s=0.0, prompt_tokens=tokens, output_tokens=ANSWER_TOKENS)


def measure_all() -> list[MeasuredMove]:
    """Every line at every length."""
    paced = msgspec.structs.replace(STILL, give_up_s=600.0)
    found = []
    for tokens in LENGTHS:
        found += [
            *(measure(SPREAD, tokens, paced, phase, gently=True) for phase in range(PHASES)),
            measure(THIN, tokens, msgspec.structs.replace(paced, share=0.03), gently=True),
            *(measure(AT_ONCE, tokens, STILL, phase) for phase in range(PHASES)),
            measure("transfer", tokens, msgspec.structs.replace(STILL, transfer=COPY)),
            measure("blocking copy", tokens, msgspec.structs.replace(STILL, transfer=BLOCKING)),
            measure("recompute", tokens, STILL, caching=False),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FILE", help="Also as JSON.")
    own = parser.parse_args()
    found = measure_all()
    console = Console()
    console.print(_table("downtime, ms", found, lambda row: 1e3 * row.downtime_s, PUBLISHED_MS))
    console.print(_table("from the first stage to the cut, s", found, lambda row: row.move_s, {}, digits=2))
    slower = [row for row in found if row.step_s]
    console.print(_table("decode step at the destination, ms", slower, lambda row: 1e3 * row.step_s, PUBLISHED_STEP_MS))
    console.print(_table("slower by, %", slower, lambda row: 100 * (row.step_s / row.normal_step_s - 1), {}))
    if own.output is not None:
        own.output.write_text(json.dumps(msgspec.to_builtins(found), indent=1) + "\n", encoding="utf-8")


def _table(
    title: str,
    found: Sequence[MeasuredMove],
    value: Callable[[MeasuredMove], float],
    published: Mapping[str, Sequence[float]],
    digits: int = 1,
) -> Table:
    table = Table("tokens", *map(str, LENGTHS), title=title)
    for line in dict.fromkeys(row.line for row in found):
        means = [float(np.mean([value(row) for row in found if (row.line, row.tokens) == (line, n)])) for n in LENGTHS]
        table.add_row(line, *(f"{mean:.{digits}f}" for mean in means))
    for line, values in published.items():
        table.add_row(f"[dim]{line}", *(f"[dim]{one:g}" for one in values))
    return table


if __name__ == "__main__":
    main()
