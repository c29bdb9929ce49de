"""gRPC channels to a gateway, as the environment says: plain, with TLS, with an API key.

ASTROLABE_CA: PEM file of the authority of its certificate; ASTROLABE_CERT, ASTROLABE_CERT_KEY: our own certificate, if
it asks for one; ASTROLABE_API_KEY: our key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from protos.runtime.addresses import parse_address
from protos.runtime.channels import Options, open_blocking_channel, open_channel
from protos.runtime.config import ConfigError
from protos.runtime.tls import channel_credentials
from protos.runtime.tls_files import ClientTlsFiles

DEFAULT_PORT = 8200
_GRPC_NAME = re.compile(r"(?:dns|unix|unix-abstract|ipv4|ipv6|xds|vsock):", re.IGNORECASE)


def blocking_channel(gateway: str) -> grpc.Channel:
    """Raises ConfigError for files that cannot be read, and for what is no address."""
    credentials = _credentials()
    channel = open_blocking_channel(target_of(gateway), credentials=credentials)
    if credentials is not None:
        return channel
    key = os.environ.get("ASTROLABE_API_KEY", "")
    return grpc.intercept_channel(channel, _WithKey(key)) if key else channel


def async_channel(gateway: str, options: Options) -> grpc.aio.Channel:
    """The same for asyncio; without TLS no key is sent. Raises ConfigError."""
    return open_channel(target_of(gateway), credentials=_credentials(), options=options)


def target_of(gateway: str) -> str:
    """What gRPC is told of an address as people write it; its own names (`dns:///`, `unix:`, a list) stay as they are.
    Raises ConfigError."""
    if _GRPC_NAME.match(gateway):
        return gateway
    try:
        return str(parse_address(gateway, default_port=DEFAULT_PORT))
    except ValueError as bad:
        raise ConfigError(f"the gateway's address {bad}") from None


def _credentials() -> grpc.ChannelCredentials | None:
    ca = os.environ.get("ASTROLABE_CA", "")
    if not ca:
        return None
    cert, cert_key = os.environ.get("ASTROLABE_CERT", ""), os.environ.get("ASTROLABE_CERT_KEY", "")
    try:
        tls = channel_credentials(ClientTlsFiles(ca=ca, cert=cert, key=cert_key))
    except ValueError:
        raise ConfigError("ASTROLABE_CERT and ASTROLABE_CERT_KEY belong together; set both or neither") from None
    key = os.environ.get("ASTROLABE_API_KEY", "")
    return grpc.composite_channel_credentials(tls, grpc.access_token_call_credentials(key)) if key else tls


class _WithKey(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """Adds the key to each call: without TLS gRPC's own call credentials refuse to."""

    def __init__(self, key: str) -> None:
        self._header = ("authorization", f"Bearer {key}")

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=[*(details.metadata or ()), self._header]), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        return self.intercept_unary_unary(continuation, details, request)
