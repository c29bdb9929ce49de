"""A release that can be packed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from deploy.cluster.release import Release, release_in


@pytest.fixture
def release(tmp_path: Path) -> Release:
    with zipfile.ZipFile(tmp_path / "astrolabe-0.2.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("astrolabe-0.2.0.dist-info/RECORD", "deploy/cli.py,sha256=x,1\n")
    return release_in(tmp_path)
