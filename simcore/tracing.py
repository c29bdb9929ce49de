"""A simulated node that keeps the states that its trace publishes while it runs to the next event: for load notes.

`SimNode.advance` reports events only. Here the state before each step is kept as well, until somebody reads the newest
of those published so far. The steps are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from simcore.compiled import layout as at
from simcore.compiled.entry import ENTRIES
from simcore.cost.step_time import StepTimeModel
from simcore.node import NodeEvent, SimNode, SimRequest
from simcore.types import EngineConfig, NodeLoad

NOBODY = -1
EVERYBODY = at.WATCH_ALL
_FIRST_ROWS = 64


class TracingNode(SimNode):
    """A simulated node whose states are published at multiples of `interval_s` seconds; 0: as they come about.

    With `lengths_known` tokens to come are counted by true lengths, else by what each request is expected to have
    (`add_expected`).
    """

    def __init__(
        self, node_id: str, config: EngineConfig, step_time: StepTimeModel, *, interval_s: float, lengths_known: bool
    ) -> None:
        super().__init__(node_id, config, step_time)
        self.began_s = 0.0
        """Begin of the last step."""
        self.next_published_s = math.inf
        """When the oldest state that is kept is published; inf if there is none."""
        self._interval_s = float(interval_s)
        self._expected = np.zeros(0 if lengths_known else len(self.ids), dtype=np.int64)
        self._published_s = np.zeros(_FIRST_ROWS, dtype=np.float64)
        self._states = np.zeros((_FIRST_ROWS, at.N_STATE), dtype=np.int64)
        self._first = 0
        self._end = 0

    def add_expected(self, request: SimRequest, now_s: float, output_tokens: int) -> None:
        """`add`, with the answer's length that is expected."""
        self.add(request, now_s)
        if 0 < len(self._expected) < len(self.ids):
            self._expected = np.concatenate((self._expected, np.zeros_like(self._expected)))
        if len(self._expected):
            self._expected[self.requests[request.request_id].slot] = output_tokens

    def load(self, now_s: float, expected: Mapping[str, int] | None = None) -> NodeLoad:
        """Load summary as of `SimNode`, by this node's expected lengths unless others are given."""
        if expected is None and len(self._expected):
            expected = {i: int(self._expected[known.slot]) for i, known in self.requests.items()}
        return super().load(now_s, expected)

    def run(self, until_s: float, *, keep_from_s: float, watched: int, mark: int) -> list[NodeEvent]:
        """Steps that begin before `until_s`, which must be one at least, to the end of the first that has events or
        that began the work on slot `watched`; NOBODY: of none, EVERYBODY: of any.

        The states in which steps begin are kept, those from `keep_from_s` on, with `mark`.
        """
        if self._end == len(self._published_s):
            self._make_room()
        n_log, steps, self._end, self.began_s, self.free_at_s = ENTRIES.run(
            self.head,
            self.req,
            self.lists,
            self._shared,
            self._log,
            self._packed,
            self._expected,
            self._published_s,
            self._states,
            (self._end, self.seq, mark, watched),
            (self.next_step_s, float(until_s), float(keep_from_s), self._interval_s),
        )
        self.seq += steps
        if self._first < self._end:
            self.next_published_s = self._published_s.item(self._first)
        self._arrived.clear()
        self._aborted.clear()
        events: list[NodeEvent] = []
        if n_log:
            self._collect(n_log, [self.free_at_s] * n_log, events)
        self.next_step_s = self.free_at_s if self.requests or self.has_work else math.inf
        return events

    def keep(self, state_s: float, mark: int) -> None:
        """Keeps the state as it is now; it came about at `state_s`."""
        if self._end == len(self._published_s):
            self._make_room()
        self._end = ENTRIES.keep(
            self.head,
            self.req,
            self.lists,
            self._expected,
            self._published_s,
            self._states,
            self._end,
            self.seq,
            mark,
            float(state_s),
            self._interval_s,
        )
        self.next_published_s = self._published_s.item(self._first)

    def read(self, now_s: float, delay_s: float) -> tuple[NodeLoad, int] | None:
        """The newest state published `delay_s` before `now_s` or earlier, with its age at `now_s`, and its mark.

        It and older ones are forgotten. None if there is none.
        """
        first, end, next_s, published_s = self._first, self._end, self.next_published_s, 0.0
        while first < end and next_s + delay_s <= now_s:
            first += 1
            published_s = next_s
            next_s = self._published_s.item(first) if first < end else math.inf
        if first == self._first:
            return None
        self.next_published_s = next_s
        seq, running, waiting, free, blocks, tokens, preempted, mark, prefill = self._states[first - 1].tolist()
        if first == end:
            first = self._end = 0
        self._first = first
        return NodeLoad(
            node_id=self.node_id,
            trace_seq=seq,
            state_age_s=now_s - published_s,
            running=running,
            waiting=waiting,
            free_blocks=free,
            total_blocks=self.config.num_blocks,
            waiting_prompt_blocks=blocks,
            unprocessed_tokens=tokens,
            preemptions_total=preempted,
            prefill_tokens=prefill,
        ), mark  # fmt: skip

    def _make_room(self) -> None:
        first, end = self._first, self._end
        rows = len(self._published_s) * (2 if 2 * (end - first) > end else 1)
        published_s, states = np.zeros(rows, dtype=np.float64), np.zeros((rows, at.N_STATE), dtype=np.int64)
        published_s[: end - first] = self._published_s[first:end]
        states[: end - first] = self._states[first:end]
        self._published_s, self._states, self._first, self._end = published_s, states, 0, end - first
