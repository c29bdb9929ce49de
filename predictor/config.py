"""The predictor's configuration: one strict TOML file, every key also a command-line option.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names where, key, reason and how
to mend it. Defaults are safe: loopback only.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from engine_adapters.registry import check_name
from engine_adapters.tokenizer import default_tokenizer, tokenizer_info
from simcore.cost.shipped import load_profile
from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^:\[\]\s/]+):(?P<port>\d{1,5})")


class ConfigError(Exception):
    """The configuration or the address cannot be used. The message says what, where and how to mend it."""


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PredictorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One predictor process and, with an embedded engine, that engine. A change needs a restart."""

    node_id: str = ""
    """Name of the node, unique among a gateway's nodes; empty: the address it listens on."""
    listen: str = "127.0.0.1:8100"
    """host:port of the gRPC services; port 0 takes a free one."""
    engine: str = "emulated"
    """Engine dialect."""
    engine_url: str = ""
    """HTTP server of an engine that runs by itself (vllm); empty: http://127.0.0.1:8000."""
    engine_trace: str = ""
    """Where that engine serves its trace (unix:/path or tcp:127.0.0.1:port); empty: as follows from engine_url."""
    engine_wait_s: Positive = 600.0
    """Seconds for which the daemon waits for an engine that is not up yet."""
    profile: str = "a30/llama-2-7b"
    """Step-time profile, as gpu/model; with `calibrate` only where learning begins."""
    calibrate: bool = True
    """Learn the step times from the engine's trace."""
    engine_profile: str = ""
    """Profile of the hardware that an emulated engine pretends to be, unknown to the predictor; empty: `profile`."""
    model: str = ""
    """Model name that clients say; empty: the profile's."""
    tokenizer: str = "auto"
    """Whose token ids the engine speaks; auto: qwen2 when installed, else bytes."""
    max_num_seqs: Count = 256
    """Requests in one batch (a count)."""
    max_num_batched_tokens: Count = 2048
    """Token budget of one step, in tokens."""
    block_size_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens per KV block; 0: the profile's."""
    num_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    """KV blocks that requests can hold (a count); 0: as many as the profile's memory gives."""
    max_model_len_tokens: Count = 4096
    """Prompt plus answer limit, in tokens."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the engine's waiting queue."""
    time_scale: Positive = 1.0
    """How much faster than its profile an emulated engine runs (a ratio)."""
    reservation_ttl_s: Positive = 30.0
    """Seconds for which a dispatched request counts before it must have shown up in the trace."""
    scenarios: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Futures simulated per what-if when answer lengths are not known (a count)."""
    ready_file: str = ""
    """File that gets one JSON line with the bound address when the node serves."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        _check("listen", lambda: parse_address(self.listen))
        _check("engine", lambda: check_name(self.engine))
        _check("profile", lambda: load_profile(self.profile))
        if self.engine_profile:
            _check("engine_profile", lambda: load_profile(self.engine_profile))
        if self.tokenizer != "auto":
            _check("tokenizer", lambda: tokenizer_info(self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        return default_tokenizer() if self.tokenizer == "auto" else self.tokenizer

    def step_time(self) -> StepTimeModel:
        """The profile's step-time model, at its own speed."""
        return load_profile(self.profile).step_time_model()

    def engine_step_time(self) -> StepTimeModel:
        """What an emulated engine pretends to be, at its own speed."""
        return load_profile(self.engine_profile or self.profile).step_time_model()

    def engine_config(self) -> EngineConfig:
        """Limits of an embedded engine."""
        profile = load_profile(self.engine_profile or self.profile)
        kv = profile.kv
        block_size_tokens = self.block_size_tokens or kv.block_size_tokens
        return EngineConfig(
            model=self.model or profile.name.partition("/")[2],
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            block_size_tokens=block_size_tokens,
            num_blocks=self.num_blocks or max(1, kv.num_blocks * kv.block_size_tokens // block_size_tokens),
            max_model_len_tokens=self.max_model_len_tokens,
            scheduling_policy=self.scheduling_policy,
            engine=self.engine,
        )


def parse_address(text: str) -> HostPort:
    """`host:port` or `[ipv6]:port`. Raises ValueError."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not host:port; write for example 127.0.0.1:8100")
    port = int(match["port"])
    if port > 65535:
        raise ValueError(f"{text!r}: the port must be between 0 and 65535")
    return HostPort(match["host"].strip("[]"), port)


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> PredictorConfig:
    """The file's keys (none without a file) with `overrides`, keyed alike, on top. Raises ConfigError."""
    values = _read(Path(path)) if path else {}
    if path:
        _convert(values, where=str(path))
    return _convert({**values, **(overrides or {})}, where="command line")


def _check(key: str, test: Callable[[], object]) -> None:
    try:
        test()
    except Exception as bad:
        raise ValueError(f"key '{key}': {bad}") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML file") from None
    except (OSError, UnicodeDecodeError) as bad:
        raise ConfigError(f"{path}: cannot be read: {bad}") from None
    except tomllib.TOMLDecodeError as bad:
        raise ConfigError(f"{path}: is not valid TOML: {bad}; see https://toml.io for the notation") from None


def _convert(values: Mapping[str, Any], *, where: str) -> PredictorConfig:
    known = PredictorConfig.__struct_fields__
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {key!r}; {hint}")
    try:
        return msgspec.convert(dict(values), PredictorConfig, strict=True)
    except msgspec.ValidationError as bad:
        raise ConfigError(f"{where}: {_with_key(str(bad))}") from None


def _with_key(message: str) -> str:
    """msgspec's "Expected `int`, got `str` - at `$.scenarios`" with the key in front, as in our own messages."""
    text, _, place = message.partition(" - at `$")
    key = place.strip(".`")
    reason = text.replace("`", "'")
    return f"key '{key}': {reason[:1].lower()}{reason[1:]}" if key else reason
