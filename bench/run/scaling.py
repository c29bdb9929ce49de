"""The scaled fleet of a run: what its spec says of scaler, bounds, starts and prices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from bench.run.by_group import by_group, count, price
from bench.simcluster.perfect import PERFECT, PerfectOptions
from bench.simcluster.scaling import ScaledFleet, ScaledGroup
from bench.simcluster.start_time import StartTime, parse_start_time
from bench.simcluster.world import NodeSpec
from bench.workload.item import WorkloadItem
from deploy.fleet import NodeGroup
from gateway.core.scale.config import Objective, ScaleConfig, ScaleGroup, check
from gateway.core.scale.rules.registry import make_rule
from gateway.core.scale.rules.static import Static
from gateway.rule_files import rule_name

if TYPE_CHECKING:
    from bench.run.spec import RunSpec


class GroupPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One group as the run's options say it."""

    group: NodeGroup
    """`count` is the most nodes that there may be."""
    least: int
    first: int
    """Nodes when the run begins."""
    start_time: StartTime
    price_per_hour: float


def with_most_nodes(spec: RunSpec, groups: Sequence[NodeGroup]) -> tuple[NodeGroup, ...]:
    """The groups with as many nodes as each may have at most. Raises ValueError."""
    most = by_group(spec.max_nodes, [group.name for group in groups], count, key="max_nodes")
    for name, nodes in most.items():
        if nodes < 1:
            raise ValueError(f"max_nodes: group {name!r} may have no node; leave it out of the fleet")
    return tuple(msgspec.structs.replace(group, count=most.get(group.name, group.count)) for group in groups)


def group_plans(spec: RunSpec) -> list[GroupPlan]:
    """Of each group of the run, in the order of the nodes. Raises ValueError."""
    groups = spec.groups
    names = [group.name for group in groups]
    least = by_group(spec.min_nodes, names, count, key="min_nodes")
    first = by_group(spec.start_nodes, names, count, key="start_nodes")
    starts = by_group(spec.cold_start, names, parse_start_time, key="cold_start")
    prices = by_group(spec.price, names, price, key="price")
    fixed = spec.scaler_options.get("nodes", {}) if spec.scaler == Static.name else {}
    found = []
    for group in groups:
        fewest = least.get(group.name, 0)
        # A static fleet is there from the beginning.
        usual = fixed.get(group.name, group.count) if spec.scaler == Static.name else fewest
        own = group.price_per_hour if group.price_per_hour is not None else 1.0
        found.append(
            GroupPlan(
                group=group,
                least=fewest,
                first=first.get(group.name, usual),
                start_time=starts.get(group.name, StartTime()),
                price_per_hour=prices.get(group.name, own),
            )
        )
    for plan in found:
        most = plan.group.count
        if plan.first > most:
            raise ValueError(f"start_nodes: group {plan.group.name!r} begins with {plan.first} nodes, more than {most}")
    return found


def scale_config(spec: RunSpec, plans: Sequence[GroupPlan], options: dict[str, Any] | None = None) -> ScaleConfig:
    """The scaler's configuration. Raises ScaleError, which is a ValueError."""
    config = ScaleConfig(
        rule=rule_name(spec.scaler),
        options=spec.scaler_options if options is None else options,
        groups=tuple(
            ScaleGroup(
                name=plan.group.name,
                model=plan.group.served_model,
                min=plan.least,
                max=plan.group.count,
                price_per_hour=plan.price_per_hour,
                cold_start_s=plan.start_time.median_s,
            )
            for plan in plans
        ),
        objective=Objective(ttft_s=spec.slo_ttft_s, tpot_s=spec.slo_tpot_s, e2e_s=spec.slo_e2e_s, share=spec.slo_share),
        tick_s=spec.tick_s,
        seed=spec.seed,
    )
    check(config)
    return config


def check_scaling(spec: RunSpec) -> None:
    """Raises ValueError for a scaled run that cannot be."""
    plans = group_plans(spec)
    config = scale_config(spec, plans, {} if spec.scaler == PERFECT else None)
    make_rule(config)
    _world(spec, config, plans)


def scaled_fleet(spec: RunSpec, items: Sequence[WorkloadItem]) -> ScaledFleet | None:
    """The nodes of a run that has a scaler; None for one that has none. Raises ValueError."""
    if not spec.scaler:
        return None
    plans = group_plans(spec)
    if spec.scaler != PERFECT:
        return _world(spec, scale_config(spec, plans), plans)
    from bench.run.perfect_plan import perfect_options

    return perfect_fleet(spec, plans, perfect_options(spec, plans, items))


def perfect_fleet(spec: RunSpec, plans: Sequence[GroupPlan], options: PerfectOptions) -> ScaledFleet:
    """The nodes of a run under `perfect`: it begins with as many as its plan, every start takes the median and none
    fails. Raises ValueError."""
    first = {name: steps[0][1] for name, steps in options.plan.items()}
    plans = [
        msgspec.structs.replace(
            plan,
            first=first[plan.group.name],
            start_time=StartTime(low_s=plan.start_time.median_s, high_s=plan.start_time.median_s),
        )
        for plan in plans
    ]
    sure = msgspec.structs.replace(spec, failed_starts=0.0, spot_s=None)
    return _world(sure, scale_config(spec, plans, msgspec.to_builtins(options)), plans)


def _world(spec: RunSpec, config: ScaleConfig, plans: Sequence[GroupPlan]) -> ScaledFleet:
    return ScaledFleet(
        config=config,
        groups={
            plan.group.name: ScaledGroup(
                node=node_of(spec, plan),
                start_time=plan.start_time,
                nodes=plan.first,
                failed_starts=spec.failed_starts,
                vanish_s=spec.spot_s,
            )
            for plan in plans
        },
        seed=spec.seed,
    )


def node_of(spec: RunSpec, plan: GroupPlan) -> NodeSpec:
    """What each node of a group is. Raises ValueError for a profile that cannot be loaded."""
    step_time = plan.group.load_profile().step_time_model()
    return NodeSpec(node_id=f"{plan.group.name}-x", config=spec.engine(plan.group), step_time=step_time)
