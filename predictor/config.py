"""The predictor's configuration: one strict TOML file, every key also a command-line option.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names where, key, reason and how
to mend it. Defaults are safe: loopback only.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from protos.runtime.addresses import is_loopback, parse_address, parse_kv_source, parse_url
from protos.runtime.config import Address, ConfigError, FileName, check_key, load_config
from protos.runtime.secret import NO_SECRET, Secret, checked_secret
from protos.runtime.text_files import FOREIGN_BYTES, TextFileError, read_text
from protos.runtime.tls_files import ClientTlsFiles, ServerTlsFiles

if TYPE_CHECKING:
    from simcore.cost.step_time import StepTimeModel
    from simcore.types import EngineConfig

ENGINE_KEY_VARIABLE = "ASTROLABE_ENGINE_API_KEY"

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})]
ProfileName = Annotated[str, msgspec.Meta(extra={"metavar": "GPU/MODEL"})]


class EngineSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine that the daemon stands beside: its dialect, and for one that runs by itself where it is."""

    dialect: Annotated[str, msgspec.Meta(extra={"option": "", "metavar": "NAME"})] = "emulated"
    """Engine dialect: emulated, vllm or openai_metrics."""
    url: Annotated[str, msgspec.Meta(extra={"metavar": "URL"})] = ""
    """HTTP server of an engine that runs by itself (vllm), with or without /v1; empty: http://127.0.0.1:8000."""
    address: Address = ""
    """host:port at which proxies (Envoy) reach the engine's HTTP server; empty: the host that the daemon listens on,
    and the port of that server."""
    kv_source: Address = ""
    """Where engines of other nodes fetch KV that this one holds, and it fetches theirs. URL of its API server: vLLM's
    NixlConnector, all engines with one API key; host:port: OffloadingConnector with a `p2p` tier, at its side channel.
    Requests that move are then fetched, if the gateway has [router.moves.transfer]; empty: they are computed anew."""
    trace: Annotated[str, msgspec.Meta(extra={"metavar": "ADDRESS"})] = ""
    """Where that engine serves its trace (unix:/path or tcp:127.0.0.1:port); empty: as follows from its URL."""
    tls: Annotated[ClientTlsFiles, msgspec.Meta(extra={"option": ""})] = ClientTlsFiles()
    """TLS to an https URL; without `ca` the system's authorities are trusted."""
    api_key: Annotated[str, msgspec.Meta(extra={"metavar": "KEY"})] = ""
    """API key that the engine asks for. Processes' lists show it: rather give it in api_key_file, or in the environment
    as ASTROLABE_ENGINE_API_KEY."""
    api_key_file: FileName = ""
    """File with that key."""
    wait_s: Positive = 600.0
    """How long the daemon waits for an engine that is not up yet."""
    own_chats: bool = False
    """Whether its server alone words chats: one with a chat template, a parser or a default of its own that the gateway
    cannot know. Its chats are handed on as they are; vLLM's --reasoning-parser is seen without this."""
    models_every_s: Positive = 10.0
    """Time between two looks at what the engine serves (/v1/models), give or take a fifth."""

    def __post_init__(self) -> None:
        if self.api_key and self.api_key_file:
            raise ValueError("api_key and api_key_file are both set; keep one of them")
        if self.api_key:
            msgspec.structs.force_setattr(self, "api_key", checked_secret(self.api_key))

    def key(self, environ: Mapping[str, str]) -> Secret:
        """The engine's API key, from the configuration, else from the environment; empty: none. Raises ConfigError."""
        if self.api_key:
            return Secret(self.api_key)
        where, read = f"key 'api_key_file' in [engine]: {self.api_key_file}", partial(_key_in, Path(self.api_key_file))
        if not self.api_key_file:
            if not environ.get(ENGINE_KEY_VARIABLE):
                return NO_SECRET
            where, read = ENGINE_KEY_VARIABLE, partial(environ.__getitem__, ENGINE_KEY_VARIABLE)
        try:
            return checked_secret(read())
        except TextFileError as bad:
            raise ConfigError(f"{where}: {bad.reason}; name a file with the engine's key") from None
        except ValueError as bad:
            raise ConfigError(f"{where}: {bad}") from None


def _key_in(path: Path) -> str:
    """Raises TextFileError."""
    text = read_text(path)
    if FOREIGN_BYTES.search(text):
        raise TextFileError(path, "it is no text", "Is it the right file?")
    return text


class EmulatedEngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an emulated engine is: its hardware and its scheduler's limits. Other engines tell their own."""

    profile: Annotated[ProfileName, msgspec.Meta(extra={"option": "engine-profile"})] = ""
    """Profile of the hardware that an emulated engine pretends to be, unknown to the predictor; empty: its own."""
    max_num_seqs: Count = 256
    """Requests in one batch (a count)."""
    max_num_batched_tokens: Count = 2048
    """Token budget of one step."""
    block_size_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens per KV block; 0: the profile's."""
    num_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    """KV blocks that requests can hold (a count); 0: as many as the profile's memory gives."""
    max_model_len_tokens: Count = 4096
    """Prompt plus answer limit."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order of the engine's waiting queue."""
    prefix_caching: bool = True
    """Whether what prompts begin with is kept and found again."""
    http_listen: Annotated[Address, msgspec.Meta(extra={"option": "engine-http-listen"})] = ""
    """Address at which an emulated engine serves vLLM's HTTP API itself, for proxies; empty: nowhere."""
    warm_tokenizer: bool = False
    """Load an emulated engine's tokenizer at start; else the first call that is handed on waits for it."""
    time_scale: Positive = 1.0
    """How much faster than its profile an emulated engine runs (a ratio)."""


class PredictorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One predictor process and, with an embedded engine, that engine. On SIGHUP the files of certificates are read
    again; any other change needs a restart."""

    node_id: Name = ""
    """Name of the node, unique among a gateway's nodes; empty: the address it listens on."""
    listen: Address = "127.0.0.1:8100"
    """Address of the gRPC services; port 0 takes a free one."""
    metrics_listen: Address = ""
    """Address of the page for Prometheus; port 0 takes a free one, empty: none."""
    tls: ServerTlsFiles = ServerTlsFiles()
    """TLS of the gRPC services; the clients are gateways."""
    insecure: bool = False
    """Listen beyond this machine although connections are not encrypted or gateways not known."""
    engine: EngineSource = EngineSource()
    """The engine of this node."""
    emulated: Annotated[EmulatedEngineConfig, msgspec.Meta(extra={"option": ""})] = EmulatedEngineConfig()
    """What it is when it is emulated."""
    profile: ProfileName = "a30/llama-2-7b"
    """Step-time profile, or a JSON file of your own; while the daemon calibrates, only where learning begins."""
    calibrate: bool = True
    """Learn the step times from the engine's trace."""
    model: Name = ""
    """Model name that clients say; empty: the profile's."""
    tokenizer: Name = "auto"
    """Whose token ids the engine speaks: qwen2, bytes, a model's folder, or auto (qwen2 when installed, else bytes)."""
    reservation_ttl_s: Positive = 30.0
    """How long a dispatched request counts before it must have shown up in the trace."""
    scenarios: Annotated[int, msgspec.Meta(ge=1, le=256)] = 8
    """Futures simulated per what-if when answer lengths are not known (a count)."""
    otlp_endpoint: Annotated[str, msgspec.Meta(extra={"metavar": "URL"})] = ""
    """OpenTelemetry collector (OTLP/HTTP) for one span per request, for example http://127.0.0.1:4318/v1/traces; empty:
    no spans."""
    ready_file: FileName = ""
    """File that gets one JSON line with the bound address when the node serves."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""

    def __post_init__(self) -> None:
        # The simulator's compiled parts take a second to import: --help needs the fields only.
        from engine_adapters.profile_file import load_any_profile
        from engine_adapters.registry import check_name
        from engine_adapters.tokenizer import tokenizer_info

        check_key("listen", lambda: parse_address(self.listen, any_port=True))
        is_safe = self.insecure or bool(self.tls.client_ca)
        if not is_safe and not is_loopback(parse_address(self.listen, any_port=True)):
            raise ValueError(
                f"key 'listen': {self.listen} can be reached from other machines; set cert, key and client_ca in "
                "[tls], or say insecure = true (--insecure) where the network is trusted"
            )
        if self.metrics_listen:
            check_key("metrics_listen", lambda: parse_address(self.metrics_listen, any_port=True))
        if self.engine.address:
            check_key("engine.address", lambda: parse_address(self.engine.address))
        if self.engine.kv_source:
            check_key("engine.kv_source", lambda: parse_kv_source(self.engine.kv_source))
        if served := self.emulated.http_listen:
            check_key("emulated.http_listen", lambda: parse_address(served, any_port=True))
            if not self.insecure and not is_loopback(parse_address(served, any_port=True)):
                raise ValueError(
                    f"key 'http_listen' in [emulated]: {served} can be reached from other machines, and is neither "
                    "encrypted nor asks for keys; say insecure = true (--insecure) where the network is trusted"
                )
        if self.otlp_endpoint:
            check_key("otlp_endpoint", lambda: parse_url(self.otlp_endpoint, default_port=4318))
        if self.engine.url:
            check_key("engine.url", lambda: parse_url(self.engine.url))
        check_key("engine.dialect", lambda: check_name(self.engine.dialect))
        check_key("profile", lambda: load_any_profile(self.profile))
        if self.emulated.profile:
            check_key("emulated.profile", lambda: load_any_profile(self.emulated.profile))
        if self.tokenizer != "auto":
            check_key("tokenizer", lambda: tokenizer_info(self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        from engine_adapters.tokenizer import default_tokenizer

        return default_tokenizer() if self.tokenizer == "auto" else self.tokenizer

    def step_time(self, *, async_scheduling: bool = False) -> StepTimeModel:
        """The profile's step-time model, at its own speed."""
        from engine_adapters.profile_file import load_any_profile

        return load_any_profile(self.profile).step_time_model(async_scheduling=async_scheduling)

    def engine_step_time(self) -> StepTimeModel:
        """What an emulated engine pretends to be, at its own speed."""
        from engine_adapters.profile_file import load_any_profile

        return load_any_profile(self.emulated.profile or self.profile).step_time_model()

    def engine_config(self) -> EngineConfig:
        """Limits of an embedded engine."""
        from engine_adapters.profile_file import load_any_profile
        from simcore.types import EngineConfig

        emulated = self.emulated
        profile = load_any_profile(emulated.profile or self.profile)
        kv = profile.kv
        block_size_tokens = emulated.block_size_tokens or kv.block_size_tokens
        return EngineConfig(
            model=self.model or profile.served_name,
            max_num_seqs=emulated.max_num_seqs,
            max_num_batched_tokens=emulated.max_num_batched_tokens,
            block_size_tokens=block_size_tokens,
            num_blocks=emulated.num_blocks or max(1, kv.num_blocks * kv.block_size_tokens // block_size_tokens),
            max_model_len_tokens=emulated.max_model_len_tokens,
            scheduling_policy=emulated.scheduling_policy,
            enable_prefix_caching=emulated.prefix_caching,
            engine=self.engine.dialect,
        )


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> PredictorConfig:
    """The file's tables (none without a file) with `overrides`, of the same form, on top. Raises ConfigError."""
    return load_config(PredictorConfig, path, overrides)
