"""Taking addresses: says at once, in one line, when one is not to be had."""

from __future__ import annotations

import socket

from protos.runtime.addresses import HostPort
from protos.runtime.config import ConfigError

_HINT = "stop the process that has the port or choose another one"


class PortBusy(ConfigError):
    """The address cannot be bound."""

    def __init__(self, address: HostPort, reason: str, key: str) -> None:
        super().__init__(f"cannot listen on {address}{reason and ': '}{reason}; {_HINT} with --{key.replace('_', '-')}")


def bound_socket(address: HostPort, *, key: str, shared: bool = False) -> socket.socket:
    """A socket on the address, not listening yet; with `shared` other sockets may have the same port if they say so
    too. `key` is the configuration's name for the address. Raises PortBusy."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise PortBusy(address, error.strerror or str(error), key) from None
    return taken


def check_free(address: HostPort, *, key: str) -> None:
    """Says "busy" before gRPC does, which would add lines of its own to standard error. Raises PortBusy."""
    bound_socket(address, key=key).close()


def port_of(taken: socket.socket) -> int:
    """The port that a socket has."""
    return int(taken.getsockname()[1])
