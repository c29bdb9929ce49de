"""Who calls, and what that caller may do: API keys and roles.

A key is 256 random bits, so its plain SHA-256 is as good at rest as a slow hash, which protects guessable secrets only.
Without a key file every caller may do everything: that is for loopback.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from gateway.core.outcomes import Denial
from gateway.intake.caller_account import CallerLimits
from gateway.intake.denied import Denied
from protos.runtime.config import ConfigError, load_config

Role = Literal["client", "metrics", "admin"]
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
KEY_PREFIX = "astro-"


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who calls."""

    name: str = ""
    """The key's name; empty where no keys are asked for."""
    role: Role = "client"
    limits: CallerLimits = CallerLimits()
    best_priority: int | None = None
    """The smallest priority that it may ask for; None: any."""


ANYONE = Caller(role="admin")
"""The caller where no keys are asked for."""


class KeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One key at rest."""

    name: str
    sha256: str
    """Hex digest of the key."""
    role: Role = "client"
    """What the key opens: client: requests; metrics: /metrics; admin: everything."""
    requests_per_s: Annotated[float, msgspec.Meta(extra={"metavar": "R"})] = 0.0
    """Requests per second; 0: no limit."""
    burst: int = 1
    """Requests that may come at once (a count)."""
    max_concurrent: int = 0
    """Requests under way (a count); 0: no limit."""
    best_priority: Annotated[int, msgspec.Meta(extra={"metavar": "N"})] = 0
    """Smallest priority that a client may ask for; smaller ones go first, 0 is everybody's."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name {self.name!r}: use 1 to 64 letters, digits or . _ @ -")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of key {self.name!r} is not 64 lower-case hex digits")
        self.limits()

    def limits(self) -> CallerLimits:
        return CallerLimits(requests_per_s=self.requests_per_s, burst=self.burst, max_concurrent=self.max_concurrent)

    def caller(self) -> Caller:
        """Who has the key."""
        best_priority = None if self.role == "admin" else self.best_priority
        return Caller(name=self.name, role=self.role, limits=self.limits(), best_priority=best_priority)


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file: `[[keys]]` tables."""

    keys: tuple[KeyEntry, ...] = ()

    def __post_init__(self) -> None:
        for field in ("name", "sha256"):
            seen: set[str] = set()
            for entry in self.keys:
                value = getattr(entry, field)
                if value in seen:
                    raise ValueError(f"key 'keys': two keys have {field} {value!r}; remove one")
                seen.add(value)


class KeyRing:
    """The keys in force. `read` takes over a file's; until then, and without a file, everybody is `ANYONE`."""

    def __init__(self) -> None:
        self._callers: dict[bytes, Caller] | None = None

    def read(self, path: str) -> None:
        """Raises ConfigError; the keys in force stay then. An empty path asks for no keys."""
        if not path:
            self._callers = None
            return
        self._callers = {bytes.fromhex(entry.sha256): entry.caller() for entry in read_keys(path).keys}

    @property
    def asks_for_keys(self) -> bool:
        return self._callers is not None

    def identify(self, authorization: str) -> Caller:
        """The caller of an `authorization` header or metadata value. Raises Denied.

        Looking a digest up takes no time that tells anything about a key: who can choose digests knows keys.
        """
        if self._callers is None:
            return ANYONE
        scheme, _, key = authorization.partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Denied(Denial.NO_KEY, "no API key: send the header 'authorization: Bearer <key>'")
        caller = self._callers.get(digest(key.strip()))
        if caller is None:
            raise Denied(Denial.NO_KEY, "the API key is not known; ask the operator for a valid one")
        return caller


def said_key(headers: Mapping[str, str]) -> str:
    """What says who calls: `authorization`, or `x-api-key` as Anthropic's clients have it. `headers`: by lower-case
    name."""
    said = headers.get("authorization", "")
    return said if said or "x-api-key" not in headers else f"Bearer {headers['x-api-key']}"


def require(caller: Caller, *roles: Role) -> None:
    """Raises Denied unless the caller has one of the roles. An admin may do everything."""
    if caller.role != "admin" and caller.role not in roles:
        raise Denied(
            Denial.FORBIDDEN, f"key {caller.name!r} is for role {caller.role!r}; this needs {roles or 'admin'}"
        )


def check_priority(caller: Caller, priority: int) -> None:
    """Raises Denied for a priority better than the caller may ask for."""
    best = caller.best_priority
    if best is not None and priority < best:
        raise Denied(
            Denial.FORBIDDEN,
            f"key {caller.name!r} may ask for priority {best} or larger, not {priority}: smaller goes first; send "
            f"{best}, or have the operator give the key best_priority = {priority}",
            param="priority",
        )


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", errors="replace")).digest()


def new_key() -> str:
    """256 random bits, with a prefix by which scanners for leaked secrets know it."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def read_keys(path: str | Path) -> KeyFile:
    """Raises ConfigError naming file and key."""
    if not Path(path).exists():
        raise ConfigError(f"{path}: no such file; make it with its first key: astrolabe key create NAME --file {path}")
    return load_config(KeyFile, path)


def keys_text(file: KeyFile) -> str:
    """A key file as `read_keys` reads it."""
    lines = ["# API keys of `astrolabe gateway --keys`, hashed. Changed by `astrolabe key`; read again on SIGHUP."]
    for entry in file.keys:
        lines += ["", "[[keys]]"]
        for field, value in msgspec.to_builtins(entry).items():
            lines.append(f'{field} = "{value}"' if isinstance(value, str) else f"{field} = {value}")
    return "\n".join(lines) + "\n"


def write_keys(path: Path, file: KeyFile) -> None:
    """Appears whole or not at all, readable by its owner only. Raises ConfigError."""
    draft = path.with_name(f"{path.name}.tmp")
    try:
        draft.touch(mode=0o600)
        draft.write_text(keys_text(file), encoding="utf-8")
        draft.replace(path)
    except OSError as bad:
        raise ConfigError(f"cannot write {path}: {bad.strerror}; name a file in a folder of yours") from None
