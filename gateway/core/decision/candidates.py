"""Which nodes a decision is about: filter, sample, who could start it by load, top-k. Pure.

A question costs the gateway a message each way and the node a simulation; a look at the last note costs a microsecond.
So the cost of a decision with forecasts stays that of `ask` questions however many nodes there are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.core.decision.admission import can_start_by_load, has_room_for_prompt
from gateway.core.decision.policies.base import Policy
from gateway.core.events import RequestShape
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import NodePool
from gateway.core.nodes.view import NodeView
from gateway.core.request.live import LiveRequest
from gateway.core.request.verdict import Refusal, Wait
from gateway.core.router_config import RouterConfig
from simcore.types import Outcome

HANDED_ON = frozenset({"pass_through", "by_proxy"})
"""Lanes in which the engine gets the client's own call, of which the size may be an estimate."""

SAMPLE_OF = {"power_of_two": 2}
"""Nodes drawn for a policy where the configuration says nothing; all others look at all nodes."""


def eligible(pool: NodePool, live: LiveRequest, now_s: float) -> Sequence[Node] | Refusal:
    """Ready nodes that can hold the request and have not failed it, or why nobody will ever, or can now, take it.

    Nodes where the whole answer fits come before nodes that would cut it short, and among each of the two those in
    good health before the others. Of a call that is handed on the size may be an estimate, so where it fits nobody all
    may have it, and its engine says whether it is too long.
    """
    shape, tried = live.shape, live.tried
    handed_on = shape.lane in HANDED_ON
    serving = pool.serving(shape.model, shape.lane)
    if isinstance(serving, str):
        return Refusal(Outcome.INVALID if pool.nodes else Outcome.NO_NODE, serving)
    if shape.prompt_tokens < 1:
        return Refusal(Outcome.INVALID, f"prompt_tokens is {shape.prompt_tokens}; send at least one token")
    if shape.max_output_tokens < 1:
        return Refusal(Outcome.INVALID, f"max_tokens is {shape.max_output_tokens}; ask for at least one output token")
    if shape.prompt_tokens + 1 > serving.longest_tokens and not handed_on:
        return Refusal(
            Outcome.INVALID,
            f"a prompt of {shape.prompt_tokens} tokens and one of output exceed the limit of "
            f"{serving.longest_tokens} tokens per request; shorten the prompt",
        )
    nodes = serving.ready
    if not nodes:
        return Refusal(Outcome.NO_NODE, f"no node can take new requests now: {serving.states()}")
    if shape.lane == "by_proxy":
        nodes = [node for node in nodes if _is_within_reach(node, shape)]
        if not nodes:
            return Refusal(Outcome.NO_NODE, _why_out_of_reach(shape))
    elif handed_on:
        nodes = [node for node in nodes if node.config.forwards and shape.node in ("", node.node_id)]
        if not nodes:
            who = f"node {shape.node}" if shape.node else "a node that hands calls on as they are"
            return Refusal(Outcome.NO_NODE, f"the request needs {who}, and none is up; look at `astrolabe nodes`")
    elif serving.some_pool:
        nodes = [node for node in nodes if not node.config.pools]
        if not nodes:
            return Refusal(
                Outcome.INVALID, f"model {shape.model[:100]!r} gives no text; ask for embeddings, scores or classes"
            )
    if shape.node and not handed_on:
        nodes = [node for node in nodes if node.node_id == shape.node]
        if not nodes:
            return Refusal(Outcome.NO_NODE, f"the request needs node {shape.node}, which takes nothing new")
    if shape.logprobs:
        nodes = [node for node in nodes if node.config.tells_logprobs]
        if not nodes:
            return Refusal(Outcome.NO_NODE, "the request needs a node that tells logprobs, and none is up")
    whole_tokens = shape.prompt_tokens + shape.max_output_tokens
    if whole_tokens > serving.shortest_ready_tokens:
        nodes = (
            [node for node in nodes if node.longest_tokens >= whole_tokens]
            or [node for node in nodes if node.longest_tokens > shape.prompt_tokens]
            or (nodes if handed_on else [])
        )
    if tried:
        nodes = [node for node in nodes if tried.get(node.node_id) != node.session]
    if not nodes:
        why = f"no ready node is left that takes {shape.prompt_tokens} prompt tokens and has not failed the request"
        return Refusal(Outcome.NO_NODE, why)
    return pool.best_standing(nodes, now_s)


