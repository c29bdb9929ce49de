"""Where an engine's trace is served: `unix:/path/to.sock` or `tcp:127.0.0.1:PORT`.

By default a unix socket named after the port of the engine's HTTP server, so that the daemon finds it from the
engine's URL and one host can run several engines with nothing configured.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import msgspec

ENV_ADDRESS = "ASTROLABE_TRACE"
"""Overrides the address, in the engine's process and in the daemon's."""
DEFAULT_PORT = 8000
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class AddressError(ValueError):
    """Not an address that a trace can be served at."""


class TraceAddress(msgspec.Struct, frozen=True):
    """A unix socket path, or a loopback host and port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return f"unix:{self.path}" if self.path else f"tcp:{self.host}:{self.port}"

    def for_rank(self, rank: int) -> TraceAddress:
        """The address of one data-parallel rank: rank 0 keeps the plain one."""
        if rank == 0:
            return self
        if self.path:
            return TraceAddress(path=f"{self.path}.dp{rank}")
        return TraceAddress(host=self.host, port=self.port + rank)


def parse_address(text: str) -> TraceAddress:
    """Raises AddressError, also for a TCP host that is not this machine: the trace is not authenticated."""
    text = text.strip()
    if text.startswith("/"):
        text = f"unix:{text}"
    elif text.rpartition(":")[0].strip("[]") in _LOOPBACK:
        text = f"tcp:{text}"
    kind, _, rest = text.partition(":")
    rest = rest.removeprefix("//")
    if kind == "unix" and rest:
        if len(rest.encode()) > 100:
            raise AddressError(f"{text!r}: a unix socket path can have 100 bytes, this one has {len(rest.encode())}")
        return TraceAddress(path=rest)
    if kind == "tcp":
        host, _, port = rest.rpartition(":")
        host = host.strip("[]")
        if host not in _LOOPBACK:
            raise AddressError(
                f"{text!r}: a trace is served on loopback only (127.0.0.1), not on {host or 'no host'!r}"
            )
        if port.isdigit() and 0 < int(port) < 65536:
            return TraceAddress(host=host, port=int(port))
    raise AddressError(f"{text!r} is no trace address: write unix:/path/to.sock or tcp:127.0.0.1:PORT")


def default_address(port: int = DEFAULT_PORT) -> TraceAddress:
    """The address of the engine whose HTTP server has that port, for engine and daemon of the same user."""
    return TraceAddress(path=f"/tmp/astrolabe-{os.getuid()}/engine-{port}.sock")


def address_for_url(url: str, environ: Mapping[str, str]) -> TraceAddress:
    """The daemon's guess, from the URL of the engine's HTTP server. Raises AddressError."""
    if environ.get(ENV_ADDRESS):
        return parse_address(environ[ENV_ADDRESS])
    parts = urlsplit(url)
    return default_address(parts.port or (443 if parts.scheme == "https" else 80))


def address_for_engine(argv: Sequence[str], environ: Mapping[str, str]) -> TraceAddress:
    """The engine's own: from the environment, else from `--port` on its command line. Raises AddressError."""
    if environ.get(ENV_ADDRESS):
        return parse_address(environ[ENV_ADDRESS])
    port = DEFAULT_PORT
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name == "--port":
            value = value or (argv[i + 1] if i + 1 < len(argv) else "")
            port = int(value) if value.isdigit() else port
    return default_address(port)


def listen(address: TraceAddress) -> socket.socket:
    """A listening socket; a socket file that nobody serves any more is replaced. Raises OSError.

    The folder is made private to the user if it does not exist; the socket file is always. A folder in which others may
    put files of their own under our names (somebody was faster in /tmp) is refused.
    """
    if not address.path:
        server = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((address.host, address.port))
            server.listen(8)
        except OSError:
            server.close()
            raise
        return server
    folder = os.path.dirname(address.path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    about = os.stat(folder)
    if about.st_uid not in (os.geteuid(), 0) or (about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX):
        raise PermissionError(
            f"{folder} belongs to another user or can be written by all: set {ENV_ADDRESS} to a place of your own"
        )
    _remove_dead(address.path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        server.bind(address.path)
        os.chmod(address.path, stat.S_IRUSR | stat.S_IWUSR)
        server.listen(8)
    except OSError:
        server.close()
        raise
    return server


def _remove_dead(path: str) -> None:
    if not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise FileExistsError(f"{path} exists and is not a socket; remove it or set {ENV_ADDRESS} to another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        peer.settimeout(1.0)
        try:
            peer.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass
            return
    raise OSError(f"another engine already serves its trace at {path}; set {ENV_ADDRESS} to another path for this one")
