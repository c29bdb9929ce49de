"""Two real vLLM servers with one model: greedy answers move between them at random moments, and every token is the one
of an undisturbed run.

With a small model's real weights too, 100 moves of them, where ASTROLABE_SMOLLM2 names its folder (`test_suite.py` says
how one is made).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from deploy.local_cluster import LocalCluster
from engine_adapters.base import EngineRequest
from engine_adapters.vllm.kv_source import side_channel
from protos.v1 import astrolabe_dispatch_pb2 as pb
from tests.vllm import servers
from tests.vllm.conftest import REPORT, before
from tests.vllm.servers import Server
from tests.vllm.test_resume import TOKENS, Reader, greedy

OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"frequency_penalty": 0.5, "logit_bias": {7: -1.5}},
    {"repetition_penalty": 1.25, "logit_bias": {7: -1.5}},
)
LAST_TOKENS = 20
"""Of an answer, for which nothing is moved any more."""
AT_ONCE = 5
REFUSED = (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.NOT_FOUND)
STORY = (
    "Every evening the old teller sat down at the fire of the inn, asked for a cup of tea, looked at who had come, "
    "and began without a word of greeting. Nobody in the village could say where the tales came from, and nobody asked."
)
SUBJECTS = ("a lighthouse", "the tides", "a clockmaker", "two rivers", "an old map", "bread", "the moon", "a train")


def moved(stub: Any, reader: Reader, name: str, rng: random.Random) -> list[pb.MoveInfo]:
    """Moves an answer to and fro at random moments while it lasts; the moves that were carried out."""
    reader.start()
    seen = 0
    while reader.is_alive() and len(reader.tokens) < reader.wanted - LAST_TOKENS:
        time.sleep(rng.uniform(0.02, 0.2))
        if len(reader.tokens) <= seen:
            continue
        moves = stub.Explain(pb.ExplainRequest(request_id=name), timeout=10.0).moves
        if moves and moves[-1].outcome == "moved" and not moves[-1].HasField("gap_s"):
            continue
        seen = len(reader.tokens) + rng.randrange(8)
        at = next((move.destination for move in reversed(moves) if move.outcome == "moved"), reader.node_id)
        try:
            stub.Move(pb.MoveRequest(request_id=name, node="node-1" if at == "node-0" else "node-0"), timeout=10.0)
        except grpc.RpcError as refused:
            # On its way, at its end, or no room in the other's batch.
            if not (isinstance(refused, grpc.Call) and refused.code() in REFUSED):
                raise
    reader.join(240.0)
    assert not reader.is_alive(), "an answer did not end"
    told = list(stub.Explain(pb.ExplainRequest(request_id=name), timeout=10.0).moves)
    assert {move.outcome for move in told} <= {"moved", "ended", "no_room"}, told
    return [move for move in told if move.outcome == "moved"]


def moved_answers(
    stub: Any, server: Server, model: str, prompts: Sequence[list[int] | str], seed: int, tokens: int = TOKENS
) -> list[list[pb.MoveInfo]]:
    """Moves answers, some at once, and holds each against what the server says by itself."""
    rng = random.Random(seed)
    readers = [Reader(stub, f"m{i}", prompt, OPTIONS[i % len(OPTIONS)], tokens) for i, prompt in enumerate(prompts)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seeds = [random.Random(rng.random()) for _ in readers]
        names = [f"m{i}" for i in range(len(readers))]
        done = list(pool.map(moved, [stub] * len(readers), readers, names, seeds))
        whole = list(pool.map(lambda one: greedy(server, model, one.prompt, one.options, tokens)[0], readers))
    (block,) = {node.config.block_size_tokens for node in stub.ListNodes(pb.ListNodesRequest(), timeout=10.0).nodes}
    for i, reader in enumerate(readers):
        where = f"seed {seed}, request {i}, moved after {[move.tokens for move in done[i]]} tokens"
        assert reader.tokens == whole[i], where
        assert reader.usage.output_tokens == tokens, where
        for move in done[i][-1:]:
            if move.HasField("found_tokens"):
                # All but what came since the last stage began, in whole blocks.
                assert move.tokens - move.found_tokens <= 3 * max(block, 128), f"{where}: {move}"
    return done


def report(done: Sequence[Sequence[pb.MoveInfo]]) -> str:
    moves = [move for of_one in done for move in of_one]
    gaps_s = sorted(move.gap_s for move in moves if move.HasField("gap_s"))
    last = [move for of_one in done for move in of_one[-1:] if move.HasField("found_tokens")]
    found = ", ".join(f"{move.found_tokens} of {move.tokens}" for move in last)
    middle, worst = gaps_s[len(gaps_s) // 2] * 1000, gaps_s[-1] * 1000
    return (
        f"{len(moves)} moves of {len(done)} answers; between tokens {middle:.0f} ms in the middle, {worst:.0f} ms at "
        f"worst; the last of each found in the prefix cache: {found} tokens"
    )


def test_greedy_answers_move_token_for_token(
    pair: tuple[LocalCluster, Server], real_server: Server, tiny_model: Path, pytestconfig: pytest.Config
) -> None:
    cluster, second = pair
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(5, 300))] for _ in range(AT_ONCE)]
    for server in (real_server, second):
        greedy(server, str(tiny_model), prompts[0], {})
    with cluster.stub() as stub:
        done = moved_answers(stub, real_server, str(tiny_model), prompts, seed)
    assert sum(map(len, done)) >= len(prompts), f"seed {seed}: {done}"
    pytestconfig.stash[REPORT] = report(done)


@pytest.fixture
def real_weights(vllm_python: str, tmp_path: Path) -> Iterator[tuple[LocalCluster, Server, str]]:
    model = os.environ.get("ASTROLABE_SMOLLM2", "")
    if not model:
        pytest.skip("ASTROLABE_SMOLLM2 names no folder with the small model")
    two = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        two.append(servers.real_server(vllm_python, Path(model), tmp_path / name, extra=["--block-size", "32"]).start())
    try:
        for server in two:
            server.wait_ready()
        with before(two, tmp_path, tokenizer=model) as cluster:
            yield cluster, two[0], model
    finally:
        for server in two:
            server.stop()


@pytest.mark.timeout(3600)
def test_a_hundred_moves_change_no_word(
    real_weights: tuple[LocalCluster, Server, str], pytestconfig: pytest.Config
) -> None:
    cluster, server, model = real_weights
    seed = random.SystemRandom().randrange(1 << 30)
    done: list[list[pb.MoveInfo]] = []
    with cluster.stub() as stub:
        while sum(map(len, done)) < 100:
            prompts = [
                f"Chapter {len(done) + i}. {STORY} The story of {subject}:" for i, subject in enumerate(SUBJECTS)
            ]
            done += moved_answers(stub, server, model, prompts, seed + len(done), tokens=160)
    pytestconfig.stash[REPORT] = report(done)


READ_SOURCE = """
import json, sys
from vllm.v1.kv_offload.tiering.p2p.manager import _parse_source
source = _parse_source(json.load(sys.stdin))
print(json.dumps([source.kv_request_id, source.peer_id, source.do_probe]))
"""


def test_vllm_reads_where_a_stage_has_its_kv(vllm_python: str) -> None:
    address = "10.0.0.11:5710"
    asked = side_channel(EngineRequest(request_id="r~2", prompt_token_ids=(1,), max_tokens=1, kv_source=address))
    read = subprocess.run(
        [vllm_python, "-W", "ignore", "-c", READ_SOURCE],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert read.returncode == 0, read.stderr
    name, found, probes = json.loads(read.stdout.splitlines()[-1])
    assert (name, found, probes) == (asked["remote_kv_source"]["kv_request_id"], address, True)


@pytest.fixture
def connected(
    vllm_python: str, tiny_model: Path, tmp_path: Path
) -> Iterator[tuple[LocalCluster, tuple[servers.Server, servers.Server]]]:
    """Two servers whose NIXL connectors fetch KV from each other, with a gateway that has stages fetch."""
    connector = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_both", "kv_buffer_device": "cpu"})
    two = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        port = str(servers.free_port())
        side = {"VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1", "VLLM_NIXL_SIDE_CHANNEL_PORT": port}
        extra = ["--block-size", "32", "--kv-transfer-config", connector]
        two.append(servers.real_server(vllm_python, tiny_model, tmp_path / name, extra=extra, environ=side).start())
    settings = tmp_path / "gateway.toml"
    settings.write_text("[router.moves.transfer]\n")
    try:
        for server in two:
            server.wait_ready()
        sources = [{"engine_kv_source": server.url} for server in two]
        with before(two, tmp_path, per_node=sources, gateway={"config": settings}) as cluster:
            yield cluster, (two[0], two[1])
    finally:
        for server in two:
            server.stop()


def test_kv_is_fetched_and_not_computed(
    connected: tuple[LocalCluster, tuple[Server, Server]], tiny_model: Path, pytestconfig: pytest.Config
) -> None:
    cluster, two = connected
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    prompts = [[rng.randrange(256) for _ in range(rng.randrange(200, 500))] for _ in range(AT_ONCE)]
    for server in two:
        greedy(server, str(tiny_model), prompts[0][:100], {})
    with cluster.stub() as stub:
        done = moved_answers(stub, two[0], str(tiny_model), prompts, seed, tokens=200)
        nodes = stub.ListNodes(pb.ListNodesRequest(), timeout=10.0).nodes
    assert sum(map(len, done)) >= len(prompts), f"seed {seed}: {done}"
    fetched_tokens = sum(server.metric("vllm:external_prefix_cache_hits_total") for server in two)
    # A first move takes nearly all of a prompt along.
    first_tokens = sum(moves[0].tokens for moves in done if moves)
    assert fetched_tokens >= 0.5 * first_tokens, f"seed {seed}: {fetched_tokens} of {first_tokens}"
    assert all(node.load.trusted for node in nodes), nodes
    pytestconfig.stash[REPORT] = f"KV of {fetched_tokens:.0f} tokens fetched; {report(done)}"
