"""`astrolabe explain` in a terminal of 80 columns."""

from __future__ import annotations

import io

from rich.console import Console

from deploy.commands.explain import _print_decision
from deploy.commands.scale import print_decisions
from protos.v1 import astrolabe_dispatch_pb2 as pb

NOTE = "3 dispatched there since it was asked: added to its forecast"


def console() -> Console:
    return Console(width=80, file=io.StringIO())


def written(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def test_notes_stand_below_the_table_and_the_mean_beside_the_median() -> None:
    decision = pb.Decision(node_id="node-0", policy="min_total_latency", cost_unit="s", reason="to finish it in 3.15 s")
    for i in range(3):
        score = decision.scores.add(node_id=f"node-{i}", cost=3.0 + i, note=NOTE)
        f = score.forecast
        f.node_id, f.e2e_s.mean, f.e2e_s.p50, f.e2e_s.p90 = f"node-{i}", 3.15, 2.339, 3.5
        f.kv_headroom_path.extend((60, 50, 40, 30, 20, 10))
    shown = console()
    _print_decision(shown, decision)
    text = written(shown)
    assert all(len(line) <= 80 for line in text.splitlines())
    (row,) = [line for line in text.splitlines() if line.split()[:1] == ["node-1"]]
    assert row.split()[1:4] == ["4", "0.000", "3.150"]
    words = " ".join(text.split())
    assert f"node-0, node-1, node-2: {NOTE}" in words
    assert "e2e 3.150 (2.339 / 3.500) s" in words
    assert "fewest KV blocks free within 1, 2, 5, 10, 20, 50 s: 60, 50, 40, 30, 20, 10" in words


def test_what_a_rule_wanted_is_told_within_the_bounds() -> None:
    said = pb.ScalingExplanation()
    said.groups.add(name="a30", min=1, max=4)
    decision = said.decisions.add(actions=["start a30-0"])
    decision.groups.add(group="a30", had=0, wanted=0)
    shown = console()
    print_decisions(shown, said)
    assert "a30 0 → 1" in written(shown)
