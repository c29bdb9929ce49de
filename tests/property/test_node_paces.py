"""With what pace each node is reckoned, whatever nodes tell in whatever order."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.nodes.pool import LEAST_TO_JUDGE, MOST_APART, NodePool
from simcore.types import NodePace
from tests.helpers.routing import engine_config

PACE = NodePace(
    batches=(1, 8), step_s=(0.02, 0.03), kv_s_per_token=1e-7, prefill_s_per_token=1e-4, prefill_s_per_token2=0.0
)
events = st.lists(
    st.tuples(
        st.sampled_from(["join", "tell", "lose", "remove"]), st.sampled_from("abcdef"), st.sampled_from([1, 2, 1e6])
    ),
    max_size=40,
)


def believed(pool: NodePool) -> dict[str, tuple[NodePace | None, bool]]:
    """By the definition: its own pace, or that of the node in the middle if it has not told or tells what cannot be."""
    told = sorted(
        (n.told_pace for n in pool.nodes.values() if n.told_pace is not None), key=lambda pace: pace.step_s[0]
    )
    middle = told[len(told) // 2] if told else None
    found: dict[str, tuple[NodePace | None, bool]] = {}
    for node in pool.nodes.values():
        own = node.told_pace
        is_odd = False
        if own is not None and middle is not None and len(told) >= LEAST_TO_JUDGE:
            is_odd = not 1 / MOST_APART <= own.step_s[0] / middle.step_s[0] <= MOST_APART
        found[node.node_id] = (middle if own is None or is_odd else own, is_odd)
    return found


@given(events)
def test_a_node_is_as_fast_as_it_says_or_as_the_one_in_the_middle(said: list[tuple[str, str, float]]) -> None:
    pool = NodePool(stale_after_s=5.0)
    for what, node_id, times in said:
        node = pool.nodes.get(node_id)
        if what == "join":
            pool.join(node_id, engine_config(), "", 0.0)
        elif node is None:
            continue
        elif what == "tell" and node.up:
            pool.set_pace(node, msgspec.structs.replace(PACE, step_s=(0.02 * times, 0.03 * times)))
        elif what == "lose":
            pool.lose(node_id, "gone")
            continue
        elif what == "remove":
            pool.remove(node_id)
            continue
        else:
            continue
        if all(n.told_pace is None for n in pool.nodes.values()):
            # Nobody says anything better than what was believed before.
            continue
        reckoned = {n.node_id: (n.pace and n.pace.told, bool(n.pace_doubt)) for n in pool.nodes.values()}
        assert reckoned == believed(pool)
