"""States of a node as they occur under ShareGPT lengths, for micro-benchmarks of the simulation core."""

from __future__ import annotations

import csv
import gzip
import os
import random
from collections.abc import Iterator
from pathlib import Path

from length_model.core.belief import DEFAULT_PRIOR
from simcore.cost.step_time import StepTimeModel
from simcore.node import SimNode, SimRequest
from simcore.types import EngineConfig

A30_LLAMA2_7B = StepTimeModel(
    name="a30/llama-2-7b (rounded, for benchmarks)",
    constant_s=0.0015,
    prefill_work_s_per_token2=3.2e-9,
    decode_kv_s_per_token=5.5e-7,
    per_seq_s=2e-5,
    dense_knots_tokens=(1, 128, 512, 2048),
    dense_knots_s=(0.0165, 0.018, 0.06, 0.24),
)


def share_gpt_lengths(seed: int) -> tuple[list[tuple[int, int]], str]:
    """(prompt, output) token counts in random order, and where they come from.

    Block's 10,000 ShareGPT rows when the data set is there (prompts of 0 tokens count as 1), else lengths drawn from
    the quantiles of the same rows.
    """
    rng = random.Random(seed)
    folder = Path(os.environ.get("ASTROLABE_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    table = folder / "block_a30" / "sharegpt_val_10k_llama2.csv.gz"
    if not table.exists():
        atoms = DEFAULT_PRIOR.atoms_tokens
        drawn = [(max(1, int(rng.lognormvariate(3.6, 1.9))), rng.choice(atoms)) for _ in range(10_000)]
        return [(min(p, 3000), o) for p, o in drawn], "quantiles of ShareGPT (no data set here)"
    with gzip.open(table, "rt") as file:
        rows = [(max(1, int(r["num_prefill_tokens"])), int(r["num_decode_tokens"])) for r in csv.DictReader(file)]
    rows = [(p, o) for p, o in rows if p + o <= 4096]
    rng.shuffle(rows)
    return rows, f"{table.name}, {len(rows)} rows"


def busy_states(config: EngineConfig, in_system: int, count: int, seed: int) -> Iterator[SimNode]:
    """`count` states of a node that always holds `in_system` requests; one node that goes on between states."""
    lengths, _ = share_gpt_lengths(seed)
    node = SimNode("bench", config, A30_LLAMA2_7B)
    taken = 0

    def refill() -> None:
        nonlocal taken
        while len(node.requests) < in_system:
            prompt, output = lengths[taken % len(lengths)]
            node.add(
                SimRequest(
                    request_id=f"r{taken}", prompt_tokens=prompt, output_tokens=output, max_output_tokens=output
                ),
                node.free_at_s,
            )
            taken += 1

    def run(steps: int) -> None:
        for _ in range(steps):
            refill()
            node.advance(node.next_step_s + 1e-12)

    run(1500)
    for _ in range(count):
        run(40)
        refill()
        yield node
