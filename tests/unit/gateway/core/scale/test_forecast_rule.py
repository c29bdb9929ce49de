"""The rule `forecast`: up at once, by the cheapest group; down with patience; silence, several models, shortfalls."""

from __future__ import annotations

import functools
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from engine_adapters.profile_file import load_any_profile
from gateway.core.nodes.pace import Pace
from gateway.core.nodes.view import NodeView
from gateway.core.scale.config import Objective, ScaleConfig, ScaleError, ScaleGroup
from gateway.core.scale.events import RequestCame, RequestDone
from gateway.core.scale.fleet import FleetState, GroupState, SeenNode, StartingNode
from gateway.core.scale.rule import ScalingRule, Wish
from gateway.core.scale.rules.registry import make_rule
from simcore.types import EngineConfig, NodeLoad

COLD_S = 60.0
PROMPT, ANSWER = 250, 320
TICK_S = 5.0
PROFILES = {name: load_any_profile(f"{name}/llama-3.1-8b") for name in ("a30", "h100")}


def engine(profile: str, model: str = "m") -> EngineConfig:
    return EngineConfig(
        model=model,
        max_num_seqs=128,
        max_num_batched_tokens=2048,
        num_blocks=PROFILES[profile].kv.num_blocks,
        max_model_len_tokens=4096,
    )


def group(profile: str = "a30", **changes: Any) -> ScaleGroup:
    config = engine(profile, changes.get("model", "m"))
    made = ScaleGroup(
        name=profile,
        model="m",
        min=1,
        max=16,
        cold_start_s=COLD_S,
        engine=config,
        pace=PROFILES[profile].step_time_model().pace(config),
    )
    return msgspec.structs.replace(made, **changes)


