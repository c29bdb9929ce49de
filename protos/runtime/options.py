"""Command-line options made from a struct: an option is said once, in the record that uses it. Shell code.

Type, default and help are the field's own: its annotation, its default and the first sentence of its docstring. A
field that is itself a struct is a table: its fields become options with the table's name in front (`hold.order` is
`--hold-order`). What cannot be guessed stands in the annotation as plain data, so that pure modules can say it too:

    when: Annotated[Literal["never", "always"], msgspec.Meta(extra={"option": ""})] = "never"

`option`: this field's part of the option's name; empty: none, so that the field carries the name of its table, and a
table's fields stand without a prefix. A part that ends in `-ms` for a field in `_s` is given in milliseconds.
`metavar`: the word for the value. `no_option`: the reason why the field cannot be given on the command line.
"""

from __future__ import annotations

import ast
import enum
import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import msgspec
from msgspec import inspect as types

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"_s": "S", "_ms": "MS", "_tokens": "TOKENS", "_bytes": "BYTES"}


class Option(NamedTuple):
    """One field of a struct, or of a table in it, as an option."""

    path: tuple[str, ...]
    """Keys from the outermost struct to the field: also its place in a TOML file."""
    flag: str
    """Name on the command line, without the leading dashes."""
    type: types.Type
    default: Any
    help: str
    metavar: str
    per_unit: float
    """How many of the unit that is given make one of the field's (a ratio): 1000 for ms and s."""

    @property
    def parameter(self) -> str:
        """Name of the function's argument: that of a list is the field's, which is plural."""
        name = self.flag.replace("-", "_")
        return name.removesuffix(_singular(self.path[-1])) + self.path[-1] if _is_list(self.type) else name


def options(
    kind: type[msgspec.Struct],
    *,
    only: Collection[str] = (),
    help_of: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[F], F]:
    """Adds an option for each field of `kind`; one that is not given is None (empty for a list).

    `only`: the parameters wanted, when not all are.

    `help_of`: by parameter, words that the struct cannot know (the names of policies). `defaults`, by parameter: for a
    command that knows no other source of values; an option that is not given has this, or else its field's default, and
    bounds of whole numbers are checked here.
    Raises TypeError for a field that can be no option and does not say why.
    """

    def add(command: F) -> F:
        known = options_of(kind)
        assert {option.parameter for option in known}.issuperset(only), "only names parameters that there are"
        for option in reversed([o for o in known if not only or o.parameter in only]):
            if defaults is not None:
                option = option._replace(default=defaults.get(option.parameter, option.default))
            words = (help_of or {}).get(option.parameter, option.help)
            command = _click_option(option, words, is_final=defaults is not None)(command)
        return command

    return add


@cache
def options_of(kind: type[msgspec.Struct]) -> tuple[Option, ...]:
    """All options of a struct and its tables, in order."""
    return tuple(_walk(kind, (), ()))


class CannotStart(click.ClickException):
    """A process cannot start: its configuration, its address or what it stands beside will not do."""

    exit_code = 2


def config_option(command: F) -> F:
    """Adds --config: the TOML file over which the other options win."""
    file = click.Path(path_type=Path)
    text = "TOML file of the same settings; options given here win over it."
    return click.option("--config", "path", type=file, metavar="FILE", help=text)(command)


def json_option(command: F) -> F:
    """Adds --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(command)


def given_tables(kind: type[msgspec.Struct], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given, as `tables`."""
    return tables(kind, {name: value for name, value in given.items() if value not in (None, ())})


