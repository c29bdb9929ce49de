"""Tests of this folder run inside of the rig's namespaces only: make test-cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.rig import ENTERED

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(ENTERED) == "1":
        return
    skip = pytest.mark.skip(reason="needs hosts: make test-cluster")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
