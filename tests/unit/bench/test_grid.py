"""Grids: every combination, and those that cannot be, before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.run.grid import make_tasks
from bench.run.spec import RunSpec, SpecError, check_spec, profile_text, router_config, with_values
from bench.workload.dataset_error import DatasetError
from gateway.core.decision.policies.registry import PolicyError
from gateway.core.router_config import RouterConfig


def tasks(axes: dict[str, list[Any]], **base: Any) -> list[tuple[Any, ...]]:
    made = make_tasks(
        with_values(RunSpec(rate_per_s=1.0), base), group="g", variants={"v": {}}, axes=axes, seeds=[0, 1]
    )
    return [(task.spec.policy, task.spec.rate_per_s, task.spec.seed) for task in made]


def test_every_combination_with_every_seed() -> None:
    assert tasks({"policy": ["random", "infaas"], "rate": [1.0, 2.0]}) == [
        (policy, rate, seed) for policy in ("random", "infaas") for rate in (1.0, 2.0) for seed in (0, 1)
    ]


@pytest.mark.parametrize(
    ("axes", "base", "error", "says"),
    [
        ({"polici": ["random"]}, {}, SpecError, "unknown key 'polici'; did you mean 'policy'"),
        ({"router.asc": [1]}, {}, SpecError, "did you mean 'router.ask'"),
        ({"policy": ["min_total_latenzy"]}, {}, PolicyError, "did you mean 'min_total_latency'"),
        ({"policy": ["./no_such.py"]}, {}, PolicyError, "is not there"),
        ({"dataset": ["block-sharegp"]}, {}, DatasetError, "Did you mean 'block-sharegpt'"),
        ({"dataset": ["./no_such.py"]}, {}, DatasetError, "no such workload file"),
        ({"rate": [0.0]}, {}, SpecError, "rate_per_s is 0; it must be above 0"),
        ({"rate": [-1.0]}, {}, SpecError, "must be above 0"),
        ({"rate": ["fast"]}, {}, SpecError, "Expected `float | null`, got `str`"),
        ({"rate": []}, {}, SpecError, "the axis 'rate' has no values"),
        ({"rate": [1.0, 1.0]}, {}, SpecError, "has a value twice"),
        ({"sample": [13]}, {}, SpecError, "sample is 13, but there are only 12 nodes"),
        ({"max_num_seqs": [0]}, {}, SpecError, "Expected `int` >= 1 - at `$.max_num_seqs`"),
        ({"num_blocks": [1]}, {"block_size_tokens": 1}, SpecError, "hold no request"),
        ({"profile": ["a30/lama-2-7b"]}, {}, SpecError, "did you mean 'a30/llama-2-7b'"),
        ({"profile": ["./no_such.json"]}, {}, SpecError, "cannot be read"),
        ({"rate": [float(i + 1) for i in range(60_000)]}, {}, SpecError, "more than 100,000"),
        ({"router.max_attempts": [0]}, {}, SpecError, "max_attempts must be >= 1"),
        ({"router.ask": ["all"]}, {}, SpecError, "router: Expected `int`, got `str` - at `$.ask`"),
        ({"router.hold": ["sometimes"]}, {}, SpecError, "never, forecast, always"),
        ({"router.policy": ["random"]}, {}, SpecError, "router.policy is the key policy of the run"),
        ({"network_one_way_s": [-1.0]}, {}, SpecError, "network_one_way_s must be finite and >= 0"),
        ({"length_error": [-0.1]}, {}, SpecError, "length must be a share >= 0"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(
    axes: dict[str, list[Any]], base: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as refused:
        tasks(axes, **base)
    assert says in str(refused.value)


def test_the_key_follows_every_value_and_the_content_of_files(tmp_path: Path) -> None:
    spec = RunSpec(rate_per_s=2.0)
    assert spec.key == RunSpec(rate_per_s=2.0).key
    assert spec.key != RunSpec(rate_per_s=2.0, seed=1).key
    assert spec.key != with_values(spec, {"router.ask": 4}).key
    file = tmp_path / "p.py"
    file.write_text("a = 1")
    own = RunSpec(policy=str(file))
    before = own.key
    file.write_text("a = 2")
    assert own.key != before


def test_a_sound_run_passes() -> None:
    check_spec(RunSpec(rate_per_s=20.0))


def test_holding_is_named_by_its_when_or_in_full() -> None:
    assert router_config(with_values(RunSpec(), {"router.hold": "always"}), "random").hold.when == "always"
    full = with_values(RunSpec(), {"router": {"hold": {"when": "always", "order": "deadline"}}})
    assert router_config(full, "random").hold.order == "deadline"


def test_the_router_is_the_one_that_ships_unless_it_is_as_published() -> None:
    shipped = RouterConfig(policy="random", explain_keep=0)
    assert router_config(RunSpec(), "random") == shipped
    published = router_config(RunSpec(as_published=True), "random")
    assert (published.ask, published.hold.when) == (0, "never")
    own = with_values(RunSpec(as_published=True), {"router.ask": 2})
    assert (router_config(own, "random").ask, router_config(own, "random").hold.when) == (2, "never")
    assert own.router_text == "router as published, ask 2"
    moving = with_values(RunSpec(), {"router.moves": {"rule": "llumnix"}, "profile": "/home/me/mine.json"})
    assert moving.router_text == "router as shipped, moves.rule llumnix"
    assert profile_text(moving.profile) == "mine.json"
    assert profile_text("a30/llama-2-7b") == "a30/llama-2-7b"
