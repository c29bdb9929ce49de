"""A process's configuration: one strict TOML file into a struct, and the addresses in it. Shell code.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names file, key, reason and how to
mend it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

Config = TypeVar("Config", bound=msgspec.Struct)

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/]+):(?P<port>\d{1,5})")


class ConfigError(Exception):
    """The configuration cannot be used. The message says what, where and how to mend it."""


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, any_port: bool = False) -> HostPort:
    """`host:port` or `[ipv6]:port`; port 0 only with `any_port`. Raises ValueError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not host:port; write for example 127.0.0.1:8100")
    port = int(match["port"])
    if not (0 if any_port else 1) <= port <= 65535:
        raise ValueError(f"{text!r}: the port must be between {0 if any_port else 1} and 65535")
    return HostPort(match["host"].strip("[]"), port)


def is_loopback(address: HostPort) -> bool:
    """Whether only this machine reaches it."""
    return address.host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", address.host) is not None


def load_config(kind: type[Config], path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """A `kind` from the file's keys (none without a file) with `overrides`, keyed alike, on top. Raises ConfigError."""
    values = _read(Path(path)) if path else {}
    if path:
        _convert(kind, values, where=str(path))
    return _convert(kind, {**values, **(overrides or {})}, where="command line")


def check_key(key: str, test: Callable[[], object]) -> None:
    """Runs a check of one key's value; what it raises becomes a ValueError that names the key."""
    try:
        test()
    except Exception as bad:
        raise ValueError(f"key '{key}': {bad}") from None


def check_pair(cert: str, key: str, *, prefix: str) -> None:
    """Raises ValueError when only one of the two is given. `prefix`: that of their configuration keys."""
    if bool(cert) is not bool(key):
        missing = f"{prefix}_key" if cert else f"{prefix}_cert"
        raise ValueError(f"key '{missing}': a certificate and its key belong together; set both or neither")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as bad:
        raise ConfigError(f"{path}: cannot be read: {bad}") from None
    except tomllib.TOMLDecodeError as bad:
        raise ConfigError(f"{path}: is not valid TOML: {bad}; see https://toml.io for the notation") from None


def _convert(kind: type[Config], values: Mapping[str, Any], *, where: str) -> Config:
    known = kind.__struct_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return msgspec.convert(dict(values), kind, strict=True)
    except msgspec.ValidationError as bad:
        raise ConfigError(f"{where}: {_with_key(str(bad))}") from None


def _with_key(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.seed`" with the key in front, as in our own messages."""
    text, _, place = message.partition(" - at `$")
    key = place.strip(".`")
    reason = text.replace("`", "'")
    return f"key '{key}': {reason[:1].lower()}{reason[1:]}" if key else reason
