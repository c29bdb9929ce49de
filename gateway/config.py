"""The gateway's configuration: one strict TOML file, every key also a command-line option.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names file, key, reason and how to
mend it. Defaults are safe: the gateway listens on loopback only and calls are not authenticated.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from gateway.core.policies.registry import PolicyError, make_policy
from gateway.core.router import RouterConfig

Positive = Annotated[float, msgspec.Meta(gt=0)]

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/]+):(?P<port>\d{1,5})")


class ConfigError(Exception):
    """The configuration cannot be used. The message says what, where and how to mend it."""


class HostPort(NamedTuple):
    host: str
    port: int


def parse_address(text: str, *, any_port: bool = False) -> HostPort:
    """`host:port` or `[ipv6]:port`; port 0 only with `any_port`. Raises ValueError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not host:port; write for example 127.0.0.1:8100")
    port = int(match["port"])
    if not (0 if any_port else 1) <= port <= 65535:
        raise ValueError(f"{text!r}: the port must be between {0 if any_port else 1} and 65535")
    return HostPort(match["host"].strip("[]"), port)


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node: where its predictor listens."""

    address: str
    """host:port of the predictor."""
    name: str = ""
    """The name that the predictor must say; empty: whatever it says."""

    def __post_init__(self) -> None:
        parse_address(self.address)


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway process. `nodes`, `policy` are read again on SIGHUP; the rest needs a restart."""

    listen: str = "127.0.0.1:8200"
    """host:port of the gRPC service; port 0 takes a free one."""
    nodes: tuple[str | NodeEntry, ...] = ()
    """Predictors: "host:port", or {address = "host:port", name = "..."}."""
    policy: str = "min_total_latency"
    sample: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Nodes drawn at random per decision (a count); 0: the policy's own default."""
    seed: int = 0
    """Of all random choices of the router."""
    forecast_timeout_ms: Positive = 50.0
    """Milliseconds to wait for forecasts before choosing without the missing ones."""
    fallback: str = "least_requests"
    """Policy when no forecast came."""
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Placements of one request, the first included (a count)."""
    state_stale_s: Positive = 5.0
    """Seconds after which a node's state is no longer believed."""
    tokenizer: str = "auto"
    """Turns text into token ids and back; auto: qwen2 when installed, else bytes."""
    max_buffered_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16384
    """Tokens that may wait for one slow client before its request is ended."""
    keepalive_s: Annotated[float, msgspec.Meta(ge=0.1)] = 2.0
    """Seconds between probes of a silent node connection, and of waiting for the answer."""
    reconnect_max_s: Positive = 3.0
    """Longest pause between attempts to reach a node, in seconds."""
    drain_grace_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Seconds that running requests get to finish at shutdown, and on a node taken out of the configuration."""
    gateway_id: str = ""
    """Name in the nodes' logs; empty: host name and process id."""
    record: str = ""
    """File for the decision log (JSON lines); empty: none."""
    ready_file: str = ""
    """File that gets one JSON line with the bound address when the gateway serves."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        _check("listen", lambda: parse_address(self.listen, any_port=True))
        seen: set[str] = set()
        for position, entry in enumerate(self.nodes):
            address = entry if isinstance(entry, str) else entry.address
            _check(f"nodes[{position}]", lambda address=address: parse_address(address))
            if address in seen:
                raise ValueError(f"key 'nodes[{position}]': {address} is listed twice; remove one")
            seen.add(address)
        _check("policy", lambda: make_policy(self.policy))
        _check("fallback", self._check_fallback)

    def _check_fallback(self) -> None:
        if make_policy(self.fallback).needs_forecasts:
            raise ValueError(f"{self.fallback!r} needs forecasts itself; choose for example 'least_requests'")

    def entries(self) -> tuple[NodeEntry, ...]:
        return tuple(NodeEntry(address=n) if isinstance(n, str) else n for n in self.nodes)

    def router(self) -> RouterConfig:
        """What the router core needs of it."""
        return RouterConfig(
            policy=self.policy,
            sample=self.sample,
            seed=self.seed,
            forecast_timeout_s=self.forecast_timeout_ms / 1000,
            fallback=self.fallback,
            max_attempts=self.max_attempts,
            state_stale_s=self.state_stale_s,
        )


def _check(key: str, test: Any) -> None:
    try:
        test()
    except (ValueError, PolicyError) as bad:
        raise ValueError(f"key '{key}': {bad}") from None


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> GatewayConfig:
    """The file's keys (none without a file) with `overrides`, keyed alike, on top. Raises ConfigError."""
    values = _read(Path(path)) if path else {}
    if path:
        _convert(values, where=str(path))
    return _convert({**values, **(overrides or {})}, where="command line")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as bad:
        raise ConfigError(f"{path}: cannot be read: {bad}") from None
    except tomllib.TOMLDecodeError as bad:
        raise ConfigError(f"{path}: is not valid TOML: {bad}; see https://toml.io for the notation") from None


def _convert(values: Mapping[str, Any], *, where: str) -> GatewayConfig:
    known = GatewayConfig.__struct_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return msgspec.convert(dict(values), GatewayConfig, strict=True)
    except msgspec.ValidationError as bad:
        raise ConfigError(f"{where}: {_with_key(str(bad))}") from None


def _with_key(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.seed`" with the key in front, as in our own messages."""
    text, _, place = message.partition(" - at `$")
    key = place.strip(".`")
    reason = text.replace("`", "'")
    return f"key '{key}': {reason[:1].lower()}{reason[1:]}" if key else reason
