"""Compiles everything a process needs, or loads it from numba's cache, by using it once."""

from __future__ import annotations

import msgspec
import numpy as np

from simcore.cost.step_time import StepTimeModel
from simcore.lookahead import WhatIf
from simcore.node import SimNode, SimRequest
from simcore.tracing import NOBODY, TracingNode
from simcore.types import Candidate, EngineConfig, LengthBelief

CONFIG = EngineConfig(model="warm-up", max_num_seqs=2, max_num_batched_tokens=8, num_blocks=8)
MODEL = StepTimeModel(
    name="warm-up",
    constant_s=0.01,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0,
    dense_knots_tokens=(1, 2),
    dense_knots_s=(0.0, 0.0),
)
WINDOWS = msgspec.structs.replace(CONFIG, kv_windows_tokens=(0, 16))
"""As all engines that are not plain."""
BELIEF = LengthBelief((2, 4))
CANDIDATE = Candidate(request_id="b", prompt_tokens=3, max_output_tokens=4, belief=BELIEF)


def warm_node() -> None:
    """What a predictor's process needs: its first request must not wait for a compiler, gateways would take it for
    lost."""
    warm(sharing_engine=True)


def warm_node_of_all_rules() -> None:
    """As `warm_node`, for an engine with sliding windows or drafts (not `layout.is_plain`): besides what all need."""
    node = SimNode("warm-up", WINDOWS, MODEL)
    for i in "ab":
        node.add(SimRequest(request_id=i, prompt_tokens=20, output_tokens=2, max_output_tokens=2), 0.0)
    node.step(0.0)
    node.abort("b")
    what_if = WhatIf("warm-up", WINDOWS, MODEL, scenarios=2)
    what_if.rebase_node(node, {"a": BELIEF}, 0.0)
    what_if.forecast([CANDIDATE])
    node.advance(100.0)
    node.load(0.0)
    _show(WINDOWS)


def warm_all() -> None:
    """Everything there is."""
    warm(shared_prefixes=True, clusters=True)
    warm_node_of_all_rules()
    warm_fleet()


def warm(*, sharing_engine: bool = False, shared_prefixes: bool = False, clusters: bool = False) -> None:
    """Runs one tiny node, one step and one what-if. With `sharing_engine`, an engine too that tells blocks apart, as an
    emulated one does; with `shared_prefixes`, that and all that a simulation of such a node needs, or of one with
    sliding windows or drafts; with `clusters`, what only simulated clusters need."""
    node = SimNode("warm-up", CONFIG, MODEL)
    node.add(SimRequest(request_id="a", prompt_tokens=20, output_tokens=4, max_output_tokens=4), 0.0)
    node.step(0.0)
    node.add(SimRequest(request_id="c", prompt_tokens=3, output_tokens=1, max_output_tokens=1), 1.0)
    node.abort("c")
    node.advance(100.0)
    node.load(0.0)
    _show(CONFIG)
    for hashes in ((), (7,)) if shared_prefixes else ((),):
        if clusters:
            _trace(hashes)
    if sharing_engine or shared_prefixes:
        sharing = SimNode("warm-up", CONFIG, MODEL)
        for i in "abc":
            sharing.add(
                SimRequest(request_id=i, prompt_tokens=20, output_tokens=2, max_output_tokens=2, block_hashes=(7,)), 0.0
            )
        sharing.step(0.0)
        sharing.abort("c")
    # Last: by then a process beside this one (`protos.runtime.kernels`) has compiled it.
    what_if = warm_what_if()
    if shared_prefixes:
        sharing.cached_tokens((7,), 20)
        sharing.expected_blocks((7, 8), 40)
        what_if.rebase_node(sharing, dict.fromkeys("ab", BELIEF), 0.0)
        stepping = WhatIf("warm-up", CONFIG, MODEL, scenarios=2, jumping=False)
        stepping.rebase_node(sharing, dict.fromkeys("ab", BELIEF), 0.0)
        stepping.forecast([CANDIDATE])
        sharing.advance(100.0)
        _show(WINDOWS)


def _show(config: EngineConfig) -> None:
    """A node as its trace shows it, and its what-ifs' base state."""
    shown = SimNode("warm-up", config, MODEL).snapshot(0.0)
    node = SimNode.from_snapshot(shown, "warm-up", MODEL, output_tokens=lambda _: 1, free_at_s=0.0)
    WhatIf("warm-up", config, MODEL, scenarios=2).rebase_node(node, {}, 0.0)


def _trace(hashes: tuple[int, ...]) -> None:
    tracing = TracingNode("warm-up", CONFIG, MODEL, interval_s=0.005, lengths_known=True)
    request = SimRequest(request_id="a", prompt_tokens=20, output_tokens=2, max_output_tokens=2, block_hashes=hashes)
    tracing.add(request, 0.0)
    tracing.run(100.0, keep_from_s=0.0, watched=NOBODY, mark=0)
    tracing.keep(100.0, 0)


def warm_what_if() -> WhatIf:
    """One what-if alone: as much to compile as all that a daemon needs besides."""
    node = SimNode("warm-up", CONFIG, MODEL)
    node.add(SimRequest(request_id="a", prompt_tokens=20, output_tokens=4, max_output_tokens=4), 0.0)
    what_if = WhatIf("warm-up", CONFIG, MODEL, scenarios=2)
    what_if.rebase_node(node, {"a": BELIEF}, 0.0)
    what_if.forecast([CANDIDATE])
    return what_if


def warm_fleet() -> None:
    """Runs a fleet of one node ahead: what a gateway's scaling rule needs."""
    from simcore.compiled.fleet import run_fleet

    one, nobody = np.ones(1), np.empty(0)
    run_fleet(
        np.zeros(1, np.int64),
        np.zeros(1),
        np.full((1, 2), 0.01),
        np.zeros((1, 3)),
        np.ones((1, 2)),
        nobody,
        np.empty(0, np.int64),
        np.zeros(1),
        np.zeros(1),
        one,
        one,
        one,
        1.0,
        0.0,
        2.0,
        1.0,
        1.0,
        1.0,
    )