def tables(kind: type[msgspec.Struct], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by parameter as the tables of a TOML file. Parameters of other names stay as they are."""
    by_parameter = {option.parameter: option for option in options_of(kind)}
    nested: dict[str, Any] = {}
    for name, value in given.items():
        option = by_parameter.get(name)
        if option is None:
            nested[name] = value
            continue
        table = nested
        for key in option.path[:-1]:
            table = table.setdefault(key, {})
        table[option.path[-1]] = value if option.per_unit == 1.0 else value / option.per_unit
    return nested


def by_option(message: str, kind: type[msgspec.Struct]) -> str:
    """What a ConfigError says of a key from the command line, told of the option that was given there."""
    named = re.match(r"command line: key '(\w+)'(?: in \[([\w.]+)\])?: (.*)", message, re.DOTALL)
    path = (*(named[2].split(".") if named[2] else ()), named[1]) if named else ()
    flag = next((option.flag for option in options_of(kind) if option.path == path), "")
    return f"--{flag}: {named[3]}" if named and flag else message


@cache
def docstrings(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The docstring below each field of a class and its bases, read from their source."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is msgspec.Struct or not issubclass(base, msgspec.Struct):
            continue
        body = _classes(base.__module__)[base.__qualname__].body
        for field, text in pairwise(body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(field.target, ast.Name)
                and isinstance(text, ast.Expr)
                and isinstance(text.value, ast.Constant)
                and isinstance(text.value.value, str)
            ):
                found[field.target.id] = " ".join(text.value.value.split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _walk(kind: type[msgspec.Struct], path: tuple[str, ...], parts: tuple[str, ...]) -> Iterator[Option]:
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    for field in info.fields:
        inner, extra = _bare(field.type)
        if "no_option" in extra:
            continue
        here = (*path, field.name)
        part = extra.get("option", _singular(field.name) if _is_list(inner) else field.name).replace("_", "-")
        names = (*parts, part) if part else parts
        if isinstance(inner, types.StructType):
            yield from _walk(inner.cls, here, names)
            continue
        flag = "-".join(names)
        yield Option(
            path=here,
            flag=flag,
            type=inner,
            default=_default(field),
            help=_first_sentence(docstrings(kind).get(field.name, "")),
            metavar=extra.get("metavar", _metavar(flag.replace("-", "_"), inner)),
            per_unit=1000.0 if flag.endswith("-ms") and field.name.endswith("_s") else 1.0,
        )


def _bare(kind: types.Type) -> tuple[types.Type, Mapping[str, Any]]:
    """The type without its metadata and without None, and what its `Meta(extra=...)` says."""
    extra: dict[str, Any] = {}
    while isinstance(kind, types.Metadata):
        extra = {**(kind.extra or {}), **extra}
        kind = kind.type
    if isinstance(kind, types.UnionType):
        rest = [one for one in kind.types if not isinstance(one, types.NoneType)]
        if len(rest) == 1:
            inner, more = _bare(rest[0])
            return inner, {**more, **extra}
    return kind, extra


def _is_list(kind: types.Type) -> bool:
    return isinstance(kind, (types.ListType, types.VarTupleType))


def _scalar(kind: types.Type) -> types.Type:
    """What one value on the command line is: a list's item, the text among several forms."""
    if isinstance(kind, (types.ListType, types.VarTupleType)):
        return _scalar(_bare(kind.item_type)[0])
    if isinstance(kind, types.UnionType):
        return next((one for one in kind.types if isinstance(one, types.StrType)), kind)
    return kind


def _choices(kind: types.Type) -> tuple[str, ...]:
    one = _scalar(kind)
    if isinstance(one, types.LiteralType):
        return tuple(str(value) for value in one.values)
    if isinstance(one, types.EnumType):
        return tuple(str(member.value) for member in one.cls)
    return ()


def _metavar(name: str, kind: types.Type) -> str:
    one = _scalar(kind)
    if isinstance(one, (types.IntType, types.FloatType)):
        unit = next((word for suffix, word in _UNITS.items() if name.endswith(suffix)), "")
        return unit or ("N" if isinstance(one, types.IntType) else "X")
    return "TEXT"


def _singular(name: str) -> str:
    return name.removesuffix("s")


def _default(field: types.Field) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return None if field.default is msgspec.NODEFAULT else field.default


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text, maxsplit=1)[0].replace("`", "")


def _click_option(option: Option, help: str, *, is_final: bool) -> Callable[[F], F]:
    """`is_final`: the value is not laid over others and then checked, so it has its default and its bounds here."""
    default = None
    if is_final:
        default = option.default if option.per_unit == 1.0 else option.default * option.per_unit
    shown = _shown(option)
    text = f"{help} [default: {shown}]" if shown else help
    one = _scalar(option.type)
    if isinstance(one, types.BoolType):
        # What is off can only be turned on; what is on, or nobody's choice yet, either way.
        flag = f"--{option.flag}" if option.default is False else f"--{option.flag}/--no-{option.flag}"
        return click.option(flag, option.parameter, is_flag=True, default=default, help=text)
    choices = _choices(option.type)
    if not choices and not isinstance(one, (types.IntType, types.FloatType, types.StrType)):
        raise TypeError(f"{'.'.join(option.path)} cannot be an option; say why with no_option")
    return click.option(
        f"--{option.flag}",
        option.parameter,
        type=click.Choice(choices) if choices else _number(one, is_bounded=is_final),
        metavar=None if choices else option.metavar,
        multiple=_is_list(option.type),
        default=default,
        help=text,
    )


def _number(kind: types.Type, *, is_bounded: bool) -> click.ParamType[Any]:
    """Text, or a number; a whole one within the bounds of its annotation if need be."""
    if isinstance(kind, types.IntType):
        has_bounds = is_bounded and (kind.ge, kind.le) != (None, None)
        return click.IntRange(kind.ge, kind.le) if has_bounds else click.INT
    return click.FLOAT if isinstance(kind, types.FloatType) else click.STRING


def _shown(option: Option) -> str:
    """The default as one would type it; empty when the help's words say what holds without a value."""
    value = option.default
    if value is None or value in ("", ()) or value == []:
        return ""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, bool):
        return option.flag if value else ""
    if isinstance(value, float):
        return f"{value * option.per_unit:g}"
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
