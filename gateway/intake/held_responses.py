"""Which node holds which response of the Responses API: engines keep them in their own memory."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gateway.core.outcomes import Denial
from gateway.intake.call_facts import CallFacts
from gateway.intake.callers import Caller
from gateway.intake.client_call import SOMEBODY_FAILED, ClientCall
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from gateway.intake.submission import Intake
from gateway.nodes.registry import NodeRegistry

MOST_REMEMBERED = 50_000
_SNIFFED_BYTES = 4096
_ID = re.compile(rb'"id"\s*:\s*"(resp_[^"]{1,200})"')


class HeldResponses:
    """Remembers the latest responses by their ids, as they are seen in the first bytes of answers."""

    def __init__(self, intake: Intake, nodes: NodeRegistry) -> None:
        self._intake = intake
        self._nodes = nodes
        self._holders: OrderedDict[str, str] = OrderedDict()

    def heard(self, stream: ClientStream, data: bytes) -> None:
        """The first bytes of an answer, which name it."""
        found = _ID.search(data[:_SNIFFED_BYTES])
        if found is not None:
            self._holders[found[1].decode("latin-1")] = stream.node_id
            if len(self._holders) > MOST_REMEMBERED:
                self._holders.popitem(last=False)

    def holder(self, response: str) -> str:
        """The live node that holds it; empty when none is known."""
        node = self._holders.get(response, "") if response else ""
        if node:
            self._holders.move_to_end(response)
        return node if node in self._nodes.forwarding() else ""

    async def search(
        self, call: ClientCall, facts: CallFacts, caller: Caller, trying: Callable[[ClientStream], None]
    ) -> ClientStream:
        """Asks one node after the other until one neither fails nor says 404; its stream, or the last one's. `trying`
        is told of each: whoever closes it, because the client has left, ends the search. Raises Denied."""
        nodes = self._nodes.forwarding()
        for position, node in enumerate(nodes):
            # Each gets a call of its own: what was sent is emptied.
            stream = await self._intake.forward(msgspec.structs.replace(call), facts, caller, node=node)
            trying(stream)
            if position == len(nodes) - 1 or not await self._is_unknown(stream) or stream.closed:
                return stream
            self._intake.close(stream)
        raise Denied(Denial.UNKNOWN, "no node that hands calls on is up")

    async def _is_unknown(self, stream: ClientStream) -> bool:
        answer = stream.answer
        assert answer is not None, "it was handed on"
        try:
            while stream.outcome is None:
                await stream.changed()
                if answer.head is not None and answer.head.status != 404:
                    return False
                answer.take()
        except BaseException:
            self._intake.close(stream)
            raise
        if answer.head is None:
            return stream.outcome in SOMEBODY_FAILED
        return answer.head.status == 404
