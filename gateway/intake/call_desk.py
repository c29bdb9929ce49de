"""Where every front brings the calls that are to be handed on: which may be, to which node, with which headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from gateway.core.outcomes import Denial
from gateway.intake.call_facts import facts_of, said_in_headers
from gateway.intake.call_paths import ADAPTER_PATHS, CallTarget, may_be_handed_on
from gateway.intake.callers import Caller, require
from gateway.intake.client_call import ClientCall, Headers
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied, invalid
from gateway.intake.held_responses import HeldResponses
from gateway.intake.submission import Intake
from gateway.nodes.registry import NodeRegistry
from protos.runtime.http_headers import HOP_BY_HOP

_NOT_HANDED_ON = HOP_BY_HOP | {
    "host",
    "content-length",
    "expect",
    "authorization",
    "x-api-key",
    "x-request-id",
    "x-astrolabe-node",
}
"""Keys are the gateway's own; an engine that asks for one gets it from its node."""


class FrontCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call as a front has it."""

    method: str
    target: CallTarget
    headers: Mapping[str, str]
    """By lower-case name."""
    lines: Sequence[tuple[str, str]]
    """All headers in their order, names in lower case."""
    body: bytes | bytearray


class CallDesk:
    """One instance serves all fronts."""

    def __init__(self, intake: Intake, nodes: NodeRegistry) -> None:
        self._intake = intake
        self._nodes = nodes
        self._held = HeldResponses(intake, nodes)

    def takes(self, target: CallTarget) -> bool:
        """Whether some node could answer. Raises Denied for what is never handed on."""
        if not target.is_canonical:
            return False
        if target.path not in ADAPTER_PATHS and not may_be_handed_on(target.path):
            raise Denied(Denial.UNKNOWN, f"{target.path[:100]} is not for clients; ask the node itself")
        return target.path in ADAPTER_PATHS or self._intake.forwards("")

    async def admit(
        self,
        call: FrontCall,
        caller: Caller,
        *,
        trying: Callable[[ClientStream], None] = lambda _stream: None,
        instead_of: Denied | None = None,
    ) -> ClientStream:
        """Submits a call that `takes` has let pass.

        `trying` is told of each stream by which a node is asked before there is one to be read: to be closed when the
        client leaves. `instead_of`: why it is not served by tokens, which is raised if no node of its model hands calls
        on. Raises Denied.
        """
        target = call.target
        node = self._adapter_node(call, caller) if target.path in ADAPTER_PATHS else ""
        facts = facts_of(target.kind, call.headers, call.body)
        if instead_of is not None and not self._intake.forwards(facts.model):
            if self._intake.forwards(""):
                self._intake.check_model(facts.model)
            raise instead_of
        said_in_headers(call.headers, facts)
        node = node or self._held.holder(target.held_response or facts.previous_response)
        handed_on = ClientCall(
            method=call.method,
            target=target.written(),
            headers=without(call.lines, _NOT_HANDED_ON),
            body=call.body,
            body_bytes=len(call.body),
            is_light=facts.is_light,
        )
        if target.held_response and not node:
            return await self._held.search(handed_on, facts, caller, trying)
        return await self._intake.forward(handed_on, facts, caller, node=node)

    def heard(self, stream: ClientStream, data: bytes) -> None:
        """The first bytes of an answer of the Responses API."""
        self._held.heard(stream, data)

    def _adapter_node(self, call: FrontCall, caller: Caller) -> str:
        """The node that an admin names, which a lone one need not be. Raises Denied."""
        require(caller)
        names = self._nodes.forwarding()
        name = call.headers.get("x-astrolabe-node", names[0] if len(names) == 1 else "")
        if name not in names:
            raise invalid(
                f"header x-astrolabe-node must name the node whose adapters are meant, got {name[:100]!r}; "
                f"nodes that hand calls on: {', '.join(names) or 'none'}",
                param="x-astrolabe-node",
            )
        return name


def without(lines: Sequence[tuple[str, str]], names: frozenset[str]) -> Headers:
    """The headers but those of these names, and those that belong to the connection by its own word."""
    named = [value for name, value in lines if name == "connection"]
    if named:
        names = names | {name.strip().lower() for value in named for name in value.split(",")}
    return tuple(line for line in lines if line[0] not in names)
