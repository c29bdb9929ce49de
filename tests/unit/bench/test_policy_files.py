"""Policies in files of one's own."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gateway.core.decision.policies import registry
from gateway.core.decision.policies.registry import PolicyError, make_policy
from gateway.policy_files import load_policy_file, policy_name

POLICY = """
class Mine:
    name = "{name}"
    cost_unit = "s"
    needs_forecasts = False

    def costs(self, request, nodes, forecasts):
        return [float(len(node.node_id)) for node in nodes]
"""


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_POLICIES", dict(registry._POLICIES))
    monkeypatch.setattr(registry, "_origins", {})


def test_a_policy_of_a_file_is_known_by_the_name_it_gives_itself(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(POLICY.format(name="mine"))
    assert policy_name(str(path)) == "mine"
    assert make_policy("mine", random.Random(0)).cost_unit == "s"
    # The same file again, as every worker process and every reload does it.
    assert load_policy_file(path) == "mine"


def test_a_policy_may_draw_from_the_routers_generator(tmp_path: Path) -> None:
    path = tmp_path / "p.py"
    path.write_text(POLICY.format(name="mine") + "\n    def __init__(self, rng): self.first = rng.random()\n")
    name = policy_name(str(path))
    drawn = [vars(make_policy(name, random.Random(seed)))["first"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", "cannot be run: SyntaxError"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError"),
        ("x = 1", "holds 0 policies, not one"),
        (POLICY.format(name="a") + POLICY.format(name="b").replace("Mine", "Yours"), "holds 2 policies"),
        (POLICY.format(name="a").replace("    cost_unit", "    unit"), "Mine lacks cost_unit"),
        (POLICY.format(name="a").replace('"s"', "7"), "cost_unit is 7; it must be a str"),
        (POLICY.format(name="round_robin"), "the policy name 'round_robin' is taken"),
        (POLICY.format(name="min_lunmnix_load"), "is taken"),
        (POLICY.format(name="a") + "\n    def __init__(self, x): pass\n", "takes no arguments, or rng alone"),
        (
            POLICY.format(name="a") + "\n    default_sample = 2\n",
            "Mine.default_sample is not read; say --sample K",
        ),
        (
            POLICY.format(name="a") + "\n    def shortlist(self, r, n, g): pass\n",
            "Mine.shortlist is not called;",
        ),
        ("from gateway.core.policies.base import NodeView", "import from gateway.core.decision.policies.base"),
    ],
)
def test_what_is_no_policy_is_refused_with_a_reason(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "p.py"
    path.write_text(text)
    with pytest.raises(PolicyError) as refused:
        load_policy_file(path)
    assert says in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(PolicyError, match=r"'no\.py' is not there; check the path"):
        policy_name("no.py")


def test_two_files_cannot_have_one_name(tmp_path: Path) -> None:
    for name in ("p.py", "q.py"):
        (tmp_path / name).write_text(POLICY.format(name="mine"))
    load_policy_file(tmp_path / "p.py")
    with pytest.raises(PolicyError, match="'mine' is taken"):
        load_policy_file(tmp_path / "q.py")
