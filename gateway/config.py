"""The gateway's configuration: one strict TOML file, every key also a command-line option but for tables of names.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names file, key, reason and how to
mend it. Defaults are safe: the gateway listens on loopback only, and to listen elsewhere it wants TLS and keys.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.core.decision.policies.registry import needs_forecasts
from gateway.core.moves.rules.registry import make_move_rule
from gateway.core.router_config import RouterConfig
from gateway.policy_files import policy_name, policy_names_of
from gateway.scale.config import ScalingConfig
from protos.runtime.addresses import is_loopback, parse_address, parse_url
from protos.runtime.config import Address, FileName, check_key, load_config
from protos.runtime.tls_files import ClientTlsFiles, ServerTlsFiles

Positive = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})]

DNS_PREFIX = "dns:"
SRV_NAME = re.compile(r"(?=.{1,254}$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})+\.?")


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node: where its predictor listens."""

    address: str
    """host:port of the predictor, or dns:host:port for all that the host name resolves to."""
    name: str = ""
    """The name that the predictor must say; empty: whatever it says."""

    def __post_init__(self) -> None:
        prefix = DNS_PREFIX if self.address.strip().startswith(DNS_PREFIX) else ""
        # `dns:///host:port` is how gRPC's own clients write it.
        bare = self.address.strip().removeprefix(prefix).lstrip("/")
        msgspec.structs.force_setattr(self, "address", f"{prefix}{parse_address(bare)}")
        if self.is_name and self.name:
            raise ValueError(f"{self.address!r} may stand for several nodes: they cannot all be named {self.name!r}")

    @property
    def is_name(self) -> bool:
        """Whether it must be resolved."""
        return self.address.startswith(DNS_PREFIX)


