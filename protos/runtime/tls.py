"""TLS for every hop: certificate files to gRPC credentials and `ssl` contexts. Shell code.

Files are PEM. A certificate authority given to a server makes it ask clients for a certificate (mutual TLS).
"""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc

from protos.runtime.config import ConfigError
from protos.runtime.tls_files import ClientTlsFiles, ServerTlsFiles


class ServerTls:
    """What a server shows and asks for. `reload` takes new files for connections that come from then on."""

    def __init__(self, files: ServerTlsFiles) -> None:
        """Raises ConfigError."""
        self._files = files
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._grpc = self._read()

    def reload(self) -> None:
        """Raises ConfigError; the old files hold then."""
        self._grpc = self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        current = self._grpc

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal current
            if self._grpc is current:
                return None
            current = self._grpc
            return current

        # The published type leaves out None, which means "as before".
        ask = bool(self._files.client_ca)
        return grpc.dynamic_ssl_server_credentials(current, fetch, require_client_authentication=ask)  # type: ignore[arg-type]

    def _read(self) -> grpc.ServerCertificateConfiguration:
        cert, key, client_ca = self._files.cert, self._files.key, self._files.client_ca
        chain, secret = _bytes(cert), _bytes(key)
        roots = _bytes(client_ca) if client_ca else None
        try:
            # Checked in a context of its own first, so that bad files leave the one in use as it is.
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key)
            self.context.load_cert_chain(cert, key)
            if client_ca:
                self.context.load_verify_locations(client_ca)
                self.context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as bad:
            raise ConfigError(
                f"{cert} and {key} cannot be used: {bad.reason or bad}; give PEM files that match"
            ) from None
        return grpc.ssl_server_certificate_configuration([(secret, chain)], roots)


def channel_credentials(files: ClientTlsFiles) -> grpc.ChannelCredentials:
    """gRPC credentials of a client: trusts `ca`, shows `cert` if one is given. Raises ConfigError."""
    cert, key = (_bytes(files.cert), _bytes(files.key)) if files.cert else (None, None)
    return grpc.ssl_channel_credentials(_bytes(files.ca), key, cert)


def client_context(files: ClientTlsFiles) -> ssl.SSLContext:
    """The `ssl` context of an HTTPS client; an empty `ca`: the system's. Raises ConfigError."""
    try:
        context = ssl.create_default_context(cafile=files.ca or None)
        if files.cert:
            context.load_cert_chain(files.cert, files.key)
    except OSError as bad:
        raise ConfigError(f"the TLS files {files.ca or '(system)'}, {files.cert} cannot be used: {bad}") from None
    return context


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as bad:
        raise ConfigError(f"{path}: cannot be read: {bad.strerror}; name a PEM file") from None
