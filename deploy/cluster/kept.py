"""What the operator keeps beside cluster.toml, in `cluster.d/`: authority, certificates, keys, releases. Shell code.

The folder is 0700, what is secret in it 0600: whoever has it has the cluster.
"""

from __future__ import annotations

import datetime
import os
import shutil
import tempfile
from pathlib import Path

from deploy.cluster.authority import CertPair, certify, days_left, new_authority, vouches_for
from deploy.cluster.desired import HostSecrets, subjects_of
from deploy.cluster.manifest import Cluster, ClusterHost
from deploy.cluster.release import Release, release_in, take_release
from gateway.intake.callers import KeyEntry, KeyFile, digest, keys_text, new_key
from protos.runtime.config import ConfigError

OPERATOR = "operator"
"""The name of the key that these commands use."""


class Kept:
    """The operator's folder of one cluster.

    One that does not write (a dry run) makes what is missing for itself alone, and forgets it.
    """

    def __init__(self, cluster_file: Path, *, writes: bool = True) -> None:
        self._drafts: dict[str, bytes] | None = None if writes else {}
        self._draft_releases: tempfile.TemporaryDirectory[str] | None = None
        self.folder = cluster_file.with_suffix(".d")
        self.ca = self.folder / "tls/ca.crt"
        self.ca_key = self.folder / "ca.key"
        self.keys = self.folder / "keys.toml"
        self.operator_key = self.folder / "operator.key"
        self._releases = self.folder / "releases"

    def close(self) -> None:
        """To be called once, in the end."""
        if self._draft_releases is not None:
            self._draft_releases.cleanup()

    # --- Certificates and keys ----------------------------------------------------------------------------------------

    def secrets(self, cluster: Cluster, host: ClusterHost) -> HostSecrets:
        """Those of a host, made where they are missing or are for another address. Raises ConfigError."""
        if not cluster.tls:
            return HostSecrets()
        authority = self._authority()
        pair = self._pair(host.name)
        if pair is None or not vouches_for(authority.cert, pair.cert, subjects_of(cluster, host)):
            pair = self.renew(cluster, host)
        self._first_key()
        return HostSecrets(ca=authority.cert, cert=pair.cert, key=pair.key, api_keys=self._read(self.keys.name))

    def renew(self, cluster: Cluster, host: ClusterHost) -> CertPair:
        """A new certificate for a host. Raises ConfigError."""
        authority = self._authority()
        left = days_left(authority.cert, now=_now())
        if left <= 0:
            raise ConfigError(
                f"{self.ca}: the authority has expired; move {self.folder} away, install anew, give clients the new one"
            )
        pair = certify(authority, host.name, subjects_of(cluster, host), now=_now())
        self._write(f"tls/{host.name}.crt", pair.cert, secret=False)
        self._write(f"tls/{host.name}.key", pair.key)
        return pair

    def expired(self, host: ClusterHost) -> float | None:
        """Days left of the certificate that is kept for a host; None: there is none."""
        pair = self._pair(host.name)
        return None if pair is None else days_left(pair.cert, now=_now())

    def new_operator_key(self) -> str:
        """The key as it was made just now; empty: it was there already, or nothing is written. It is kept for these
        commands."""
        return self._first_key() if self._drafts is None else ""

    def api_key(self) -> str:
        """The key with which these commands ask gateways; empty: none is wanted."""
        given = os.environ.get("ASTROLABE_API_KEY", "")
        return given or (self.operator_key.read_text().strip() if self.operator_key.exists() else "")

    def _first_key(self) -> str:
        if self._has(self.keys.name):
            return ""
        key = new_key()
        self._write("operator.key", key.encode() + b"\n")
        entry = KeyEntry(name=OPERATOR, sha256=digest(key).hex(), role="admin")
        self._write(self.keys.name, keys_text(KeyFile(keys=(entry,))).encode())
        return key

    def _authority(self) -> CertPair:
        if not self._has("tls/ca.crt"):
            made = new_authority(f"Astrolabe {self.folder.stem} CA", now=_now())
            self._write("tls/ca.crt", made.cert, secret=False)
            self._write("ca.key", made.key)
        try:
            return CertPair(self._read("tls/ca.crt"), self._read("ca.key"))
        except OSError as bad:
            raise ConfigError(
                f"{bad.filename}: cannot be read: {bad.strerror}; the authority's files belong here"
            ) from None

    def _pair(self, name: str) -> CertPair | None:
        try:
            return CertPair(*(self._read(f"tls/{name}.{end}") for end in ("crt", "key")))
        except FileNotFoundError:
            return None

    def _has(self, name: str) -> bool:
        return name in (self._drafts or {}) or (self.folder / name).exists()

    def _read(self, name: str) -> bytes:
        draft = (self._drafts or {}).get(name)
        return (self.folder / name).read_bytes() if draft is None else draft

    def _write(self, name: str, content: bytes, *, secret: bool = True) -> None:
        if self._drafts is not None:
            self._drafts[name] = content
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        draft = path.with_name(f"{path.name}.new")
        draft.touch(mode=0o600 if secret else 0o644)
        draft.write_bytes(content)
        draft.replace(path)

    # --- Releases -----------------------------------------------------------------------------------------------------

    def take(self, *, wheel: Path | None, wheelhouse: Path | None) -> Release:
        """A release from wheels, or from this checkout. Raises ConfigError."""
        if self._drafts is not None:
            self._draft_releases = tempfile.TemporaryDirectory(prefix="astrolabe-releases-")
            return take_release(Path(self._draft_releases.name), wheel=wheel, wheelhouse=wheelhouse)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        return take_release(self._releases, wheel=wheel, wheelhouse=wheelhouse)

    def release(self) -> Release | None:
        """The one that hosts are to run; None: none has been installed. Raises ConfigError."""
        name, _ = self._chosen()
        return release_in(self._releases / name) if name else None

    def choose(self, release: Release) -> None:
        """From now on hosts are to run this one; the one before is kept for the way back."""
        now, before = self._chosen()
        if release.name == now:
            return
        self._write("release", f"{release.name}\n{now}\n".encode(), secret=False)
        for folder in self._releases.iterdir():
            if folder.name not in (release.name, now, before):
                shutil.rmtree(folder)

    def before(self) -> Release | None:
        """The release before that one. Raises ConfigError."""
        _, before = self._chosen()
        return release_in(self._releases / before) if before else None

    def _chosen(self) -> tuple[str, str]:
        """The release that hosts are to run, and the one before."""
        try:
            lines = (self.folder / "release").read_text().splitlines()
        except FileNotFoundError:
            return "", ""
        now, before, *_ = (*lines, "", "")
        return now, before


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
