"""Learns how drafts fare on an engine that decodes speculatively, from its trace: how many a request has in a step, how
many of them are right. Pure.
"""

from __future__ import annotations

from simcore.drafts import DraftOdds
from simcore.trace import TraceDelta

KEPT_STEPS = 4096.0
"""Steps of requests that count; when there are so many all count half."""


class DraftLearner:
    """Counts. Begins with all numbers of right drafts equally likely."""

    def __init__(self, num_speculative_tokens: int, *, always_all: bool) -> None:
        """`always_all`: the engine plans ahead, with all drafts that there can be."""
        self._most = num_speculative_tokens
        self._always_all = always_all
        first = DraftOdds.unknown(num_speculative_tokens)
        self._counts = {(drafts, right): weight for drafts, right, weight in first.lines}

    def add(self, delta: TraceDelta) -> None:
        """One step more. Of those that end with it some of what was right does not show, and who was admitted in it
        had no drafts of its own."""
        ended = set(delta.finished)
        for entry in delta.scheduled:
            if entry.produced == 0 or entry.tokens != entry.produced or entry.cached_tokens:
                continue
            if entry.request_id in ended or (self._always_all and entry.drafts < self._most):
                continue
            drafts = min(entry.drafts, self._most)
            line = drafts, min(entry.produced - 1, drafts)
            self._counts[line] = self._counts.get(line, 0.0) + 1.0
        if sum(self._counts.values()) > KEPT_STEPS:
            self._counts = {line: 0.5 * count for line, count in self._counts.items()}

    @property
    def odds(self) -> DraftOdds:
        return DraftOdds(tuple((*line, count) for line, count in sorted(self._counts.items())))
