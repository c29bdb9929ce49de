"""The gateway's own beliefs about answer lengths: who believes what, what is learnt, and the way back into a model."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
from collections.abc import AsyncIterator
from importlib import resources
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner

from deploy.cli import LENGTH
from deploy.commands.explain import explain
from gateway.core.recording import replay
from length_model.core.belief import DEFAULT_PRIOR, truncated
from length_model.core.query import make_query
from length_model.models import load_model
from length_model.sample_files import read_samples
from protos import codec
from protos.runtime.config import ConfigError
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import LengthBelief, Outcome
from tests.e2e.cluster import MakeCluster, is_idle, until
from tests.e2e.in_process import dispatched, part, running
from tests.e2e.in_process import until as eventually
from tests.e2e.scripted_node import ScriptedNode

pytestmark = pytest.mark.e2e


@contextlib.asynccontextmanager
async def scripted() -> AsyncIterator[ScriptedNode]:
    node = ScriptedNode("n")
    await node.start()
    try:
        yield node
    finally:
        await node.stop()


LIMIT = types_pb.SamplingParams(max_tokens=1000)


async def test_a_request_goes_with_the_models_belief_and_its_end_is_learnt_from() -> None:
    async with scripted() as node, running(node.address, lengths="hashed") as (gateway, stub):
        await eventually(lambda: gateway.nodes.any_up)
        call = stub.Generate(pb.GenerateRequest(text="Write an essay about rain", sampling=LIMIT, request_id="r"))
        await dispatched(node)
        told = await stub.Explain(pb.ExplainRequest(request_id="r"))
        assert told.belief_source == "hashed"
        (alone,) = [b for b in [codec.belief_from_wire(told.belief)] if b is not None]
        assert len(alone.atoms_tokens) == 20
        assert alone.atoms_tokens[-1] <= 1000
        node.say(part("r", b"abc", Outcome.STOP))
        async for _ in call:
            pass
        await eventually(lambda: gateway.lengths.counters.observed == 1)
        assert gateway.lengths.counters.observed_censored == 0
        # A client that knows better is believed, and teaches nothing.
        said = types_pb.LengthBelief(atoms_tokens=[7])
        call = stub.Generate(pb.GenerateRequest(text="x", sampling=LIMIT, request_id="s", belief=said))
        await dispatched(node)
        told = await stub.Explain(pb.ExplainRequest(request_id="s"))
        assert (told.belief_source, list(told.belief.atoms_tokens)) == ("client: 7, as its numbers have come true", [7])
        call.cancel()
        await eventually(lambda: not gateway.pump.streams)
        assert gateway.lengths.counters.observed == 1


async def test_without_a_model_the_prior_holds() -> None:
    async with scripted() as node, running(node.address, lengths="none") as (gateway, stub):
        await eventually(lambda: gateway.nodes.any_up)
        call = stub.Generate(pb.GenerateRequest(text="hello", sampling=LIMIT, request_id="r"))
        await dispatched(node)
        told = await stub.Explain(pb.ExplainRequest(request_id="r"))
        assert told.belief_source == "prior"
        assert LengthBelief(tuple(told.belief.atoms_tokens)) == truncated(DEFAULT_PRIOR, 1000)
        call.cancel()
        await eventually(lambda: not gateway.pump.streams)


async def test_odd_prompts_cost_nobody_else_anything() -> None:
    async with scripted() as node, running(node.address, lengths="hashed") as (gateway, stub):
        await eventually(lambda: gateway.nodes.any_up)
        for text in ("", "x" * 1_000_000):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in stub.Generate(pb.GenerateRequest(text=text, sampling=LIMIT)):
                    pass
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        odd = [
            pb.GenerateRequest(text="\x00\x01\ufffd" * 500),
            pb.GenerateRequest(token_ids=pb.TokenIds(ids=[0, 255, 128])),
        ]
        for i, request in enumerate(odd):
            request.request_id = f"odd-{i}"
            request.sampling.CopyFrom(LIMIT)
            call = stub.Generate(request)
            await dispatched(node)
            told = await stub.Explain(pb.ExplainRequest(request_id=request.request_id))
            assert told.belief_source == "hashed"
            node.say(part(request.request_id, b"abc", Outcome.STOP))
            async for _ in call:
                pass
        assert gateway.lengths.counters.failed == 0


@pytest.mark.parametrize("name", ["hashd", "/no/such/file.alm", "damaged"])
async def test_a_model_that_cannot_be_used_stops_the_start_with_one_line(name: str, tmp_path: Path) -> None:
    if name == "damaged":
        data = bytearray((resources.files("length_model") / "shipped" / "histogram.alm").read_bytes())
        data[-1] ^= 1
        path = tmp_path / "damaged.alm"
        path.write_bytes(data)
        name = str(path)
    with pytest.raises(ConfigError, match=r"key 'model' in \[lengths\]") as caught:
        async with running(lengths=name):
            pass
    assert "\n" not in str(caught.value)


def test_what_a_gateway_recorded_trains_the_model_of_the_next(make_cluster: MakeCluster, tmp_path: Path) -> None:
    log = tmp_path / "decisions.jsonl"
    cluster = make_cluster(nodes=2, predictor={"time_scale": 400.0}, gateway={"record": log})
    limits = [30, 2000]
    with cluster.stub() as stub:

        def send(i: int) -> None:
            sampling = types_pb.SamplingParams(max_tokens=limits[i % 2])
            for _ in stub.Generate(pb.GenerateRequest(text=f"question {i}", sampling=sampling), timeout=40):
                pass

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(send, range(60)))
        request_id = next(stub.Generate(pb.GenerateRequest(text="hi", sampling=LIMIT), timeout=40)).request_id
        until(lambda: is_idle(stub), what="everything at rest")
        told = CliRunner().invoke(explain, [request_id, "--gateway", cluster.address])
        assert "believed of the answer's length: p50" in told.output
        assert "(hashed)" in told.output
    cluster.stop()
    assert replay(log.read_bytes().splitlines(keepends=True)) == []

    samples, model = tmp_path / "samples.jsonl", tmp_path / "own.alm"
    run = CliRunner()
    made = run.invoke(
        LENGTH, ["sample", "--dataset", "decisions", "--dataset-path", str(log), "--output", str(samples), "--json"]
    )
    assert made.exit_code == 0, made.output
    found = read_samples(samples).samples
    cut = [s for s in found if s.censored]
    # Those that met their limit, and the one whose client left.
    assert {s.output_tokens for s in cut if s.sample_id != request_id} <= {30}
    assert len(cut) >= 20
    assert any(s.output_tokens > 30 for s in found)
    trained = run.invoke(LENGTH, ["train", "histogram", "--samples", str(samples), "--output", str(model), "--json"])
    assert trained.exit_code == 0, trained.output
    assert json.loads(trained.output)["trained_on"] >= 30
    # Cut answers count for what they show: half of all were cut at 30 tokens, yet most are believed to be longer.
    own = load_model(str(model))
    (pmf,) = own.pmf([make_query("anything")])
    assert pmf[own.edges[:-1] > 30].sum() > 0.6
    make_cluster(nodes=1, gateway={"lengths": str(model)})
