from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import click
import msgspec
import pytest
from click.testing import CliRunner

from protos.runtime.options import by_option, options, options_of, tables


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Hold(msgspec.Struct, frozen=True, kw_only=True):
    when: Annotated[Literal["never", "always"], msgspec.Meta(extra={"option": ""})] = "never"
    """When to hold. More of it here."""
    max_requests: int = 4
    """Most of them."""


class Router(msgspec.Struct, frozen=True, kw_only=True):
    timeout_s: Annotated[float, msgspec.Meta(gt=0), msgspec.Meta(extra={"option": "timeout-ms"})] = 0.05
    """How long to wait."""
    hold: Hold = Hold()
    """Holding."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[str, ...] = ()
    """Where they are."""
    file: Annotated[str, msgspec.Meta(extra={"metavar": "FILE"})] = ""
    """What to read; empty: `nothing`."""
    learn: bool = True
    """Whether to learn."""
    insecure: bool = False
    """Whether to trust."""
    sorted: bool | None = None
    """Whether to sort; not given: as it comes."""
    colour: Colour = Colour.RED
    """Which."""
    limit: int | None = None
    """How many."""
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    """How often."""
    router: Annotated[Router, msgspec.Meta(extra={"option": ""})] = Router()
    """Its rules."""
    extra: Annotated[dict[str, Any], msgspec.Meta(extra={"no_option": "only programs set it"})] = {}
    """More."""


class Silent(msgspec.Struct):
    extra: dict[str, int] = {}


@click.command()
@options(Record, help_of={"colour": "Of the rainbow."})
@click.pass_obj
def command(found: dict[str, Any], /, **values: Any) -> None:
    found.update(tables(Record, {name: value for name, value in values.items() if value not in (None, ())}))


def run(*arguments: str) -> Record:
    found: dict[str, Any] = {}
    done = CliRunner().invoke(command, arguments, obj=found, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return msgspec.convert(found, Record)


def test_without_options_the_defaults_of_the_struct_hold() -> None:
    assert run() == Record()


def test_options_reach_the_fields_of_tables_and_lists() -> None:
    assert run(
        *("--node", "a", "--node", "b", "--no-learn", "--insecure", "--colour", "blue", "--limit", "3"),
        *("--hold", "always", "--hold-max-requests", "9", "--timeout-ms", "20"),
    ) == Record(
        nodes=("a", "b"),
        learn=False,
        insecure=True,
        colour=Colour.BLUE,
        limit=3,
        router=Router(timeout_s=0.02, hold=Hold(when="always", max_requests=9)),
    )


@pytest.mark.parametrize(
    "line",
    [
        "--node TEXT Where they are.",
        "--file FILE What to read; empty: nothing.",
        "--learn / --no-learn Whether to learn. [default: learn]",
        "--insecure Whether to trust.",
        "--sorted / --no-sorted Whether to sort; not given: as it comes.",
        "--colour [red|blue] Of the rainbow. [default: red]",
        "--limit N How many.",
        "--timeout-ms MS How long to wait. [default: 50]",
        "--hold [always|never] When to hold. [default: never]",
        "--hold-max-requests N Most of them. [default: 4]",
    ],
)
def test_the_help_is_made_of_types_defaults_and_docstrings(line: str) -> None:
    assert line in " ".join(CliRunner().invoke(command, ["--help"]).output.split())


def test_a_value_outside_the_choices_is_refused_with_them() -> None:
    done = CliRunner().invoke(command, ["--hold", "ever"])
    assert done.exit_code == 2
    assert "'always', 'never'" in done.output


def test_a_field_that_says_why_has_no_option() -> None:
    assert ("extra",) not in {option.path for option in options_of(Record)}


def test_a_field_that_can_be_no_option_must_say_why() -> None:
    with pytest.raises(TypeError, match="extra cannot be an option"):
        options(Silent)(lambda: None)


def test_a_command_without_other_sources_gets_defaults_and_checks_bounds() -> None:
    @click.command()
    @options(Record, only=("limit", "learn", "sorted", "attempts", "timeout_ms"), defaults={"limit": 7})
    @click.pass_obj
    def final(found: dict[str, Any], /, **values: Any) -> None:
        found.update(values)

    found: dict[str, Any] = {}
    assert CliRunner().invoke(final, ["--no-learn"], obj=found).exit_code == 0
    assert found == {"limit": 7, "learn": False, "sorted": None, "attempts": 3, "timeout_ms": 50.0}
    refused = CliRunner().invoke(final, ["--attempts", "0"])
    assert refused.exit_code == 2
    assert "0 is not in the range x>=1" in refused.output


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("command line: key 'file': it is empty", "--file: it is empty"),
        ("command line: key 'nodes' in [elsewhere]: no", "command line: key 'nodes' in [elsewhere]: no"),
        ("a.toml: key 'file': it is empty", "a.toml: key 'file': it is empty"),
    ],
)
def test_a_bad_value_is_told_of_the_option_that_was_given(message: str, said: str) -> None:
    assert by_option(message, Record) == said
