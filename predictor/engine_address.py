"""Where proxies reach the engine of this node."""

from __future__ import annotations

from urllib.parse import urlsplit

from predictor.config import PredictorConfig
from protos.runtime.addresses import HostPort, is_loopback, parse_address, parse_url

DEFAULT_URL = "http://127.0.0.1:8000"
EVERY_HOST = ("0.0.0.0", "::", "")
"""Addresses to listen on that are every one of a machine."""


def engine_address(config: PredictorConfig, daemon: HostPort, served: HostPort | None) -> str:
    """As `EngineConfig.address`. `daemon`: where this process listens; `served`: where it serves its emulated engine,
    if it does."""
    if config.engine.address:
        return str(parse_address(config.engine.address))
    if served is None and config.engine.dialect == "emulated":
        return ""
    return reached_at(served or _server_of(config.engine.url or DEFAULT_URL), daemon)


def reached_at(served: HostPort, daemon: HostPort) -> str:
    """Where others reach a server that is known here as `served`: if only this machine reaches it there, at the host
    that the daemon listens on; `:port` where that is every one of this machine, so that gateways know better."""
    if served.host not in EVERY_HOST and not is_loopback(served):
        return str(served)
    return f":{served.port}" if daemon.host in EVERY_HOST else str(daemon._replace(port=served.port))


def _server_of(url: str) -> HostPort:
    parts = urlsplit(parse_url(url))
    return HostPort(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
