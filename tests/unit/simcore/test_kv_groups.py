"""KV cache groups with a sliding window: what an engine's limits come to, and that a trace's snapshot is taken up."""

from __future__ import annotations

import msgspec
import pytest

from simcore.compiled import layout as at
from simcore.node import SimNode, SimRequest
from simcore.types import EngineConfig
from tests.helpers.step_time import SECOND

PLAIN = EngineConfig(model="m", max_num_batched_tokens=64, num_blocks=30, max_model_len_tokens=2000)


def with_windows(*windows_tokens: int) -> EngineConfig:
    return msgspec.structs.replace(PLAIN, kv_windows_tokens=windows_tokens)


def test_a_window_asks_for_its_own_blocks_what_is_in_flight_and_one() -> None:
    config = with_windows(33, 0, 33)
    assert config.window_blocks == (33 - 1 + 64) // 16 + 1 == 7
    assert config.blocks_for(48) == 3 * 3
    assert config.blocks_for(320) == 20 + 2 * 7
    ahead = msgspec.structs.replace(config, async_scheduling=True)
    assert ahead.window_blocks == (33 - 1 + 2 * 64) // 16 + 1


def test_a_block_stands_for_fewer_tokens_the_more_groups_take_some() -> None:
    assert PLAIN.tokens_per_block == 16
    assert with_windows(0, 33).tokens_per_block == 2000 / (125 + 7)
    assert with_windows(33).tokens_per_block == 2000 / 7


def test_the_longest_request_is_one_for_which_the_blocks_are_there() -> None:
    assert PLAIN.longest_tokens == 480
    assert with_windows(33).longest_tokens == 2000
    assert with_windows(33, 0, 33).longest_tokens == (30 - 2 * 7) * 16
    wide = with_windows(1000, 0)
    assert wide.longest_tokens == 15 * 16
    for config in (with_windows(33, 0, 33), wide):
        assert config.blocks_for(config.longest_tokens) <= config.num_blocks
        assert config.blocks_for(config.longest_tokens + 1) > config.num_blocks


@pytest.mark.parametrize("windows_tokens", [(), (0, 0), (128, 512), (1,), (1, 0)])
def test_groups_that_no_rule_covers_are_refused(windows_tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="kv_windows_tokens"):
        with_windows(*windows_tokens)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_snapshot_while_all_decode_goes_on_as_the_engine_does(asynchronous: bool) -> None:
    config = msgspec.structs.replace(
        with_windows(33, 0), enable_prefix_caching=False, async_scheduling=asynchronous, num_blocks=60
    )
    node = SimNode("n", config, SECOND)
    for i, prompt in enumerate((20, 47, 90)):
        node.add(SimRequest(request_id=f"r{i}", prompt_tokens=prompt, output_tokens=99, max_output_tokens=99), 0.0)
    for _ in range(30):
        node.step(node.next_step_s)
    shown = SimNode.from_snapshot(node.snapshot(0.0), "n", SECOND, output_tokens=lambda s: 99, free_at_s=0.0)
    shown.check()
    for _ in range(25):
        assert shown.load(0.0).free_blocks == node.load(0.0).free_blocks
        assert shown.head[at.FREE] == node.head[at.FREE]
        for each in (node, shown):
            each.step(each.next_step_s)
