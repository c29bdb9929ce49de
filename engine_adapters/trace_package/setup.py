"""Makes the distribution `astrolabe-trace` of this checkout's own modules, with the version of `astrolabe`."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))

from trace_modules import PACKAGE, trace_modules  # type: ignore[import-not-found]  # noqa: E402


class BuildTracePackage(build_py):  # type: ignore[misc, unused-ignore]
    """Writes the package where the wheel is put together; there is no folder of sources to look for."""

    def get_source_files(self) -> list[str]:
        return []

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return []

    def run(self) -> None:
        folder = Path(self.build_lib, PACKAGE)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in trace_modules(ROOT).items():
            (folder / name).write_text(text, encoding="utf-8")


setup(
    version=tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"],
    packages=[PACKAGE],
    cmdclass={"build_py": BuildTracePackage},
)
