"""The gateway's configuration: one strict TOML file, every key also a command-line option.

An unknown key, a wrong type, a bad value or malformed TOML is one `ConfigError` that names file, key, reason and how to
mend it. Defaults are safe: the gateway listens on loopback only, and to listen elsewhere it wants TLS and keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from gateway.core.decision.policies.registry import needs_forecasts
from gateway.core.queue.queue import HoldConfig, HoldOrder, HoldWhen
from gateway.core.router import RouterConfig
from gateway.policy_files import policy_name, policy_names_of
from protos.runtime.config import check_key, check_pair, is_loopback, load_config, parse_address

Positive = Annotated[float, msgspec.Meta(gt=0)]

DNS_PREFIX = "dns:"


class NodeEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node: where its predictor listens."""

    address: str
    """host:port of the predictor, or dns:host:port for all that the host name resolves to."""
    name: str = ""
    """The name that the predictor must say; empty: whatever it says."""

    def __post_init__(self) -> None:
        parse_address(self.address.removeprefix(DNS_PREFIX))
        if self.is_name and self.name:
            raise ValueError(f"{self.address!r} may stand for several nodes: they cannot all be named {self.name!r}")

    @property
    def is_name(self) -> bool:
        """Whether it must be resolved."""
        return self.address.startswith(DNS_PREFIX)


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway. On SIGHUP `nodes` and `policy` are read again, and the files of keys and certificates; the rest
    needs a restart."""

    listen: str = "127.0.0.1:8200"
    """host:port of the gRPC service; port 0 takes a free one."""
    http_listen: str = "127.0.0.1:8201"
    """host:port of the OpenAI-compatible HTTP front; port 0 takes a free one, empty: no such front."""
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    """Processes behind these ports (a count)."""
    keys: str = ""
    """File of API keys (`astrolabe key`), read again on SIGHUP; empty: nobody is asked for one."""
    tls_cert: str = ""
    """PEM certificate of both fronts, read again on SIGHUP; empty: no TLS."""
    tls_key: str = ""
    """Its key."""
    tls_client_ca: str = ""
    """Clients must show a certificate of this authority; empty: they need none."""
    node_ca: str = ""
    """Authority of the nodes' certificates; empty: sessions with nodes are not encrypted."""
    node_server_name: str = ""
    """Name that the nodes' certificates carry; empty: the host of each node's address."""
    node_cert: str = ""
    """What the gateway shows to nodes that ask for a certificate."""
    node_key: str = ""
    """Its key."""
    insecure: bool = False
    """Listen beyond this machine although connections are not encrypted or callers not known."""
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1024)] = 8 * 1024 * 1024
    """Longest body of an HTTP request and longest gRPC message, in bytes."""
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=1)] = 1_048_576
    """Longest prompt, in tokens."""
    nodes: tuple[str | NodeEntry, ...] = ()
    """Predictors: "host:port", or {address = "host:port", name = "..."}; "dns:host:port" for all of a name."""
    dns_interval_s: Annotated[float, msgspec.Meta(ge=0.1)] = 5.0
    """Seconds between lookups of names among the nodes."""
    policy: str = "min_total_latency"
    """A name, or the path of a policy file (it is run: name only files that you trust)."""
    policy_files: tuple[str, ...] = ()
    """Further policy files; their policies can then be chosen by name while the gateway runs."""
    sample: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Nodes drawn at random per decision (a count); 0: the policy's own default."""
    ask: Annotated[int, msgspec.Meta(ge=0)] = 4
    """Nodes asked for a forecast per decision, those that look best by what they stream (a count); 0: all."""
    hold: HoldWhen = "forecast"
    """When a request that every node would keep waiting is held here: forecast: under policies that ask for forecasts;
    always: under all; never."""
    hold_order: HoldOrder = "fcfs"
    """Order of held requests within a priority: fcfs, shortest_forecast, deadline."""
    hold_aging_s: Positive = 10.0
    """By how many seconds later a request of the next priority, or a shorter one, may come and still go first."""
    hold_max_requests: Annotated[int, msgspec.Meta(ge=1)] = 4096
    """Requests that can be held; beyond them, and gradually before, they are refused with a time to come back."""
    hold_max_tokens: Annotated[int, msgspec.Meta(ge=1)] = 4_000_000
    """The same in tokens, prompts and expected answers."""
    hold_max_s: Positive = 60.0
    """Seconds after which a held request is placed wherever it costs least."""
    infeasible: Literal["serve", "hold", "refuse"] = "serve"
    """What becomes of a request whose service levels all nodes asked are forecast to miss: serve, hold (behind all
    others), refuse (at once)."""
    seed: int = 0
    """Of all random choices of the router."""
    forecast_timeout_ms: Positive = 50.0
    """Milliseconds to wait for forecasts before choosing without the missing ones."""
    fallback: str = "least_requests"
    """Policy when no forecast came."""
    max_attempts: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Placements of one request, the first included (a count)."""
    retry_share: Annotated[float, msgspec.Meta(ge=0)] = 0.2
    """Attempts beyond the first that all requests together may make in the long run, as a share of arrivals."""
    retry_burst: Annotated[int, msgspec.Meta(ge=0)] = 1000
    """And at once (a count): at least what one node runs, so that losing it costs nobody an answer."""
    stall_s: Positive = 30.0
    """Seconds without a token or a word of its trace after which the requests of a busy node are tried elsewhere."""
    state_stale_s: Positive = 5.0
    """Seconds after which a node's state is no longer believed."""
    tokenizer: str = "auto"
    """Turns text into token ids and back; auto: qwen2 when installed, else bytes."""
    lengths: str = "hashed"
    """What believes in answer lengths where clients say nothing: a length model by name (hashed, histogram) or by the
    path of its file; none: the same prior for every request."""
    lengths_deadline_ms: Positive = 20.0
    """Milliseconds to wait for that belief; later ones give way to the prior."""
    max_buffered_tokens: Annotated[int, msgspec.Meta(ge=1)] = 16384
    """Tokens that may wait for one slow client before its request is ended."""
    keepalive_s: Annotated[float, msgspec.Meta(ge=0.1)] = 2.0
    """Seconds between probes of a silent node connection, and of waiting for the answer."""
    reconnect_max_s: Positive = 3.0
    """Longest pause between attempts to reach a node, in seconds."""
    lame_duck_s: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Longest time in seconds that a gateway told to stop still takes requests, while clients that look at its health
    go elsewhere; over as soon as none came for a fifth of it."""
    drain_grace_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Seconds that running requests get to finish at shutdown, and on a node taken out of the configuration."""
    gateway_id: str = ""
    """Name in the nodes' logs; empty: host name and process id."""
    otlp_endpoint: str = ""
    """OTLP/HTTP collector for one span per request, for example http://127.0.0.1:4318/v1/traces; empty: no spans."""
    record: str = ""
    """File for the decision log (JSON lines); empty: none."""
    ready_file: str = ""
    """File that gets one JSON line with the bound address when the gateway serves."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        check_key("listen", lambda: parse_address(self.listen, any_port=True))
        if self.http_listen:
            check_key("http_listen", lambda: parse_address(self.http_listen, any_port=True))
        check_pair(self.tls_cert, self.tls_key, prefix="tls")
        check_pair(self.node_cert, self.node_key, prefix="node")
        if self.tls_client_ca and not self.tls_cert:
            raise ValueError("key 'tls_client_ca': needs tls_cert and tls_key")
        if self.node_cert and not self.node_ca:
            raise ValueError("key 'node_cert': needs node_ca")
        self._check_exposure()
        seen: set[str] = set()
        for position, entry in enumerate(self.nodes):
            address = entry if isinstance(entry, str) else entry.address
            check_key(f"nodes[{position}]", partial(parse_address, address.removeprefix(DNS_PREFIX)))
            if address in seen:
                raise ValueError(f"key 'nodes[{position}]': {address} is listed twice; remove one")
            seen.add(address)
        check_key("policy_files", lambda: policy_names_of(self.policy_files))
        check_key("policy", lambda: policy_name(self.policy))
        check_key("fallback", self._check_fallback)
        if self.infeasible == "hold" and self.hold == "never":
            raise ValueError("key 'infeasible': is hold but key 'hold' is never; let it be forecast or always")

    def _check_exposure(self) -> None:
        is_safe = bool(self.tls_cert and (self.keys or self.tls_client_ca))
        for key in ("listen", "http_listen"):
            address = getattr(self, key)
            if address and not is_safe and not self.insecure and not is_loopback(parse_address(address, any_port=True)):
                raise ValueError(
                    f"key '{key}': {address} can be reached from other machines; set tls_cert, tls_key and keys (or "
                    "tls_client_ca), or say insecure = true (--insecure) where the network is trusted"
                )

    def _check_fallback(self) -> None:
        if needs_forecasts(self.fallback):
            raise ValueError(f"{self.fallback!r} needs forecasts itself; choose for example 'least_requests'")

    def entries(self) -> tuple[NodeEntry, ...]:
        return tuple(NodeEntry(address=n) if isinstance(n, str) else n for n in self.nodes)

    def router(self) -> RouterConfig:
        """What the router core needs of it."""
        return RouterConfig(
            policy=policy_name(self.policy),
            sample=self.sample,
            ask=self.ask,
            hold=HoldConfig(
                when=self.hold,
                order=self.hold_order,
                aging_s=self.hold_aging_s,
                max_requests=self.hold_max_requests,
                max_tokens=self.hold_max_tokens,
                max_s=self.hold_max_s,
            ),
            infeasible=self.infeasible,
            seed=self.seed,
            forecast_timeout_s=self.forecast_timeout_ms / 1000,
            fallback=self.fallback,
            max_attempts=self.max_attempts,
            state_stale_s=self.state_stale_s,
            retry_share=self.retry_share,
            retry_burst=self.retry_burst,
            stall_s=self.stall_s,
        )


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> GatewayConfig:
    """The file's keys (none without a file) with `overrides`, keyed alike, on top. Raises ConfigError."""
    return load_config(GatewayConfig, path, overrides)
