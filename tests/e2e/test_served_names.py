"""Names that an engine begins and ceases to serve: from its own list to a client of the gateway."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from deploy.local_cluster import LocalCluster
from gateway.core import events as ev
from protos import codec
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from simcore.types import Outcome
from tests.e2e.cluster import MakeCluster, listed, until
from tests.e2e.forwarding_node import ForwardingNode
from tests.e2e.in_process import dispatched, part
from tests.e2e.in_process import until as until_here
from tests.e2e.scripted_node import ScriptedNode, load
from tests.e2e.test_pass_through import before, tools_call

pytestmark = pytest.mark.e2e

CHAT = "/v1/chat/completions"
MODEL = "llama-2-7b"


def renames(node: ScriptedNode, model: str, *others: str) -> None:
    node.say(predict_pb.NodeFrame(served=predict_pb.ServedNames(model=model, other_names=others)))


def test_an_adapter_that_is_loaded_later_is_served_until_it_is_unloaded(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=2, predictor={"engine_models_every_s": 0.1}, gateway={"policy": "least_requests"})
    with openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0) as client:

        def served() -> list[str]:
            return [model.id for model in client.models.list()]

        def adapter(what: str, node: str, **body: Any) -> None:
            client.post(
                f"/{what}_lora_adapter", cast_to=str, body=body, options={"headers": {"x-astrolabe-node": node}}
            )

        assert served() == [MODEL]
        with pytest.raises(openai.NotFoundError, match="no node serves model 'sql'"):
            client.completions.create(model="sql", prompt="x", max_tokens=5)
        for node in ("node-0", "node-1"):
            adapter("load", node, lora_name="sql", lora_path="/adapters/sql")
        until(lambda: "sql" in served(), what="the adapter in the gateway's list")
        by_tokens = client.completions.create(model="sql", prompt="x", max_tokens=5)
        assert (by_tokens.model, by_tokens.usage and by_tokens.usage.completion_tokens) == ("sql", 5)
        handed_on = client.completions.create(model="sql", prompt="x", max_tokens=5, logprobs=1)
        assert handed_on.model == "sql"
        # Of the two nodes one keeps it: all go there.
        adapter("unload", "node-0", lora_name="sql")
        until(lambda: _served_by(cluster, "node-0") == [MODEL], what="the adapter gone from node-0")
        for _ in range(4):
            answer = client.completions.with_raw_response.create(model="sql", prompt="x", max_tokens=2)
            assert answer.headers["x-astrolabe-node"] == "node-1"
        adapter("unload", "node-1", lora_name="sql")
        until(lambda: served() == [MODEL], what="the adapter gone")
        with pytest.raises(openai.NotFoundError, match="no node serves model 'sql'"):
            client.completions.create(model="sql", prompt="x", max_tokens=5)


def _served_by(cluster: LocalCluster, node_id: str) -> list[str]:
    with cluster.stub() as stub:
        config = listed(stub)[node_id].config
        return [config.model, *config.other_names]


async def test_the_session_and_what_runs_in_it_go_on() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, client, _):
        client.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "hi"}]}, {"x-request-id": "t"})
        assert (await dispatched(node)).dispatch_seq == 1
        renames(node, "m", "adapter")
        await until_here(lambda: "adapter" in gateway.nodes.models())
        node.say(part("t", b"yes", Outcome.STOP))
        assert (await client.reply()).json()["choices"][0]["message"]["content"] == "yes"
        client.post(CHAT, tools_call(model="adapter"))
        call = await node.call()
        node.answer(call, 200, b"{}")
        assert (await client.reply()).status == 200
        assert node.sessions == 1
        sent = [d.dispatch_seq for frame in node.frames for d in frame.dispatches]
        assert sent == [1, 2], "numbered on"


async def test_who_waits_for_a_name_that_goes_hears_so() -> None:
    node, other = ForwardingNode("n", names=("adapter",)), ForwardingNode("o")
    async with before(node, other, hold="always") as (gateway, client, _):
        for full in (node, other):
            full.say(_full(full.node_id))
        await until_here(lambda: all(n.load.waiting for n in gateway.nodes.listing().nodes))
        client.post(CHAT, tools_call(model="adapter"))
        await until_here(lambda: gateway.pump.router.queue_status().held == 1)
        renames(node, "m")
        reply = await client.reply()
        assert (reply.status, "no node serves model 'adapter'" in reply.json()["error"]["message"]) == (400, True)
        assert not node.by_id


def _full(node_id: str) -> predict_pb.NodeFrame:
    note = predict_pb.LoadNote(load=codec.load_to_wire(load(node_id, waiting=9)))
    return predict_pb.NodeFrame(load=note)


async def test_adapters_in_use_reach_the_decision_and_its_explanation() -> None:
    node, other = ForwardingNode("n", names=("adapter",)), ForwardingNode("o", names=("adapter",))
    async with before(node, other) as (gateway, client, _):
        node.say(predict_pb.NodeFrame(adapters=predict_pb.AdaptersInUse()))
        other.say(predict_pb.NodeFrame(adapters=predict_pb.AdaptersInUse(names=["adapter"])))
        nodes = gateway.pump.router._pool.nodes
        await until_here(lambda: nodes["n"].adapters is not None and bool(nodes["o"].adapters))
        for i in range(4):
            client.post(CHAT, tools_call(model="adapter"), {"x-request-id": f"r{i}"})
            other.answer(await other.call(), 200, b"{}")
            assert (await client.reply()).status == 200
            (decision,) = gateway.pump.router.explain(f"r{i}").decisions
            assert [score.node_id for score in decision.scores] == ["o", "n"]
            assert "adapter 'adapter' is in use elsewhere" in decision.scores[1].note
        other.say(predict_pb.NodeFrame(adapters=predict_pb.AdaptersInUse(unknown=True)))
        await until_here(lambda: nodes["o"].adapters is None)


async def test_a_node_that_tells_no_name_keeps_its_own() -> None:
    node = ForwardingNode("n")
    async with before(node) as (gateway, _, _):
        heard: list[ev.AnyEvent] = []
        post = gateway.pump.post

        def listen(event: ev.AnyEvent) -> None:
            heard.append(event)
            post(event)

        gateway.pump.post = listen
        renames(node, "")
        renames(node, "m", "last")
        await until_here(lambda: "last" in gateway.nodes.models())
        assert [event.names for event in heard if isinstance(event, ev.NodeServes)] == [("m", "last")]
