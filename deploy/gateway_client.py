"""What the commands that talk to a gateway share: the option that names it, and its errors in one line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_GATEWAY = "127.0.0.1:8200"


def gateway_option(command: F) -> F:
    """Adds --gateway (and ASTROLABE_GATEWAY)."""
    return click.option(
        "--gateway",
        metavar="HOST:PORT",
        default=DEFAULT_GATEWAY,
        envvar="ASTROLABE_GATEWAY",
        show_default=True,
        show_envvar=True,
        help="The gateway to ask.",
    )(command)


@contextlib.contextmanager
def dispatch_stub(gateway: str, *, deadline_s: float | None = None) -> Iterator[Any]:
    """A blocking `Dispatch` client. A failed call inside ends the command with one line. `deadline_s`: what its user
    gave the call."""
    import grpc

    from deploy.gateway_channel import blocking_channel
    from protos.runtime.config import ConfigError
    from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

    try:
        opened = blocking_channel(gateway)
    except ConfigError as bad:
        raise click.ClickException(str(bad)) from None
    with opened as channel:
        try:
            yield DispatchStub(channel)  # type: ignore[no-untyped-call, unused-ignore]
        except grpc.RpcError as error:
            raise click.ClickException(explain(error, gateway, deadline_s)) from None


def explain(error: Any, gateway: str, deadline_s: float | None = None) -> str:
    """What, where, how to mend, for a failed call. `error` is a grpc.RpcError that is also a call; `deadline_s`: its
    user's own."""
    import grpc

    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.UNAVAILABLE and any(sign in details for sign in ("DNS resolution", "errors resolving")):
        return f"no host of that name: {gateway}; name the gateway with --gateway HOST:PORT"
    if code == grpc.StatusCode.UNAVAILABLE and _is_transport(details):
        tls = "" if os.environ.get("ASTROLABE_CA") else "; one with TLS wants ASTROLABE_CA=ca.crt"
        return (
            f"no gateway answers at {gateway}; start one with 'astrolabe up', or name it with --gateway "
            f"(its gRPC port, HTTP's is another{tls})"
        )
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return f"{details}; this command sends the one in ASTROLABE_API_KEY ({code.name} from the gateway at {gateway})"
    if code == grpc.StatusCode.UNIMPLEMENTED and not details.startswith("stop"):
        return f"{gateway} is not an astrolabe gateway; name one with --gateway"
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return f"the message is too long for the gateway at {gateway} ({details}); its max_body_bytes sets the limit"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and deadline_s is not None:
        return f"the answer was not whole within {deadline_s:g} s; give it longer with --deadline-s"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED and details.startswith("Deadline"):
        return f"the gateway at {gateway} did not answer in time"
    return f"{details} ({code.name} from the gateway at {gateway})"


def _is_transport(details: str) -> bool:
    """gRPC's own words for a connection that failed, as opposed to a gateway that says UNAVAILABLE."""
    return any(sign in details for sign in ("failed to connect", "Failed to connect", "Socket closed"))
