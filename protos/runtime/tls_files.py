"""The certificate files that a server or a client is configured with: tables of a TOML file. Imports no gRPC."""

from __future__ import annotations

import msgspec

from protos.runtime.config import FileName


class ServerTlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a server shows, and whom it asks for a certificate. PEM files."""

    cert: FileName = ""
    """PEM certificate of this server, read again on SIGHUP; empty: no TLS."""
    key: FileName = ""
    """Its private key."""
    client_ca: FileName = ""
    """Authority of which clients must show a certificate (mutual TLS); empty: they need none."""

    def __post_init__(self) -> None:
        _check_pair(self.cert, self.key)
        if self.client_ca and not self.cert:
            raise ValueError("client_ca needs cert and key")


class ClientTlsFiles(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which servers a client trusts, and what it shows to those that ask for a certificate. PEM files."""

    ca: FileName = ""
    """Authority of the server's certificate; empty: the system's."""
    cert: FileName = ""
    """Certificate shown to a server that asks for one."""
    key: FileName = ""
    """Its private key."""

    def __post_init__(self) -> None:
        _check_pair(self.cert, self.key)


def _check_pair(cert: str, key: str) -> None:
    if bool(cert) is not bool(key):
        raise ValueError(f"{'key' if cert else 'cert'} is missing: a certificate and its key belong together; set both")
