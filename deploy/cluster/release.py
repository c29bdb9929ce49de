"""A release: the wheels that a host is given, named by what is in them. Shell code.

Its name is `version-xxxxxxxx`, the hash being that of the list of files that the wheel carries: two wheels built of the
same sources are the same release, whenever they were built.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import msgspec

from protos.runtime.config import ConfigError

CHECKOUT = Path(__file__).resolve().parents[2]


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """What can be installed on a host."""

    name: str
    """`0.1.0-1a2b3c4d`: also its folder on hosts."""
    version: str
    wheel: str
    """File name of Astrolabe's own wheel."""
    folder: Path
    """With that wheel, and where hosts shall need no index, those of all that it needs."""

    @property
    def has_all(self) -> bool:
        """Whether its folder holds more than the one wheel: hosts are then told to look nowhere else."""
        return len(list(self.folder.glob("*.whl"))) > 1


def release_in(folder: Path) -> Release:
    """Raises ConfigError."""
    wheels = sorted(folder.glob("astrolabe-*.whl"))
    if len(wheels) != 1:
        found = f"{len(wheels)} wheels of astrolabe" if wheels else "no wheel of astrolabe"
        raise ConfigError(f"{folder}: has {found}; make it with: pip wheel --wheel-dir {folder} .")
    wheel = wheels[0]
    try:
        with zipfile.ZipFile(wheel) as archive:
            record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
            lines = sorted(archive.read(record).split(b"\n"))
    except (OSError, zipfile.BadZipFile, StopIteration):
        raise ConfigError(f"{wheel}: is no wheel; build it with: pip wheel --no-deps .") from None
    version = wheel.name.split("-")[1]
    digest = hashlib.sha256(b"\n".join(lines)).hexdigest()[:8]
    return Release(name=f"{version}-{digest}", version=version, wheel=wheel.name, folder=folder)


def take_release(releases: Path, *, wheel: Path | None = None, wheelhouse: Path | None = None) -> Release:
    """Copies the wheels of a release to `releases/NAME` and returns it; without a wheel or a folder of wheels, built
    from this checkout. Raises ConfigError."""
    draft = releases / "draft"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if wheel is not None and not wheel.is_file():
            raise ConfigError(f"{wheel}: no such file; give a wheel of astrolabe")
        if wheelhouse is not None and not wheelhouse.is_dir():
            raise ConfigError(f"{wheelhouse}: no such folder; make it with: pip wheel --wheel-dir {wheelhouse} .")
        if wheelhouse is not None:
            for file in wheelhouse.glob("*.whl"):
                if wheel is None or not file.name.startswith("astrolabe-"):
                    shutil.copy(file, draft)
        if wheel is not None:
            shutil.copy(wheel, draft)
        if wheel is None and wheelhouse is None:
            _build(draft)
        made = release_in(draft)
        kept = releases / made.name
        if kept.exists():
            shutil.rmtree(kept)
        draft.rename(kept)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return release_in(kept)


def _build(folder: Path) -> None:
    if not (CHECKOUT / "pyproject.toml").is_file():
        raise ConfigError("this astrolabe is no checkout to build a wheel from; give one with --wheel")
    with tempfile.TemporaryDirectory(prefix="astrolabe-wheel-") as draft:
        # A copy: builds in a checkout leave files there that find their way into later wheels.
        copy = Path(draft) / "astrolabe"
        shutil.copytree(
            CHECKOUT, copy, ignore=shutil.ignore_patterns(".*", "build", "dist", "results", "tests", "*.egg-info")
        )
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(copy)]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        said = re.sub(r"\s+", " ", done.stderr.strip())[-300:]
        raise ConfigError(f"{CHECKOUT}: no wheel could be built ({said}); give one with --wheel")


def pack(release: Release, file: Path) -> None:
    """The wheels as one tar, for the way to a host."""
    with tarfile.open(file, "w") as tar:
        for wheel in sorted(release.folder.glob("*.whl")):
            tar.add(wheel, arcname=wheel.name)
