"""gRPC channels and servers as all our processes have them: keepalive, message sizes, no proxy. Shell code.

gRPC drops options that it does not know without a word, so they stand here and nowhere else, and a test holds their
names against the library that is installed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeAlias

import grpc
import grpc.aio

Options: TypeAlias = Sequence[tuple[str, int | str]]

PROXY_VARIABLE = "ASTROLABE_USE_PROXY"
"""Set to 1, our connections take the proxy that `http_proxy` and its kin name; else they never do."""


def uses_proxy() -> bool:
    """Whether connections between our own processes may go through the environment's proxy. Most hosts of companies
    have one for the way out; to neighbours it is the wrong way."""
    return os.environ.get(PROXY_VARIABLE, "") == "1"


def channel_options(more: Options = ()) -> list[tuple[str, int | str]]:
    """Options of a channel of ours, with `more` on top."""
    return [("grpc.enable_http_proxy", int(uses_proxy())), *more]


def open_channel(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.aio.Channel:
    """A channel for asyncio; without credentials it is not encrypted."""
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=channel_options(options))
    return grpc.aio.secure_channel(address, credentials, options=channel_options(options))


def open_blocking_channel(
    address: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options = ()
) -> grpc.Channel:
    """The same for threads."""
    if credentials is None:
        return grpc.insecure_channel(address, options=channel_options(options))
    return grpc.secure_channel(address, credentials, options=channel_options(options))


def keepalive(*, every_s: float, patience_s: float) -> list[tuple[str, int | str]]:
    """Probes of a silent connection, also without calls; one that does not answer in time is ended."""
    return [
        ("grpc.keepalive_time_ms", round(every_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(patience_s * 1000)),
        # What really ends a silent connection; its default is a minute.
        ("grpc.http2.ping_timeout_ms", round(patience_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def server_options(
    *, max_message_bytes: int, min_ping_interval_s: float = 1.0, shared_port: bool = False
) -> list[tuple[str, int | str]]:
    """Options of a server of ours. Clients may ping once in `min_ping_interval_s`, with or without calls; 0: as often
    as they like. gRPC's own limit is five minutes, and a client that pings more often loses its connection with all
    answers on it."""
    return [
        # Only workers of one gateway share a port; two processes must not do so by accident.
        ("grpc.so_reuseport", int(shared_port)),
        ("grpc.max_receive_message_length", max_message_bytes),
        # Pings that leave a second apart do not arrive a second apart.
        ("grpc.http2.min_ping_interval_without_data_ms", round(min_ping_interval_s * 500)),
        *([] if min_ping_interval_s else [("grpc.http2.max_ping_strikes", 0)]),
    ]
