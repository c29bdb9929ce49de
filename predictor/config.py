"""The predictor's configuration: one strict TOML file, every key also a command-line option.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names where, key, reason and how
to mend it. Defaults are safe: loopback only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from engine_adapters.registry import check_name
from engine_adapters.tokenizer import default_tokenizer, tokenizer_info
from predictor.profile_file import load_any_profile
from protos.runtime.config import check_key, check_pair, is_loopback, load_config, parse_address
from simcore.cost.step_time import StepTimeModel
from simcore.types import EngineConfig

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]


class PredictorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One predictor process and, with an embedded engine, that engine. A change needs a restart."""

    node_id: str = ""
    """Name of the node, unique among a gateway's nodes; empty: the address it listens on."""
    listen: str = "127.0.0.1:8100"
    """host:port of the gRPC services; port 0 takes a free one."""
    metrics_listen: str = ""
    """host:port of the page for Prometheus; port 0 takes a free one, empty: none."""
    tls_cert: str = ""
    """PEM certificate of the node; empty: no TLS."""
    tls_key: str = ""
    """Its key."""
    tls_client_ca: str = ""
    """Gateways must show a certificate of this authority; empty: they need none."""
    insecure: bool = False
    """Listen beyond this machine although connections are not encrypted or gateways not known."""
    engine: str = "emulated"
    """Engine dialect."""
    engine_url: str = ""
    """HTTP server of an engine that runs by itself (vllm); empty: http://127.0.0.1:8000."""
    engine_trace: str = ""
    """Where that engine serves its trace (unix:/path or tcp:127.0.0.1:port); empty: as follows from engine_url."""
    engine_ca: str = ""
    """Authority of the certificate of an https engine_url; empty: the system's."""
    engine_cert: str = ""
    """What the daemon shows to an engine that asks for a certificate."""
    engine_key: str = ""
    """Its key."""
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
        check_key("listen", lambda: parse_address(self.listen, any_port=True))
        check_pair(self.tls_cert, self.tls_key, prefix="tls")
        check_pair(self.engine_cert, self.engine_key, prefix="engine")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("key 'tls_client_ca': needs tls_cert and tls_key")
        is_safe = self.insecure or bool(self.tls_client_ca)
        if not is_safe and not is_loopback(parse_address(self.listen, any_port=True)):
            raise ValueError(
                f"key 'listen': {self.listen} can be reached from other machines; set tls_cert, tls_key and "
                "tls_client_ca, or say insecure = true (--insecure) where the network is trusted"
            )
        if self.metrics_listen:
            check_key("metrics_listen", lambda: parse_address(self.metrics_listen, any_port=True))
        check_key("engine", lambda: check_name(self.engine))
        check_key("profile", lambda: load_any_profile(self.profile))
        if self.engine_profile:
            check_key("engine_profile", lambda: load_any_profile(self.engine_profile))
        if self.tokenizer != "auto":
            check_key("tokenizer", lambda: tokenizer_info(self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        return default_tokenizer() if self.tokenizer == "auto" else self.tokenizer

    def step_time(self) -> StepTimeModel:
        """The profile's step-time model, at its own speed."""
        return load_any_profile(self.profile).step_time_model()

    def engine_step_time(self) -> StepTimeModel:
        """What an emulated engine pretends to be, at its own speed."""
        return load_any_profile(self.engine_profile or self.profile).step_time_model()

    def engine_config(self) -> EngineConfig:
        """Limits of an embedded engine."""
        profile = load_any_profile(self.engine_profile or self.profile)
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


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> PredictorConfig:
    """The file's keys (none without a file) with `overrides`, keyed alike, on top. Raises ConfigError."""
    return load_config(PredictorConfig, path, overrides)
