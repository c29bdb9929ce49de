"""Addresses and URLs as people write them. The one place where any of ours is read. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import urlsplit

_SCHEME = re.compile(r"(?:(?:grpcs?|https?|tcp)://|ipv[46]:(?!:))", re.IGNORECASE)
_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^:\[\]\s/?#@]*)(?::(?P<port>\d{1,5}))?/?")
_URL_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_API_PATHS = re.compile(
    r"(?:/v1)?/(?:models|completions|chat/completions|embeddings|responses|messages|tokenize)|/v1"
    r"|/(?:metrics|health|ping|version|docs)"
)
"""What people copy behind a server's root, from a client's settings or a browser."""


class HostPort(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, any_port: bool = False, default_port: int | None = None) -> HostPort:
    """`host:port` or `[ipv6]:port`, also with `http://` or `grpc://` before it and a slash behind.

    `any_port`: it is an address to listen on, so port 0 will do, and no host (or `*`) is every one of this machine.
    `default_port`: for a host alone. Raises ValueError.
    """
    plain = _SCHEME.sub("", text.strip(), count=1)
    match = _HOST_PORT.fullmatch(plain)
    host = match["host"].strip("[]") if match else ""
    number = (match["port"] if match else None) or default_port
    if any_port and match and match["port"] and host in ("", "*"):
        host = "0.0.0.0"
    if "@" in plain:
        raise ValueError("the address holds a name or password; write host:port alone")
    if not host or host.isdigit() or number is None:
        raise ValueError(f"{text!r} is not host:port; write for example 127.0.0.1:{default_port or 8100}")
    port = int(number)
    if not (0 if any_port else 1) <= port <= 65535:
        raise ValueError(f"{text!r}: the port must be between {0 if any_port else 1} and 65535")
    return HostPort(host, port)


def is_loopback(address: HostPort) -> bool:
    """Whether only this machine reaches it."""
    host = address.host.lower().rstrip(".")
    return host in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", host) is not None


def parse_url(text: str, *, default_port: int = 8000) -> str:
    """Root of an HTTP server, without a slash or `/v1` at its end, from any URL of its API: `host:8000`,
    `http://host:8000/v1/`, `https://host/team/v1/chat/completions`.

    `default_port`: for a host alone, without a scheme. Raises ValueError, which repeats no password.
    """
    plain = text.strip()
    if not _URL_SCHEME.match(plain):
        host, slash, path = plain.lstrip("/").partition("/")
        plain = f"http://{host if _port_of(host) else f'{host}:{default_port}'}{slash}{path}" if host else ""
    parts = urlsplit(plain)
    if "@" in parts.netloc:
        raise ValueError("the URL holds a name or password; leave it out, and give an API key by its own option")
    if parts.scheme.lower() not in ("http", "https"):
        raise ValueError(f"{text!r} is not a URL; write for example http://127.0.0.1:{default_port}")
    if parts.query or parts.fragment:
        raise ValueError(
            f"{text!r}: leave out what follows the path; write for example http://127.0.0.1:{default_port}"
        )
    try:
        address = parse_address(parts.netloc, default_port=443 if parts.scheme.lower() == "https" else 80)
    except ValueError:
        raise ValueError(f"{text!r} is not a URL; write for example http://127.0.0.1:{default_port}") from None
    path = re.sub(r"/{2,}", "/", parts.path).rstrip("/")
    for _ in range(2):
        last = re.search(rf"(?:{_API_PATHS.pattern})$", path)
        path = path[: last.start()] if last else path
    host = str(address) if _port_of(parts.netloc) else str(address).rpartition(":")[0]
    return f"{parts.scheme.lower()}://{host}{path}"


def parse_kv_source(text: str) -> str:
    """Where engines fetch KV (`EngineConfig.kv_source`): root of an API server's URL, or host:port of a side channel.
    Raises ValueError."""
    return parse_url(text) if "://" in text else str(parse_address(text))


def _port_of(netloc: str) -> str:
    match = re.search(r":(\d+)$", netloc)
    return match[1] if match else ""
