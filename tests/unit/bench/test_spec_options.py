"""A profile that somebody names brings its own KV blocks."""

from __future__ import annotations

from bench.commands.spec_options import base_spec, with_blocks
from bench.run.spec import RunSpec
from simcore.cost.shipped import load_profile


def test_nothing_named_is_the_default_run() -> None:
    assert base_spec(()) == RunSpec()


def test_a_profile_brings_its_blocks() -> None:
    kv = load_profile("h100/qwen2-7b").kv
    assert kv.num_blocks > RunSpec().num_blocks
    assert base_spec(("profile=h100/qwen2-7b",)).num_blocks == kv.num_blocks * kv.block_size_tokens // 16
    halved = base_spec(("profile=h100/qwen2-7b", "block_size_tokens=32"))
    assert halved.num_blocks == kv.num_blocks * kv.block_size_tokens // 32


def test_blocks_that_are_named_win() -> None:
    assert base_spec(("profile=h100/qwen2-7b", "num_blocks=500")).num_blocks == 500
    assert with_blocks({"profile": "h100/qwen2-7b"}, ("num_blocks=500",))["num_blocks"] == 500


def test_on_an_axis_each_profile_brings_its_own() -> None:
    blocks = [with_blocks({"profile": name}, ())["num_blocks"] for name in ("a30/llama-2-7b", "h100/qwen2-7b")]
    assert blocks == [load_profile("a30/llama-2-7b").kv.num_blocks, load_profile("h100/qwen2-7b").kv.num_blocks]
