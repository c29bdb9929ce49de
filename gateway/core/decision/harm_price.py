"""What a second of harm to those at a node costs, and how the prompts of others slow answers down. Pure.

A forecast adds up by how much each of those there is delayed, as if a second were a second. It is worse for those who
are slow already. What all answers take, each second counted at the pace of its answer over that of the fleet (the pace
that somebody reading is found to have at a random moment), is a sum of time * time / tokens; it grows by twice the pace
for a second more. The plain sum of times is least where one kind of node gets nearly all prompts, and its few readers
all the pauses.
"""

from __future__ import annotations

from gateway.core.decision.later_cost import QUEUE_UTILISATION

LARGEST_SHARE = QUEUE_UTILISATION
"""Larger shares of a node's time count like this one: it is meant to have no more for long."""


def prompts_share(told: float) -> float:
    """The share of its time that a node says it spends on prompts, as far as it is believed; anything may be told."""
    return min(LARGEST_SHARE, max(0.0, told))


def price_of_harm(relative_pace: float) -> float:
    """What a second of harm counts for. `relative_pace`: seconds per token of those there over the fleet's mean."""
    return 2.0 * relative_pace
