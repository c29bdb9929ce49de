"""Wheels of this checkout, made beside it, and environments that have them and not the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from simcore import kernel_files

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protos", "simcore", "length_model", "engine_adapters", "predictor", "gateway", "deploy", "bench")
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
QUIET = ("--quiet", "--disable-pip-version-check")


def make_wheel(sources: Path, into: Path) -> Path:
    """The wheel of a folder with a `pyproject.toml`, by the tools of this environment alone."""
    before = set(into.glob("*.whl"))
    _run(sys.executable, "-m", "pip", "wheel", *QUIET, "--no-deps", "--no-build-isolation", "-w", into, sources)
    (made,) = set(into.glob("*.whl")) - before
    return made


def copy_of_checkout(folder: Path) -> Path:
    """What wheels are made of: a build leaves files where it works."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=MADE)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


def ship_kernels(sources: Path) -> None:
    """Compiles all kernels into the sources, as `make wheel KERNELS=1` does; those that are there need not be anew."""
    shipped = sources / "simcore" / "compiled" / "shipped"
    shipped.mkdir()
    for kernel in (kernel_files.folder() or shipped).glob("*.kernel"):
        shutil.copy(kernel, shipped)
    _run(sys.executable, "-m", "protos.runtime.kernels", cwd=sources, timeout_s=600.0)


def environment_with(*wheels: Path, folder: Path) -> Path:
    """A virtual environment with these and, unless they are brought, nothing of ours; other packages are those that the
    tests have. Returns its `bin`."""
    _run(sys.executable, "-m", "venv", "--without-pip", folder)
    places = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", places, "install", *QUIET, "--no-deps", "--no-index", *wheels)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Added as plain folders: what a `.pth` file in them says, such as where an editable checkout lies, is not read.
    (packages / "of_the_tests.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    return folder / "bin"


def clean_environ(**more: str) -> dict[str, str]:
    """Of a process that must not find the checkout."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PYTHONSAFEPATH": "1", **more}


def _run(*command: str | Path, cwd: Path | None = None, timeout_s: float = 150.0) -> None:
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
