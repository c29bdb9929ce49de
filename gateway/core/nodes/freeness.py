"""Llumnix' freeness of a node, with virtual usage (Sun et al., OSDI '24, section 4.3, algorithm 1). Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from simcore.types import EngineConfig, NodeLoad

REAL_LOAD_TOKENS = 1600
"""Tokens that a node with a request of high priority really holds when it counts as full, as in their artifact: a node
of theirs has 13,616."""


def has_high(classes: Mapping[int, int]) -> bool:
    """Whether requests of a class above that of everybody are there."""
    return any(request_class < 0 for request_class in classes)


def freeness(load: NodeLoad, config: EngineConfig, *, keeps_headroom: bool, leaves: bool = False) -> float:
    """(capacity - virtual usage of all requests) / requests that run, in KV blocks per request; negative where more is
    wanted than there is.

    Virtual usage of a request, by their algorithm 1:

    - queued, first in line: what it needs; queued behind it: 0. Here each counts what its prompt needs, as in the load
      of their artifact and in Block's copy: a load note does not say who is first.
    - running: what it holds + headroom of its priority / number of running requests of that priority. The headroom is
      0 for all but high ones; theirs in sum, on a node that `keeps_headroom` for them, is all but `REAL_LOAD_TOKENS`.
      Those on their way, that the engine has not seen, count as if they ran already.
    - on a node that `leaves`: infinite.
    """
    if leaves:
        return -math.inf
    free_blocks = load.free_blocks - load.waiting_prompt_blocks
    if keeps_headroom:
        free_blocks -= max(0, load.total_blocks - config.blocks_for(REAL_LOAD_TOKENS))
    return free_blocks / max(load.running + load.reserved, 1)
