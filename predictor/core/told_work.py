"""What gateways say that they are going to send here. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from simcore.types import ExpectedWork

STALE_S = 10.0
"""A gateway that has said nothing for so long is left out: it has gone, or sends nothing any more."""
MOST_REQUESTS_PER_S = 1e4
MOST_TOKENS_PER_S = 1e7
MOST_TOKENS2_PER_S = 1e13
"""No engine has more; what is said beyond counts as this."""


class ToldWork:
    """The sum over all gateways. Not thread-safe; one owner. Times must not run backwards."""

    def __init__(self) -> None:
        self._told: dict[Hashable, tuple[float, ExpectedWork]] = {}
        self._sum: ExpectedWork | None = None
        self._holds_until_s = 0.0

    def hear(self, gateway: Hashable, work: ExpectedWork, now_s: float) -> None:
        """One gateway's word; its last one is forgotten."""
        self._told[gateway] = (now_s, work)
        self._add_up(now_s)

    def forget(self, gateway: Hashable, now_s: float) -> None:
        """A gateway has gone. Unknown ones are no error."""
        if self._told.pop(gateway, None) is not None:
            self._add_up(now_s)

    def at(self, now_s: float) -> ExpectedWork | None:
        """What comes from all that have spoken lately, the same object until that changes; None: nobody has."""
        if self._sum is not None and now_s > self._holds_until_s:
            self._add_up(now_s)
        return self._sum

    def _add_up(self, now_s: float) -> None:
        for gateway in [gateway for gateway, (at_s, _) in self._told.items() if now_s > at_s + STALE_S]:
            del self._told[gateway]
        if not self._told:
            self._sum = None
            return
        self._holds_until_s = min(at_s for at_s, _ in self._told.values()) + STALE_S
        works = [work for _, work in self._told.values()]
        self._sum = ExpectedWork(
            requests_per_s=min(sum(work.requests_per_s for work in works), MOST_REQUESTS_PER_S),
            new_tokens_per_s=min(sum(work.new_tokens_per_s for work in works), MOST_TOKENS_PER_S),
            new_tokens2_per_s=min(sum(work.new_tokens2_per_s for work in works), MOST_TOKENS2_PER_S),
        )