def state(of: ScaleGroup, serving: int, *, running: int = 0, starting: int = 0, now_s: float = 0.0) -> GroupState:
    config, pace = of.engine, of.pace
    assert config is not None
    assert pace is not None
    held_blocks = running * (PROMPT + ANSWER // 2) // config.block_size_tokens
    nodes = []
    for i in range(serving):
        load = NodeLoad(
            node_id=f"{of.name}-{i}",
            trace_seq=1,
            state_age_s=0.0,
            running=running,
            waiting=0,
            free_blocks=max(0, config.num_blocks - held_blocks),
            total_blocks=config.num_blocks,
            waiting_prompt_blocks=0,
            unprocessed_tokens=running * ANSWER // 2,
            preemptions_total=0,
        )
        view = NodeView(
            node_id=f"{of.name}-{i}",
            config=config,
            load=load,
            in_flight=running,
            dispatches_60s=0,
            pace=Pace(pace, config.max_num_seqs),
        )
        nodes.append(SeenNode(node_id=view.node_id, state="up", view=view, empty=False))
    coming = tuple(
        StartingNode(node_id=f"{of.name}-{serving + i}", asked_s=now_s, ready_s=now_s + COLD_S) for i in range(starting)
    )
    return GroupState(
        group=of, serving=tuple(nodes), draining=(), starting=coming, start_p50_s=COLD_S, start_p90_s=COLD_S
    )


class Played:
    """A rule that hears of Poisson arrivals and of their answers, tick by tick."""

    def __init__(self, *groups: ScaleGroup, seed: int = 0, objective: Objective | None = None, **options: Any) -> None:
        self.groups = groups or (group(),)
        config = ScaleConfig(
            rule="forecast", options=options, groups=self.groups, objective=objective or Objective(), seed=seed
        )
        self.rule: ScalingRule = make_rule(config)
        self.now_s = 0.0
        self._rng = np.random.default_rng(seed)

    def tick(
        self, rate_per_s: float, *states: GroupState, model: str = "", late: bool = False, held: int = 0
    ) -> Wish | None:
        rng = self._rng
        times = np.sort(rng.uniform(self.now_s, self.now_s + TICK_S, rng.poisson(rate_per_s * TICK_S)))
        for at_s in times:
            self.rule.came(RequestCame(prompt_tokens=PROMPT, expected_tokens=ANSWER, model=model), float(at_s))
            output_tokens, ttft_s = 1 + int(rng.exponential(ANSWER)), 9.0 if late else 0.3
            done = RequestDone(
                node_id="n",
                prompt_tokens=1 + int(rng.exponential(PROMPT)),
                output_tokens=output_tokens,
                waited_s=0.0,
                ttft_s=ttft_s,
                e2e_s=ttft_s + 0.03 * output_tokens,
                model=model,
            )
            self.rule.done(done, float(at_s))
        self.now_s += TICK_S
        return self.rule.tick(FleetState(now_s=self.now_s, groups=states, held=held), self.now_s)

    def after(self, seconds: float, rate_per_s: float, *states: GroupState, **more: Any) -> Wish:
        wish = None
        for _ in range(int(seconds / TICK_S)):
            wish = self.tick(rate_per_s, *states, **more)
        assert wish is not None
        return wish


@functools.cache
def knee(profile: str) -> float:
    """Requests per second that one node is said to carry: about the most at which no second one is wanted."""
    of, low, high = group(profile), 1.0, 64.0
    while high > 1.1 * low:
        middle = math.sqrt(low * high)
        enough = Played(of).after(60.0, middle, state(of, 1, running=5)).wanted[of.name] == 1
        low, high = (middle, high) if enough else (low, middle)
    return low


def test_nothing_is_wanted_before_anything_is_known() -> None:
    assert Played().tick(5.0, state(group(), 2)) is None


def test_it_asks_for_as_many_as_the_arrivals_need_and_says_why() -> None:
    of = group()
    rate = knee("a30")
    wish = Played().after(180.0, 4.5 * rate, state(of, 2, running=60))
    # Five carry them; what has piled up until they come takes more.
    assert 5 <= wish.wanted["a30"] <= 10, wish.why
    assert wish.seen["requests_per_s"] == pytest.approx(4.5 * rate, rel=0.1)
    assert wish.seen["share_kept"] < 0.95
    assert "more makes it" in wish.why


def test_nodes_that_start_are_not_asked_for_again() -> None:
    of = group()
    rate = 4.5 * knee("a30")
    wish = Played().after(180.0, rate, state(of, 2, running=60))
    more = wish.wanted["a30"] - 2
    again = Played().after(180.0, rate, state(of, 2, running=60, starting=more, now_s=180.0))
    assert again.wanted["a30"] <= wish.wanted["a30"] + 1


def test_of_two_groups_the_one_that_is_worth_its_price() -> None:
    """An H100 carries several times what an A30 does: which of them is wanted is a matter of the price."""
    for price, wanted in ((1.5, "h100"), (30.0, "a30")):
        groups = group("a30", price_per_hour=1.0), group("h100", price_per_hour=price)
        states = [state(of, 1, running=40) for of in groups]
        wish = Played(*groups).after(60.0, 2.0 * (knee("a30") + knee("h100")), *states)
        grown = {of.name: wish.wanted[of.name] - 1 for of in groups}
        other = "a30" if wanted == "h100" else "h100"
        assert grown[wanted] > 0, (price, wish)
        assert grown[other] == 0, (price, wish)


def test_a_node_goes_after_the_smaller_fleet_has_sufficed_for_a_while() -> None:
    of = group()
    rate = 0.5 * knee("a30")
    played = Played(of, steady_s=60.0)
    early = played.after(30.0, rate, state(of, 3, running=5))
    assert early.wanted == {"a30": 3}
    assert played.after(90.0, rate, state(of, 3, running=5)).wanted == {"a30": 2}


def test_never_below_the_bound_of_the_group() -> None:
    of = group(min=2)
    assert Played(of, steady_s=0.0).after(120.0, 0.2, state(of, 2, running=1)).wanted == {"a30": 2}


def test_after_a_long_silence_nothing_is_wanted() -> None:
    of = group(min=0)
    played = Played(of)
    played.after(60.0, 5.0, state(of, 1, running=5))
    wish = played.after(600.0, 0.0, state(of, 1))
    assert wish.wanted == {"a30": 0}
    assert wish.why == "nothing comes"


def test_an_objective_that_no_fleet_keeps_is_said_and_does_not_take_all() -> None:
    """A first token within a millisecond: more nodes do not help, so none are bought for it."""
    of = group()
    wish = Played(of, objective=Objective(ttft_s=0.001)).after(180.0, 2.0, state(of, 1, running=5))
    assert "cannot be had" in wish.shortfall
    assert wish.wanted == {"a30": 1}


def test_bounds_that_are_too_low_are_said_with_the_best_there_is() -> None:
    of = group(max=3)
    wish = Played(of).after(180.0, 10.0 * knee("a30"), state(of, 2, running=100))
    assert "the best is" in wish.shortfall


def test_the_more_of_the_error_budget_is_gone_the_surer_it_wants_to_be() -> None:
    of = group()
    calm = Played(of).after(180.0, 3.0, state(of, 1, running=5))
    late = Played(of).after(180.0, 3.0, state(of, 1, running=5), late=True)
    assert late.seen["worth"] == pytest.approx(8.0 * calm.seen["worth"])


def test_a_node_that_was_wanted_back_is_let_go_later_the_next_time() -> None:
    of = group()
    rate = knee("a30")
    played = Played(of, steady_s=30.0)
    for expected_s in (30.0, 90.0):
        calm_s = 0.0
        while (wish := played.tick(0.6 * rate, state(of, 2, running=10))) is None or wish.wanted["a30"] == 2:
            calm_s += TICK_S
        assert calm_s >= expected_s
        played.after(60.0, 1.6 * rate, state(of, 1, running=60))


def test_each_of_several_models_has_its_own_arrivals() -> None:
    one, two = group("a30", model="one"), group("h100", model="two")
    played = Played(one, two)
    rate = 3.0 * knee("a30")
    for _ in range(30):
        played.tick(rate, state(one, 1, running=40), state(two, 1), model="one")
    wish = played.after(30.0, rate, state(one, 1, running=40), state(two, 1), model="one")
    assert wish.wanted["a30"] > 1
    assert wish.wanted.get("h100", 1) <= 1


def test_a_group_of_which_nothing_is_known_stays_as_it_is() -> None:
    of = group()
    unknown = group("h100", engine=None, pace=None)
    blank = GroupState(group=unknown, serving=(), draining=(), starting=(), start_p50_s=COLD_S, start_p90_s=COLD_S)
    wish = Played(of, unknown).after(120.0, 2.0 * knee("a30"), state(of, 1, running=40), blank)
    assert wish.wanted["a30"] > 1
    assert wish.wanted.get("h100", 0) == 0


def test_options_that_it_does_not_have_are_named() -> None:
    with pytest.raises(ScaleError, match="worth"):
        Played(worth=0.0)
    with pytest.raises(ScaleError, match="it has worth"):
        Played(wishes=1)