class NodeTlsFiles(ClientTlsFiles, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """TLS of the sessions with nodes. Without `ca` they are not encrypted."""

    ca: FileName = ""
    """Authority of the nodes' certificates; empty: sessions with nodes are not encrypted."""
    server_name: Name = ""
    """Name that the nodes' certificates carry; empty: the host of each node's address."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cert and not self.ca:
            raise ValueError("cert needs ca: without it sessions with nodes are not encrypted")


class LengthsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where beliefs about answer lengths come from when clients send none."""

    model: Annotated[str, msgspec.Meta(extra={"option": "", "metavar": "NAME|FILE"})] = "hashed"
    """Length model for requests that bring no belief, by name (hashed, histogram) or by the path of its file; none: the
    same prior for every request."""
    deadline_s: Annotated[Positive, msgspec.Meta(extra={"option": "deadline-ms"})] = 0.02
    """How long to wait for that belief; later ones give way to the prior."""


class UiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The page for the person on call, at `/ui` of the HTTP front."""

    enabled: Annotated[bool | None, msgspec.Meta(extra={"option": ""})] = None
    """Serve the page for the person on call at /ui of the HTTP front, to whoever has an admin key where there are keys;
    without a word it is there when that front listens on loopback."""


class ExtProcConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Proxies that ask where to take their requests, by Envoy's external processing (ext_proc)."""

    listen: Address = ""
    """Address of the service that Envoy asks where to take each request (ext_proc); port 0 takes a free one, empty:
    none."""


class KubernetesNodesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes as the ready endpoints of a Service of Kubernetes."""

    service: Name = ""
    """Service whose pods are nodes; empty: none."""
    port: Name = ""
    """Its port at which predictors listen, by name; empty: the first."""
    server: Annotated[str, msgspec.Meta(extra={"metavar": "URL"})] = ""
    """URL of the API server; empty: that of the cluster in which the gateway runs."""
    namespace: Name = ""
    """Where the Service is; empty: the gateway's own namespace."""
    token_file: FileName = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    """File with the token of a service account that may list and watch endpointslices; read anew for each call."""
    ca_file: FileName = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    """File with the API server's authority."""


class DiscoveryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes that the gateway finds beside those that it is given."""

    dns_srv: Annotated[tuple[str, ...], msgspec.Meta(extra={"metavar": "NAME"})] = ()
    """DNS name whose SRV records are nodes, such as _astrolabe._tcp.example.org; repeat for more."""
    dns_server: Address = ""
    """Server to ask for them; empty: those of the system."""
    files: Annotated[tuple[str, ...], msgspec.Meta(extra={"metavar": "FILE"})] = ()
    """File that lists nodes and is looked at each second: Prometheus' file_sd (.json), a table with nodes (.toml) or an
    address a line; repeat for more."""
    kubernetes: KubernetesNodesConfig = KubernetesNodesConfig()
    """Pods of a Service."""

    def __post_init__(self) -> None:
        for name in self.dns_srv:
            if not SRV_NAME.fullmatch(name):
                raise ValueError(
                    f"key 'dns_srv': {name!r} is no DNS name; write for example _astrolabe._tcp.example.org"
                )
        if self.dns_server:
            check_key("dns_server", lambda: parse_address(self.dns_server, default_port=53))
        for key, names in (("dns_srv", self.dns_srv), ("files", self.files)):
            if len(set(names)) < len(names):
                raise ValueError(f"key '{key}': one is listed twice; remove it")


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway. On SIGHUP the nodes, their sources and the policy are read again, and the files of keys and
    certificates; the rest needs a restart."""

    listen: Address = "127.0.0.1:8200"
    """Address of the gRPC service; port 0 takes a free one."""
    http_listen: Address = "127.0.0.1:8201"
    """Address of the OpenAI-compatible HTTP front; port 0 takes a free one, empty: no such front."""
    ext_proc: ExtProcConfig = ExtProcConfig()
    """Proxies that take requests to engines themselves."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes behind these ports (a count)."""
    keys: FileName = ""
    """File of API keys (see astrolabe key), read again on SIGHUP; empty: nobody is asked for one."""
    tls: ServerTlsFiles = ServerTlsFiles()
    """TLS of both fronts."""
    node_tls: Annotated[NodeTlsFiles, msgspec.Meta(extra={"option": "node"})] = NodeTlsFiles()
    """TLS of the sessions with nodes."""
    ui: UiConfig = UiConfig()
    """The page for the person on call."""
    insecure: bool = False
    """Listen beyond this machine although connections are not encrypted or callers not known."""
    stream_comment_s: Annotated[float, msgspec.Meta(ge=0)] = 2.0
    """How long a streamed HTTP answer may take to begin before its client gets headers and a comment, once a node has
    it, and how often from then on; 0: never."""
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 8 * 1024 * 1024
    """Longest body of an HTTP request and longest gRPC message."""
    max_call_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 64 * 1024 * 1024
    """Longest body of an HTTP request that is handed on to its engine as it is."""
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    """Longest prompt."""
    nodes: Annotated[tuple[str | NodeEntry, ...], msgspec.Meta(extra={"metavar": "HOST:PORT"})] = ()
    """Address of a node's predictor; dns:host:port for all that a name resolves to; repeat for each node. In a file
    also {address = "host:port", name = "..."}."""
    dns_interval_s: Annotated[float, msgspec.Meta(ge=0.1)] = 5.0
    """Pause between lookups of names among the nodes."""
    discovery: DiscoveryConfig = DiscoveryConfig()
    """Nodes that are found."""
    router: Annotated[RouterConfig, msgspec.Meta(extra={"option": ""})] = RouterConfig()
    """How requests are placed."""
    policy_files: Annotated[tuple[str, ...], msgspec.Meta(extra={"metavar": "FILE"})] = ()
    """Python file with a policy of your own, to choose by name while the gateway runs; repeat for more. It is run: name
    only files that you trust."""
    scaling: ScalingConfig = ScalingConfig()
    """How many nodes there are, and when."""
    tokenizer: Name = "auto"
    """Turns text into token ids and back: qwen2, bytes, a model's folder; auto: qwen2 when installed, else bytes."""
    tokenizer_models: Annotated[tuple[str, ...], msgspec.Meta(extra={"metavar": "NAME"})] = ()
    """Model that the tokenizer is of, by its engine's own name; repeat for more. Calls for others, which are handed on
    as they are, have their prompts counted by an engine's server. None: it is that of all."""
    count_within_s: Annotated[float, msgspec.Meta(ge=0, extra={"option": "count-within-ms"})] = 0.1
    """How long to wait for that count, or for that of a prompt that the chat template refuses, before the prompt is
    taken for as long as it looks; 0: never ask."""
    lengths: LengthsConfig = LengthsConfig()
    """Beliefs about answer lengths."""
    max_buffered_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16384
    """Tokens that may wait for one slow client before its request is ended."""
    keepalive_s: Annotated[float, msgspec.Meta(ge=0.1)] = 2.0
    """Pause between probes of a silent node connection, and longest wait for the answer."""
    min_ping_interval_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """How often gRPC clients and proxies may ping to keep a connection; 0: as often as they like."""
    reconnect_max_s: Positive = 3.0
    """Longest pause between attempts to reach a node."""
    lame_duck_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Longest time that a gateway told to stop still takes requests, while clients that look at its health go
    elsewhere; over as soon as none came for a fifth of it."""
    drain_grace_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """What running requests get to finish at shutdown, and on a node taken out of the configuration."""
    gateway_id: Name = ""
    """Name in the nodes' logs; empty: host name and process id."""
    otlp_endpoint: Annotated[str, msgspec.Meta(extra={"metavar": "URL"})] = ""
    """OpenTelemetry collector (OTLP/HTTP) for the spans of requests, for example http://127.0.0.1:4318/v1/traces;
    empty: no spans."""
    record: FileName = ""
    """File for the decision log (JSON lines); a scaler's is beside it, its name ending in .scaling; empty: none."""
    ready_file: FileName = ""
    """File that gets one JSON line with the bound address when the gateway serves."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written."""

    def __post_init__(self) -> None:
        check_key("listen", lambda: parse_address(self.listen, any_port=True))
        if self.http_listen:
            check_key("http_listen", lambda: parse_address(self.http_listen, any_port=True))
        if self.ext_proc.listen:
            check_key("ext_proc.listen", self._check_ext_proc)
        self._check_exposure()
        seen: set[str] = set()
        for position, entry in enumerate(self.nodes):
            if isinstance(entry, str):
                check_key(f"nodes[{position}]", partial(NodeEntry, address=entry))
                entry = NodeEntry(address=entry)
            address = entry.address
            if address in seen:
                raise ValueError(f"key 'nodes[{position}]': {address} is listed twice; remove one")
            seen.add(address)
        if self.otlp_endpoint:
            check_key("otlp_endpoint", lambda: parse_url(self.otlp_endpoint, default_port=4318))
        check_key("policy_files", lambda: policy_names_of(self.policy_files))
        check_key("router.policy", lambda: policy_name(self.router.policy))
        check_key("router.fallback", self._check_fallback)
        check_key("router.moves.rule", lambda: make_move_rule(self.router.moves, random.Random(0)))
        check_key("router.moves.transfer", self._check_transfer)
        if self.scaling.is_on and self.workers > 1 and not self.scaling.is_shared:
            key = "dry_run" if self.scaling.dry_run else "lease_s = 0"
            raise ValueError(
                f"key 'workers': is {self.workers}, and with {key} in [scaling] each process would scale by itself: "
                "set it to 1, or take that key out"
            )

    def _check_ext_proc(self) -> None:
        if parse_address(self.ext_proc.listen, any_port=True).port == 0 and self.workers > 1:
            raise ValueError(f"{self.workers} workers cannot each take a free port; give it a number")

    def _check_exposure(self) -> None:
        is_safe = bool(self.tls.cert and (self.keys or self.tls.client_ca))
        own = (self.listen, self.http_listen, self.ext_proc.listen)
        for key, address in zip(("'listen'", "'http_listen'", "'listen' in [ext_proc]"), own, strict=True):
            if address and not is_safe and not self.insecure and not is_loopback(parse_address(address, any_port=True)):
                raise ValueError(
                    f"key {key}: {address} can be reached from other machines; set cert and key in [tls], and keys "
                    "(or client_ca in [tls]), or say insecure = true (--insecure) where the network is trusted"
                )

    def _check_transfer(self) -> None:
        if self.router.moves.transfer is not None and not self.router.moves.transfer.overlap:
            raise ValueError("overlap = false is for simulated runs: no engine stops a request to have its KV fetched")

    def _check_fallback(self) -> None:
        if needs_forecasts(self.router.fallback):
            raise ValueError(f"{self.router.fallback!r} needs forecasts itself; choose for example 'least_requests'")

    @property
    def shows_ui(self) -> bool:
        """Whether the page for the person on call is served."""
        if self.ui.enabled is not None:
            return self.ui.enabled and bool(self.http_listen)
        return bool(self.http_listen) and is_loopback(parse_address(self.http_listen, any_port=True))

    def entries(self) -> tuple[NodeEntry, ...]:
        return tuple(NodeEntry(address=n) if isinstance(n, str) else n for n in self.nodes)


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> GatewayConfig:
    """The file's tables (none without a file) with `overrides`, of the same form, on top. Raises ConfigError."""
    return load_config(GatewayConfig, path, overrides)