def _is_within_reach(node: Node, shape: RequestShape) -> bool:
    """Whether a proxy may take the request to the node's engine."""
    address = node.config.address
    is_allowed = shape.endpoints is None or address in shape.endpoints
    return bool(address) and is_allowed and shape.node in ("", node.node_id)


def _why_out_of_reach(shape: RequestShape) -> str:
    if shape.endpoints is not None:
        return f"none of the {len(shape.endpoints)} endpoints that the proxy allows is the engine of a node that is up"
    who = f"node {shape.node}" if shape.node else "a node whose engine proxies can reach (engine-address)"
    return f"the request needs {who}, and none is up; look at `astrolabe nodes`"


def awaited(pool: NodePool, live: LiveRequest, refusal: Refusal, now_s: float) -> Wait | Refusal | None:
    """What becomes of a request that no node takes now where one that would can be had: it waits for that one, however
    long, unless it does not fit there either. None: there is none, the refusal holds.
    """
    shape = live.shape
    coming = pool.expected(shape.model)
    if coming is None or shape.node or shape.prompt_tokens < 1 or shape.max_output_tokens < 1:
        return None
    serving = pool.serving(shape.model, shape.lane)
    if not isinstance(serving, str) and (serving.ready or refusal.outcome is not Outcome.NO_NODE):
        return None
    longest_tokens = coming.config.longest_tokens
    if shape.prompt_tokens + 1 > longest_tokens and shape.lane not in HANDED_ON:
        return Refusal(
            Outcome.INVALID,
            f"a prompt of {shape.prompt_tokens} tokens and one of output exceed the limit of {longest_tokens} tokens "
            "per request; shorten the prompt",
        )
    return Wait(pool.expected_in_s(shape.model, now_s))


def worth_comparing(
    nodes: Sequence[Node],
    live: LiveRequest,
    pool: NodePool,
    now_s: float,
    *,
    startable_only: bool,
    policy: Policy,
    prefilter: Policy,
    config: RouterConfig,
    rng: random.Random,
) -> Sequence[NodeView]:
    """Those of the eligible `nodes` that `policy` is to price, or to ask for forecasts first.

    A sample, if configuration or policy say so. With `startable_only` none unless one could start the request now by
    its load; of a policy that asks for no forecasts, then, only those. Of a policy that asks, the `ask` nodes that cost
    least by the policy `prefilter`, equals in random order; nodes that it cannot price, because nothing is known of
    them, come after all others, fewest requests of ours first.
    """
    shape = live.shape
    k = config.sample or SAMPLE_OF.get(policy.name, 0)
    if policy.needs_forecasts and config.ask and not k:
        k = config.look
    if 0 < k < len(nodes):
        nodes = rng.sample(nodes, k)
    views = pool.views(nodes, shape, now_s)
    if startable_only:
        if policy.needs_forecasts:
            views = views if any(has_room_for_prompt(view, shape) for view in views) else []
        else:
            views = [view for view in views if can_start_by_load(view, shape)]
    if not policy.needs_forecasts or not 0 < config.ask < len(views):
        return views
    costs = prefilter.costs(shape, views, {})
    keys = [
        (cost is None, view.in_flight if cost is None else cost, rng.random(), i)
        for i, (view, cost) in enumerate(zip(views, costs, strict=True))
    ]
    keys.sort()
    return [views[key[3]] for key in keys[: config.ask]]
