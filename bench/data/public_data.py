"""Public data sets: what there is, fetching it once, checking what lies here. Files land in the user's cache."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.data.datasets import DatasetName, DatasetSpec, cache_folder, load_dataset
from bench.workload.dataset_error import DatasetError

CATALOGUE = Path(__file__).with_name("public_data.toml")
_PIECE_BYTES = 2**18
_TIMEOUT_S = 30.0

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have come and, if the server says, their total."""


class PublicSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of the catalogue."""

    kind: DatasetName
    """What `--dataset` reads it."""
    url: str
    licence: str
    about: str
    sha256: str = ""
    """Of the published file; empty when it is not known."""

    @property
    def file_name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class DataCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on this machine of one entry."""

    name: str
    path: str
    present: bool
    sha256: str = ""
    """Of the file that lies here."""
    fine: bool = False
    rows: int = 0
    notes: list[str] = []
    problem: str = ""
    """Why it is not fine, for people; empty when it is, or is not here."""


class FetchError(ValueError):
    """A file could not be fetched, or is not the published one."""


@functools.cache
def catalogue() -> dict[str, PublicSet]:
    """All entries by name, in the catalogue's order."""
    return msgspec.toml.decode(CATALOGUE.read_bytes(), type=dict[str, PublicSet])


def entry(name: str) -> PublicSet:
    """Raises FetchError for an unknown name, with the one that was perhaps meant."""
    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FetchError(f"unknown data set {name!r}: {hint}There are {', '.join(known)}")
    return known[name]


def path_of(name: str) -> Path:
    """Where a fetched file lies, whether it does or not."""
    return cache_folder() / "data" / name / entry(name).file_name


def fetch(name: str, *, url: str = "", progress: Progress | None = None) -> Path:
    """Downloads it, whole or not at all, and compares its hash. A file that is here already is kept.

    `url` replaces the catalogue's, for mirrors.

    Raises:
        FetchError: no network, no such file there, another file than the published one, no place on the disk.
    """
    wanted = entry(name)
    target = path_of(name)
    if target.is_file():
        return target
    source = url or wanted.url
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file:
            part = Path(file.name)
            try:
                digest = _download(source, file.write, progress)
                if wanted.sha256 and digest != wanted.sha256:
                    raise FetchError(
                        f"{source} is not the published file: its SHA-256 is {digest}, that of {name} is "
                        f"{wanted.sha256}. Fetch it from another place with --url"
                    )
                file.flush()
                os.replace(part, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    part.unlink()
    except urllib.error.HTTPError as error:
        raise FetchError(f"{source} answers {error.code} {error.reason}: give another address with --url") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error) or type(error).__name__
        raise FetchError(
            f"{source} cannot be reached ({reason}). Without a network, bring the file from another machine and put it "
            f"at {target}"
        ) from error
    except OSError as error:
        raise FetchError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def check(name: str) -> DataCheck:
    """Whether the file is here, is the published one, and reads to its end."""
    wanted, path = entry(name), path_of(name)
    if not path.is_file():
        return DataCheck(name=name, path=str(path), present=False)
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        if wanted.sha256 and digest.hexdigest() != wanted.sha256:
            problem = "another file than the published one; delete it and fetch it again"
            return DataCheck(name=name, path=str(path), present=True, sha256=digest.hexdigest(), problem=problem)
        parsed = load_dataset(DatasetSpec(name=wanted.kind, path=str(path)))
    except (DatasetError, OSError) as error:
        return DataCheck(name=name, path=str(path), present=True, sha256=digest.hexdigest(), problem=str(error))
    return DataCheck(
        name=name,
        path=str(path),
        present=True,
        sha256=digest.hexdigest(),
        fine=True,
        rows=len(parsed.rows),
        notes=list(parsed.notes),
    )


def _download(url: str, write: Callable[[bytes], object], progress: Progress | None) -> str:
    digest = hashlib.sha256()
    came = 0
    request = urllib.request.Request(url, headers={"User-Agent": "astrolabe"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        while piece := response.read(_PIECE_BYTES):
            write(piece)
            digest.update(piece)
            came += len(piece)
            if progress is not None:
                progress(came, total)
    if total is not None and came != total:
        raise ConnectionError(f"it ended after {came:,} of {total:,} bytes")
    return digest.hexdigest()
