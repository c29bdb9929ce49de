"""Which nodes a decision is about: filter, sample, top-k. Pure.

A question costs the gateway a message each way and the node a simulation; a look at the last note costs a microsecond.
So the cost of a decision with forecasts stays that of `ask` questions however many nodes there are.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from gateway.core.decision.policies.base import Policy
from gateway.core.decision.verdict import Refusal
from gateway.core.events import RequestShape
from gateway.core.nodes.node import Node
from gateway.core.nodes.pool import ModelNodes, NodePool
from gateway.core.nodes.view import NodeView
from gateway.core.request.live import LiveRequest
from gateway.core.router_config import RouterConfig
from simcore.types import Outcome

SAMPLE_OF = {"power_of_two": 2}
"""Nodes drawn for a policy where the configuration says nothing; all others look at all nodes."""


def eligible(pool: NodePool, live: LiveRequest, now_s: float) -> Sequence[Node] | Refusal:
    """Ready nodes that can hold the request and have not failed it, or why nobody will ever, or can now, take it.

    Nodes where the whole answer fits come before nodes that would cut it short, and among each of the two those in
    good health before the others.
    """
    shape, tried = live.shape, live.tried
    serving = pool.serving(shape.model)
    if serving is None:
        return _unknown_model(pool, shape.model)
    if shape.prompt_tokens < 1:
        return Refusal(Outcome.INVALID, f"prompt_tokens is {shape.prompt_tokens}; send at least one token")
    if shape.max_output_tokens < 1:
        return Refusal(Outcome.INVALID, f"max_tokens is {shape.max_output_tokens}; ask for at least one output token")
    if shape.prompt_tokens + 1 > serving.longest_tokens:
        return Refusal(
            Outcome.INVALID,
            f"a prompt of {shape.prompt_tokens} tokens and one of output exceed the limit of "
            f"{serving.longest_tokens} tokens per request; shorten the prompt",
        )
    nodes = serving.ready
    if not nodes:
        return Refusal(Outcome.NO_NODE, _why_none(serving))
    whole_tokens = shape.prompt_tokens + shape.max_output_tokens
    if whole_tokens > serving.shortest_ready_tokens:
        nodes = [node for node in nodes if node.longest_tokens >= whole_tokens] or [
            node for node in nodes if node.longest_tokens > shape.prompt_tokens
        ]
    if tried:
        nodes = [node for node in nodes if tried.get(node.node_id) != node.session]
    if not nodes:
        why = f"no ready node is left that takes {shape.prompt_tokens} prompt tokens and has not failed the request"
        return Refusal(Outcome.NO_NODE, why)
    return pool.best_standing(nodes, now_s)


def sample(nodes: Sequence[Node], policy: Policy, config: RouterConfig, rng: random.Random) -> Sequence[Node]:
    """The nodes drawn for this decision; all of them unless configuration or policy say otherwise."""
    k = config.sample or SAMPLE_OF.get(policy.name, 0)
    if policy.needs_forecasts and config.ask and not k:
        k = config.look
    return rng.sample(nodes, k) if 0 < k < len(nodes) else nodes


def top_k(
    by: Policy, request: RequestShape, views: Sequence[NodeView], k: int, rng: random.Random
) -> Sequence[NodeView]:
    """The `k` nodes that are worth a question: those that cost least by the policy `by`, which must need no forecasts;
    equals in random order.

    Nodes that it cannot price, because nothing is known of them, come after all others, fewest requests of ours first.
    0 or more than there are nodes: all of them.
    """
    if not 0 < k < len(views):
        return views
    costs = by.costs(request, views, {})
    keys = [
        (cost is None, view.in_flight if cost is None else cost, rng.random(), i)
        for i, (view, cost) in enumerate(zip(views, costs, strict=True))
    ]
    keys.sort()
    return [views[key[3]] for key in keys[:k]]


def _unknown_model(pool: NodePool, model: str) -> Refusal:
    if not pool.nodes:
        return Refusal(Outcome.NO_NODE, "no node has joined yet; start one or check the gateway's `nodes`")
    known = ", ".join(repr(name) for name in pool.models())
    if model:
        return Refusal(Outcome.INVALID, f"no node serves model {model!r}; served are {known}")
    return Refusal(Outcome.INVALID, f"several models are served; name one of {known}")


def _why_none(nodes: ModelNodes) -> str:
    states = ", ".join(f"{node.node_id} is {_state_of(node)}" for node in nodes.members)
    return f"no node can take new requests now: {states}"


def _state_of(node: Node) -> str:
    if node.up:
        return "draining"
    return f"down ({node.detail})" if node.detail else "down"
