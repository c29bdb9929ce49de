"""What a scaler hears (events) and what it wants done (actions): two closed unions, as the router has them. Pure.

All records encode to JSON with their type, so a recorded run can be fed to a fresh scaler and must give equal actions.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from gateway.core.scale.fleet import SeenNode


class ScaleEvent(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Something that happened."""


class RequestCame(ScaleEvent, frozen=True, kw_only=True):
    """A client wants an answer."""

    prompt_tokens: int
    expected_tokens: float
    """Output tokens expected."""
    model: str = ""


class RequestPlaced(ScaleEvent, frozen=True, kw_only=True):
    """A request was sent to a node."""

    node_id: str
    waited_s: float
    """Since it came."""
    ttft_s: float | None = None
    """Forecast median from now on; None where nobody forecast it."""
    e2e_s: float | None = None
    tpot_s: float | None = None
    model: str = ""


class RequestDone(ScaleEvent, frozen=True, kw_only=True):
    """A whole answer has come from a node."""

    node_id: str
    prompt_tokens: int
    cached_tokens: int = 0
    """Of the prompt, those that needed no computing."""
    output_tokens: int
    waited_s: float
    """From its arrival to the node that answered it."""
    ttft_s: float | None
    """From its arrival; None where nobody saw the first token."""
    e2e_s: float
    """From its arrival."""
    model: str = ""

    @property
    def tpot_s(self) -> float | None:
        """Time per token after the first."""
        if self.ttft_s is None or self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)


class FleetSeen(ScaleEvent, frozen=True, kw_only=True):
    """A tick: the nodes as the gateway knows them now."""

    nodes: tuple[SeenNode, ...]
    elsewhere: tuple[str, ...] = ()
    """Nodes that other gateways have; one of them that is down here is not given up."""
    held: int = 0
    held_prompt_tokens: int = 0
    held_expected_tokens: float = 0.0
    oldest_held_s: float = 0.0
    waiting_models: tuple[str, ...] = ()
    """Models for which requests are held although no node takes any."""


class ListedNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that a connector says there is."""

    node_id: str
    group: str
    detail: str = ""
    """What is wrong with it; empty: it starts or serves."""
    asked_as: str = ""
    """The name by which its start was asked for, where that is another than its own."""


class NodesListed(ScaleEvent, frozen=True, kw_only=True):
    """What a connector says there is, whole: what is not in it does not run."""

    nodes: tuple[ListedNode, ...]


class ListFailed(ScaleEvent, frozen=True, kw_only=True):
    """A connector cannot say what there is: nothing is started or stopped until it can."""

    detail: str


class StartFailed(ScaleEvent, frozen=True, kw_only=True):
    """A node could not be started, or a connector does not know whether it was (then a list will tell)."""

    node_id: str
    detail: str


class StopFailed(ScaleEvent, frozen=True, kw_only=True):
    """A node could not be stopped; it is tried again."""

    node_id: str
    detail: str


class LeadershipSet(ScaleEvent, frozen=True, kw_only=True):
    """Whether this gateway decides. One that does not hears and learns, and wants nothing done."""

    leads: bool
    alone: bool = True
    """There is no other gateway that could use nodes which this one does not reach."""


class RuleReadySet(ScaleEvent, frozen=True, kw_only=True):
    """Whether the rule can be asked: not before its code is compiled."""

    ready: bool


AnyScaleEvent = (
    RequestCame
    | RequestPlaced
    | RequestDone
    | FleetSeen
    | NodesListed
    | ListFailed
    | StartFailed
    | StopFailed
    | LeadershipSet
    | RuleReadySet
)


class ScaleAction(msgspec.Struct, frozen=True, kw_only=True, tag=True, gc=False):
    """Something that the shell must do."""


class StartNode(ScaleAction, frozen=True, kw_only=True):
    """Start a node of this name; to ask again for one that starts or serves changes nothing."""

    node_id: str
    group: str


class StopNode(ScaleAction, frozen=True, kw_only=True):
    """Stop a node on which nothing runs, or one that never came up."""

    node_id: str
    group: str
    why: Literal["left", "given_up", "not_wanted"] = "left"
    """`left`: it has finished what it had; `given_up`: it did not come up; `not_wanted`: it need not come up."""


class RetireNode(ScaleAction, frozen=True, kw_only=True):
    """The node gets nothing new, from any gateway, and says when it is empty. `undo`: it serves again."""

    node_id: str
    undo: bool = False


AnyScaleAction = StartNode | StopNode | RetireNode


def action_words(action: AnyScaleAction) -> str:
    """An action for people."""
    match action:
        case StartNode():
            return f"start {action.node_id}"
        case StopNode():
            return f"stop {action.node_id} ({action.why.replace('_', ' ')})"
        case RetireNode():
            return f"{'take back' if action.undo else 'retire'} {action.node_id}"
