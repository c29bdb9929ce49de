"""HTTP headers that are told apart wherever a call is handed on."""

from __future__ import annotations

HOP_BY_HOP = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers of one connection, never handed on: https://www.rfc-editor.org/rfc/rfc9110#name-connection, and what older
proxies say beside it."""
