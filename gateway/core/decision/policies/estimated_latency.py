"""What `min_total_latency` would find, guessed in a microsecond from what nodes tell of themselves; nobody is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from gateway.core.decision.class_weights import ClassWeights, Weights
from gateway.core.decision.later_cost import LATER_WAITS_PER_WAIT, end_s_per_token, later_waits, left_tokens
from gateway.core.decision.policies.accounts import KeepsPrefillAccount
from gateway.core.decision.policies.base import NodeView
from gateway.core.events import RequestShape
from gateway.core.nodes.pace import Pace
from gateway.core.priority import PriorityConfig
from simcore.types import Forecast, NodeLoad

OWN_AND_LATER = 1.0 + LATER_WAITS_PER_WAIT


class Outlook(msgspec.Struct, frozen=True, gc=False):
    """What the cost of a request at one node depends on, until the node's load changes."""

    load: NodeLoad
    pace: Pace
    wait_s: float
    """Until its prompt's turn comes."""
    base_s: float
    """What any request pays."""
    ahead_s_per_token: float
    """Of that, for each token of a prompt ahead."""
    room_s_per_token: float
    """What it pays besides for each token of its answer: for the time that it takes room from later ones."""
    step_s: float
    """Of the batch with one more: a token of the answer."""
    kept_waiting: float
    """Requests, with weights, that wait while the prompt is computed: the request itself, those there, later ones."""
    batch: int
    left_tokens: float
    """Of the answer of a request there, in the mean."""
    rise_s: float
    block_tokens: int
    free_blocks: int
    """Less what the prompts waiting there need."""
    freed_blocks_per_s: float


class EstimatedLatency(KeepsPrefillAccount):
    """cost = (1 + u / (1 - u)) * wait + prompt and answer at the pace of the batch that it joins
    + what that takes from those there + what it takes from those to come.

    All in seconds, from the node's pace and load note: wait = the step under way + prompts ahead + the seats or KV
    blocks that are lacking at the pace at which they come free; the prompt counts less what is cached; each of n there
    is delayed by the prompt and, for as long as both run, by what one sequence more adds to a step. Terms for later
    ones as in `min_total_latency`, of which it is the shortlist: it is blind to nothing that the forecast sees, but
    takes everybody there for alike.
    """

    name: ClassVar[str] = "estimated_latency"
    cost_unit: ClassVar[str] = "s"
    needs_forecasts: ClassVar[bool] = False

    def __init__(self, priority: PriorityConfig | None = None) -> None:
        # Of prompts ahead a load note cannot say what they will find cached.
        super().__init__(cached=True)
        self.classes = ClassWeights(priority or PriorityConfig())
        self._outlooks: dict[str, Outlook] = {}

    def costs(
        self, request: RequestShape, nodes: Sequence[NodeView], forecasts: Mapping[str, Forecast]
    ) -> Sequence[float | None]:
        return self.weighted(request, nodes, self.classes.weigh(request, nodes))

    def placed(self, request: RequestShape, node: NodeView) -> None:
        super().placed(request, node)
        self.classes.placed(request)

    def weighted(
        self, request: RequestShape, nodes: Sequence[NodeView], weights: Sequence[Weights] | None
    ) -> Sequence[float | None]:
        """The costs, with what each second counts for at each node; None: all alike."""
        prompt_tokens, answer_tokens = request.prompt_tokens, request.expected_tokens
        held_tokens = prompt_tokens + 0.5 * answer_tokens
        ahead, found = self.under_way.nodes, list[float | None]()
        for i, view in enumerate(nodes):
            outlook = self.outlook(view)
            if outlook is None:
                found.append(None)
                continue
            load, pace = outlook.load, outlook.pace
            cached_tokens = view.cached_tokens
            if cached_tokens >= prompt_tokens:
                cached_tokens = prompt_tokens - 1
            new_tokens = prompt_tokens - cached_tokens
            prefill_s = new_tokens * (
                pace.prefill_s_per_token + pace.prefill_s_per_token2 * (cached_tokens + 0.5 * new_tokens)
            )
            read_s = pace.kv_s_per_token * held_tokens
            both_tokens = outlook.left_tokens if outlook.left_tokens < answer_tokens else answer_tokens
            cost = (
                outlook.base_s
                + outlook.kept_waiting * prefill_s
                + answer_tokens * (outlook.step_s + outlook.room_s_per_token + read_s)
                + outlook.batch * both_tokens * (outlook.rise_s + read_s)
            )
            wait_s = outlook.wait_s
            if view.node_id in ahead:
                ahead_tokens = min(ahead[view.node_id], load.prefill_tokens)
                cost -= outlook.ahead_s_per_token * ahead_tokens
                wait_s -= pace.prefill_s_per_token * ahead_tokens
            # `EngineConfig.blocks_for`, without its call.
            lacking = (prompt_tokens + answer_tokens) / outlook.block_tokens - outlook.free_blocks
            if lacking > 0:
                cost += OWN_AND_LATER * lacking / outlook.freed_blocks_per_s
                wait_s += lacking / outlook.freed_blocks_per_s
            if weights is not None:
                own, there, later = weights[i]
                own_s = wait_s + prefill_s + answer_tokens * (outlook.step_s + read_s)
                harm_s = outlook.batch * (prefill_s + both_tokens * (outlook.rise_s + read_s))
                cost = own * own_s + there * harm_s + later * (cost - own_s - harm_s)
            found.append(cost)
        return found

    def outlook(self, view: NodeView) -> Outlook | None:
        """Of one node; None where its load or its pace is not known."""
        load, pace = view.load, view.pace
        if load is None or pace is None:
            return None
        outlook = self._outlooks.get(view.node_id)
        if outlook is None or outlook.load is not load or outlook.pace is not pace:
            outlook = self._outlooks[view.node_id] = _outlook(view, load, pace)
        return outlook


def _outlook(view: NodeView, load: NodeLoad, pace: Pace) -> Outlook:
    here, seats = load.running + load.waiting, pace.seats
    batch = min(here, seats)
    held_blocks = load.total_blocks - load.free_blocks
    read_s = pace.kv_s_per_token * held_blocks * view.config.tokens_per_block
    step_s = pace.step_s[min(batch + 1, seats)] + read_s
    answers_tokens, answer_s = left_tokens(load), end_s_per_token(view, load, pace)
    prompts_s = load.prefill_tokens * pace.prefill_s_per_token
    ends_s = (answers_tokens * answer_s + prompts_s) / here if here else 0.0
    wait_s = prompts_s + max(0, here + 1 - seats) * ends_s
    if here:
        # The step under way, of which half is over in the mean.
        wait_s += 0.5 * step_s
    waits = later_waits(view, load, pace) / (here + 1)
    return Outlook(
        load=load,
        pace=pace,
        wait_s=wait_s,
        base_s=OWN_AND_LATER * wait_s + waits * (answers_tokens * answer_s + prompts_s),
        ahead_s_per_token=(OWN_AND_LATER + waits) * pace.prefill_s_per_token,
        room_s_per_token=waits * answer_s,
        step_s=step_s,
        kept_waiting=OWN_AND_LATER + batch + waits,
        batch=batch,
        left_tokens=answers_tokens / here if here else 0.0,
        rise_s=pace.rise_s[batch],
        block_tokens=view.config.block_size_tokens,
        free_blocks=load.free_blocks - load.waiting_prompt_blocks,
        freed_blocks_per_s=max(1, held_blocks) / batch / ends_s if ends_s else float("inf"),
    )
