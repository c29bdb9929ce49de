"""Everything a daemon calls is compiled by `warm`, once, for one set of types."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from simcore.compiled import entry, future, jump
from simcore.compiled.entry import ENTRIES
from simcore.lookahead import WhatIf
from simcore.node import SimNode
from simcore.types import Candidate, EngineConfig, LengthBelief
from simcore.warmup import warm
from tests.unit.simcore.test_node import SECOND, node, request

OF_CLUSTERS = ("keep", "run")
"""What only simulated clusters need, which compile it with their first node."""


def signatures() -> dict[str, int]:
    compiled: dict[str, Any] = ENTRIES._asdict()
    return {name: len(function.signatures) for name, function in compiled.items() if name not in OF_CLUSTERS}


def test_warm_compiles_every_entry_point_and_use_compiles_nothing_more() -> None:
    warm(shared_prefixes=True)
    # Some are compiled for blocks that are counted and once more for blocks that are told apart.
    compiled = signatures()
    assert set(compiled.values()) == {1, 2}
    assert {name for name, n in compiled.items() if n == 2} == {"step", "advance", "remove", "forecast"}
    config = EngineConfig(model="m", max_num_seqs=200, scheduling_policy="priority", enable_prefix_caching=False)
    simulated = node(config)
    for i in range(100):
        simulated.add(request(f"r{i}", 30, 5), i)
    simulated.step(100)
    simulated.abort("r7")
    simulated.advance(103)
    what_if = WhatIf("n", config, SECOND, scenarios=3)
    beliefs = {i: LengthBelief((5, 9)) for i in simulated.requests}
    candidates = [Candidate(request_id=i, prompt_tokens=9, max_output_tokens=9, belief=beliefs["r1"]) for i in "abc"]
    what_if.rebase_node(simulated, beliefs, 103)
    what_if.forecast(candidates)
    shown = SimNode.from_snapshot(simulated.snapshot(103), "n", SECOND, output_tokens=lambda _: 5, free_at_s=104)
    what_if.rebase_node(shown, beliefs, 103)
    what_if.forecast(candidates[1:])
    simulated.copy().load(103)
    simulated.add(msgspec.structs.replace(request("s", 30, 5), block_hashes=(1 << 63, 2)), 103)
    simulated.advance(104)
    assert signatures() == compiled


def test_the_fingerprint_sees_code_and_numbers_of_the_kernels() -> None:
    before = entry._fingerprint()
    assert before == entry._fingerprint()
    module = vars(jump)
    old = module["BLOCK"]
    try:
        module["BLOCK"] = old + 1
        assert entry._fingerprint() != before
    finally:
        module["BLOCK"] = old


def test_summaries_are_those_of_numpy() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 2, 3, 8, 17):
        values = rng.exponential(size=n)
        out = np.zeros(6)
        future.summarise(values.copy(), n, out, 2)
        expected = [np.mean(values), np.quantile(values, 0.5), np.quantile(values, 0.9)]
        np.testing.assert_allclose(out[2:5], expected, rtol=1e-12)
