"""What became of the requests at each group of a fleet, and what they cost. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bench.measure.results import FleetPrice, GroupSummary, RequestResult, Summary, spread
from gateway.core.outcomes import COMPLETE

HOUR_S = 3600.0


class GroupFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a group is, before a run."""

    name: str
    profile: str
    model: str
    node_ids: tuple[str, ...]
    price_per_hour: float | None = None
    """Of the whole group."""
    labels: dict[str, str] = {}


def summarise_groups(
    results: Sequence[RequestResult], groups: Sequence[GroupFacts], kv_shares: Mapping[str, float] | None = None
) -> tuple[GroupSummary, ...]:
    """One summary per group, of the requests that ended at its nodes; of requests that reached no node none tells.

    `kv_shares`: by node, the mean share of its KV blocks in use.
    """
    by_node: dict[str, list[RequestResult]] = {}
    for result in results:
        by_node.setdefault(result.node_id, []).append(result)
    found = []
    for group in groups:
        own = [result for node_id in group.node_ids for result in by_node.get(node_id, ())]
        e2e = spread(r.e2e_s for r in own if r.e2e_s is not None)
        ttft = spread(r.ttft_s for r in own if r.ttft_s is not None)
        in_use = [kv_shares[node_id] for node_id in group.node_ids if node_id in kv_shares] if kv_shares else []
        found.append(
            GroupSummary(
                name=group.name,
                profile=group.profile,
                model=group.model,
                nodes=len(group.node_ids),
                requests=len(own),
                share=len(own) / max(1, len(results)),
                completed=sum(r.outcome in COMPLETE for r in own),
                output_tokens=sum(r.output_tokens for r in own),
                ttft_s=ttft,
                e2e_s=e2e,
                kv_share=sum(in_use) / len(in_use) if in_use else None,
                price_per_hour=group.price_per_hour,
                labels=group.labels,
            )
        )
    return tuple(found)


def fleet_price(
    summary: Summary, *, good: int, per_hour: float | None, currency: str, note: str = ""
) -> FleetPrice | None:
    """What the fleet costs while requests come, by good answers and by tokens of complete ones; None without a price.

    The time in which the last answers are waited for is left out: a service that goes on does not have it.
    """
    if per_hour is None:
        return None
    offered = summary.offered_rate_per_s
    cost = 0.0 if offered is None else per_hour * summary.requests / offered / HOUR_S
    tokens = summary.output_tokens_per_s * summary.duration_s
    return FleetPrice(
        currency=currency,
        note=note,
        per_hour=per_hour,
        per_1000_good_answers=1e3 * cost / good if cost and good else None,
        per_million_output_tokens=1e6 * cost / tokens if cost and tokens else None,
    )


def group_measures(
    results: Sequence[RequestResult], groups: Sequence[GroupFacts], price: FleetPrice | None
) -> dict[str, float]:
    """P99 TTFT of each group and, where there are several, of each model, in seconds; the prices."""
    members: dict[str, list[str]] = {group.name: list(group.node_ids) for group in groups}
    if len({group.model for group in groups}) > 1:
        for group in groups:
            members.setdefault(group.model, []).extend(group.node_ids)
    found: dict[str, float] = {}
    for name, node_ids in members.items():
        here = set(node_ids)
        if (ttft := spread(r.ttft_s for r in results if r.ttft_s is not None and r.node_id in here)) is not None:
            found[f"ttft_p99_s_of_{name}"] = ttft.p99
    if price is not None:
        prices = {
            "price_per_hour": price.per_hour,
            "price_per_1000_good_answers": price.per_1000_good_answers,
            "price_per_million_output_tokens": price.per_million_output_tokens,
        }
        found |= {name: value for name, value in prices.items() if value is not None}
    return found
