"""Scaling rules in files of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.scale.config import ScaleError
from gateway.core.scale.rules import registry
from gateway.core.scale.rules.registry import make_rule
from gateway.rule_files import load_rule_file, rule_name
from tests.helpers.scaling_rules import SHIPPED, RuleWorld, overloaded, scale_config

ROOT = Path(__file__).resolve().parents[4]

RULE = """
import msgspec
from gateway.core.scale.rule import Deaf, Wish

class MineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    nodes: int = 3

class Mine(Deaf):
    name = "{name}"
    source = "mine"
    options_type = MineOptions

    def __init__(self, config, options, rng):
        self.nodes = options.nodes

    def tick(self, fleet, now_s):
        return Wish(wanted={{"n": self.nodes}}, why="as I say")
"""


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    monkeypatch.setattr(registry, "_origins", {})


def written(folder: Path, text: str) -> str:
    path = folder / "r.py"
    path.write_text(text)
    return str(path)


def test_a_rule_of_a_file_is_known_by_the_name_it_gives_itself(tmp_path: Path) -> None:
    path = written(tmp_path, RULE.format(name="mine"))
    assert rule_name(path) == "mine"
    world = RuleWorld(scale_config("mine", {"nodes": 4}), nodes=1)
    world.tick()
    assert world.count == 4
    with pytest.raises(ScaleError, match=r"options of 'mine'.*it has nodes"):
        make_rule(scale_config("mine", {"many": 4}))
    # The same file again, as every worker process and every reload does it.
    assert load_rule_file(path) == "mine"


def test_a_name_is_itself() -> None:
    assert rule_name("inferline") == "inferline"
    with pytest.raises(ScaleError, match="did you mean 'inferline'"):
        rule_name("infrline")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = ", "cannot be run: SyntaxError"),
        ("import no_such_module", "cannot be run: ModuleNotFoundError"),
        ("x = 1", "holds 0 rules, not one; see gateway/core/scale/rule.py"),
        (RULE.format(name="a") + RULE.format(name="b").replace("Mine", "Yours"), "holds 2 rules"),
        (RULE.format(name="a").replace("    source", "    origin"), "Mine lacks source"),
        (RULE.format(name="a").replace('source = "mine"', "source = 7"), "source is 7; it must be a text"),
        (RULE.format(name="static"), "the scaling rule 'static' is there already"),
        (RULE.format(name="a").replace("options_type = MineOptions", "options_type = 7"), "must be a msgspec.Struct"),
        (RULE.format(name="a").replace(", forbid_unknown_fields=True", ""), "forbid_unknown_fields=True"),
        (RULE.format(name="a").replace("nodes: int = 3", "nodes: int"), "cannot be made with its defaults: TypeError"),
        (RULE.format(name="a").replace("config, options, rng", "config"), "cannot be made with its defaults"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_clear_error(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ScaleError, match=r"rule file|r\.py") as error:
        load_rule_file(path)
    assert says in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="is not there; check the path"):
        rule_name(str(tmp_path / "gone.py"))


def test_the_example_follows_what_waits() -> None:
    name = rule_name(str(ROOT / "bench/examples/queue_drain.py"))
    world = RuleWorld(scale_config(name, {"within_s": 1.0}), nodes=2, load=overloaded)
    world.tick()
    # 64 run on each and 20 wait: at a second each, 40 more in a second.
    assert world.count == 3


def test_every_rule_has_its_line_on_the_page() -> None:
    page = (ROOT / "gateway/scaling-rules.md").read_text()
    assert {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")} == set(SHIPPED)
