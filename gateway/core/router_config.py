"""How a router decides: its numbers and names, each with the reason for its default. Pure data."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from gateway.core.moves.config import MovesConfig
from gateway.core.priority import PriorityConfig
from gateway.core.queue.queue import HoldConfig


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a router decides."""

    policy: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "min_total_latency"
    """Placement policy, by name; for a gateway also the path of a policy file (it is run: trust it)."""
    sample: int = 0
    """Nodes drawn at random for each request; 0: the policy's own default."""
    ask: int = 4
    """Nodes asked for a forecast per placement, those of the sample that look best by `prefilter`; 0: all."""
    prefilter: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "estimated_latency"
    """Policy that says which nodes are worth asking. Must not need forecasts."""
    look: int = 64
    """Most nodes among which the prefilter chooses, drawn at random: what keeps a decision's cost from growing with the
    fleet. 0: all."""
    seed: int = 0
    """Seed of the router's random choices."""
    forecast_timeout_s: Annotated[float, msgspec.Meta(extra={"option": "forecast-timeout-ms"})] = 0.05
    """How long a placement waits for forecasts before it goes without the missing ones."""
    max_attempts: int = 3
    """Placements of one request, the first included."""
    retry_share: float = 0.2
    """Attempts beyond the first, as a share of arrivals, that the fleet may see in the long run."""
    retry_burst: int = 1000
    """Attempts beyond the first that the fleet may see at once: at least what one node runs, so that losing it costs
    nobody an answer."""
    state_stale_s: float = 5.0
    """A busy node silent for longer is unknown to policies that score its load, and its forecasts are not used."""
    stall_s: float = 30.0
    """A node that has requests of ours and gives neither a token nor a word of its trace for longer has stopped: it
    gets nothing new, and what it has is tried elsewhere."""
    fallback: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "least_requests"
    """Policy that steps in when the chosen one can price no node. Must not need forecasts."""
    weights: Annotated[dict[str, float], msgspec.Meta(extra={"no_option": "a table, for the file"})] = {}
    """What nodes can do, compared with each other, for `weighted_least_requests`: a number by node or by profile, such
    as "h100/llama-3.1-8b" = 2400; 1 for all others."""
    hold: HoldConfig = HoldConfig()
    """Which requests wait in the gateway's queue, and for how long."""
    moves: MovesConfig = MovesConfig()
    """Which requests that run go on at another node."""
    priority: PriorityConfig = PriorityConfig()
    """How far requests of a higher class are preferred."""
    infeasible: Literal["serve", "hold", "refuse"] = "serve"
    """A request whose service levels every node asked is forecast to miss: it is served all the same; held behind all
    others until a node has room; or refused at once, with the time after which it may be taken."""
    explain_keep: int = 10_000
    """Ended requests that can still be explained."""

    def __post_init__(self) -> None:
        if self.infeasible not in ("serve", "hold", "refuse"):
            raise ValueError(f"infeasible must be serve, hold or refuse, got {self.infeasible!r}")
        if self.infeasible == "hold" and self.hold.when == "never":
            raise ValueError("infeasible is hold but nothing is held; let hold be forecast or always")
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"weights must be > 0, got {weight} for {name!r}")
        if self.sample < 0:
            raise ValueError(f"sample must be >= 0, got {self.sample}")
        if self.ask < 0 or self.look < 0:
            raise ValueError(f"ask and look must be >= 0, got {self.ask} and {self.look}")
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts must be >= 1, got {self.max_attempts}")
        if not self.retry_share >= 0:
            raise ValueError(f"retry_share must be >= 0, got {self.retry_share}")
        if self.retry_burst < 0:
            raise ValueError(f"retry_burst must be >= 0, got {self.retry_burst}")
        if not self.forecast_timeout_s > 0:
            raise ValueError(f"forecast_timeout_s must be > 0, got {self.forecast_timeout_s}")
        if not self.stall_s > 0:
            raise ValueError(f"stall_s must be > 0, got {self.stall_s}")
        if not self.state_stale_s > 0:
            raise ValueError(f"state_stale_s must be > 0, got {self.state_stale_s}")
