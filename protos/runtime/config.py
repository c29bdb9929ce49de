"""A process's configuration: one strict TOML file into a struct. Shell code.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names file, key, reason and how to
mend it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec

from protos.runtime.text_files import FOREIGN_BYTES, TextFileError, read_text

Config = TypeVar("Config", bound=msgspec.Struct)

FileName = Annotated[str, msgspec.Meta(extra={"metavar": "FILE"})]
Address = Annotated[str, msgspec.Meta(extra={"metavar": "HOST:PORT"})]


class ConfigError(Exception):
    """The configuration cannot be used. The message says what, where and how to mend it."""


def load_config(kind: type[Config], path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """A `kind` from the file's tables (none without a file) with `overrides`, of the same form, on top.

    Raises ConfigError.
    """
    values = _read(Path(path)) if path else {}
    if path:
        _convert(kind, values, where=str(path))
    return _convert(kind, _merged(values, overrides or {}), where="command line")


def differing_keys(one: msgspec.Struct, other: msgspec.Struct) -> list[str]:
    """Which keys of two configurations of one kind differ; those in tables as `table.key`."""
    keys: list[str] = []
    for key in one.__struct_fields__:
        a, b = getattr(one, key), getattr(other, key)
        if isinstance(a, msgspec.Struct) and isinstance(b, msgspec.Struct):
            keys += [f"{key}.{inner}" for inner in differing_keys(a, b)]
        elif a != b:
            keys.append(key)
    return keys


def check_key(path: str, test: Callable[[], object]) -> None:
    """Runs a check of one key's value; what it raises becomes a ValueError that names the key. `path`: `table.key`."""
    try:
        test()
    except Exception as bad:
        raise ValueError(f"{_spelled(path)}: {bad}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = read_text(path)
        if foreign := FOREIGN_BYTES.search(text):
            line = text.count("\n", 0, foreign.start()) + 1
            raise ConfigError(f"{path}, line {line}: holds a byte that is not UTF-8; save the file as UTF-8")
        # As Windows writes the ends of lines, in whatever editor.
        return tomllib.loads(text.replace("\r\n", "\n"))
    except TextFileError as bad:
        if isinstance(bad.__cause__, FileNotFoundError):
            raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
        raise ConfigError(str(bad)) from None
    except tomllib.TOMLDecodeError as bad:
        raise ConfigError(f"{path}: is not valid TOML: {bad}; see https://toml.io for the notation") from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _convert(kind: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    problem = _unknown_key(kind, values)
    if problem:
        raise ConfigError(f"{where}: {problem}")
    try:
        return msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as bad:
        raise ConfigError(f"{where}: {_with_key(str(bad), kind)}") from None


def _unknown_key(kind: type[msgspec.Struct], values: Mapping[str, Any]) -> str:
    """What is wrong with the first key that `kind` does not have, here or in a table; empty when all are known."""
    tables = tables_of(kind)
    for path, table in {(): kind, **tables}.items():
        here: Any = values
        for key in path:
            here = here.get(key, {})
        if not isinstance(here, Mapping):
            # A value where a table stands today: `lengths = "none"`.
            return _successor(kind, ".".join(path)) or f"[{'.'.join(path)}] is a table, not {here!r}"
        known = table.__struct_fields__
        for key in here:
            if key not in known:
                return _successor(kind, ".".join((*path, key))) or _advice(kind, path, key, known)
    return _unknown_in_rows(kind, values)


def _unknown_in_rows(kind: type[msgspec.Struct], values: Mapping[str, Any]) -> str:
    """The same of the tables of which there may be several, `[[group]]`."""
    for name, row in rows_of(kind).items():
        rows = values.get(name)
        for number, given in enumerate(rows if isinstance(rows, list) else [], start=1):
            known = row.__struct_fields__
            for key in given if isinstance(given, Mapping) else ():
                if key not in known:
                    return _advice(row, (f"{name} {number}",), key, known)
    return ""


def _successor(kind: type[msgspec.Struct], key: str) -> str:
    """Where a key is that moved into a table. The option of that name still exists, and leads to the field."""
    from protos.runtime.options import options_of

    for option in options_of(kind):
        if option.parameter == key and len(option.path) > 1:
            *table, name = option.path
            return f"{key!r} is now {'' if name == key else name + ' '}in [{'.'.join(table)}]"
    return ""


def _advice(kind: type[msgspec.Struct], path: tuple[str, ...], key: str, known: tuple[str, ...]) -> str:
    """`unknown key`, with the nearest key of the same table or, for one outside of tables, of any table."""
    tables = {} if path else tables_of(kind)
    places = {name: ".".join(at) for at, table in tables.items() for name in table.__struct_fields__}
    places |= dict.fromkeys(known, ".".join(path))
    near = difflib.get_close_matches(key, places, n=1)
    hint = f"did you mean {_in_table(near[0], places[near[0]])}?" if near else f"known keys: {', '.join(known)}"
    return f"unknown key {_in_table(key, '.'.join(path))}; {hint}"


def tables_of(kind: type[msgspec.Struct]) -> dict[tuple[str, ...], type[msgspec.Struct]]:
    """The tables in a struct, and those in them, by path."""
    found: dict[tuple[str, ...], type[msgspec.Struct]] = {}
    for name, hint in get_type_hints(kind).items():
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            found[(name,)] = hint
            found.update({(name, *path): table for path, table in tables_of(hint).items()})
    return found


def rows_of(kind: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The tables of which a file may have several, `[[group]]`: fields that are tuples of structs."""
    rows = {name: get_args(hint)[0] for name, hint in get_type_hints(kind).items() if get_args(hint)}
    return {name: row for name, row in rows.items() if isinstance(row, type) and issubclass(row, msgspec.Struct)}


def _with_key(message: str, kind: type[msgspec.Struct]) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.seed`" with the key in front, as in our own messages."""
    text, _, place = message.partition(" - at `$")
    path = place.strip(".`")
    reason = text.replace("`", "'")
    if not path:
        return reason
    is_table = tuple(path.split(".")) in tables_of(kind)
    row = re.match(r"(\w+)\[(\d+)\](.*)", path)
    if row and row[1] in rows_of(kind):
        # Rows are counted from 1 where people read of them.
        path, is_table = f"{row[1]} {int(row[2]) + 1}{row[3]}", not row[3]
    if path.endswith("[...]"):
        # A value of a table of names: msgspec does not say which.
        path = path.removesuffix("[...]")
        return f"a value in [{path}]: {reason[:1].lower()}{reason[1:]}"
    if is_table:
        return f"[{path}]: {reason}"
    return f"{_spelled(path)}: {reason[:1].lower()}{reason[1:]}"


def _spelled(path: str) -> str:
    table, _, key = path.rpartition(".")
    return f"key {_in_table(key, table)}"


def _in_table(key: str, table: str) -> str:
    return f"{key!r} in [{table}]" if table else repr(key)
