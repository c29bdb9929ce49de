"""Fixtures of the tests with a real Prometheus; without one they skip and say how to get it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from deploy.local_cluster import Child, LocalCluster
from tests.e2e.cluster import make_cluster
from tests.monitoring.prometheus import NOT_INSTALLED, Prometheus, is_installed, metrics_address

__all__ = ["make_cluster"]

Watch = Callable[..., Prometheus]


class Processes(NamedTuple):
    """What was started without a `LocalCluster`."""

    gateway: Child
    nodes: list[Child]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(300))
            if not is_installed():
                item.add_marker(pytest.mark.skip(reason=NOT_INSTALLED))


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """Starts a Prometheus over clusters' pages, all of which it has seen when it is returned."""
    running: list[Prometheus] = []

    def begin(*clusters: LocalCluster | Processes, **options: Any) -> Prometheus:
        gateways = [cluster.gateway.http_address for cluster in clusters]
        predictors = [metrics_address(node.log_path) for cluster in clusters for node in cluster.nodes]
        watching = Prometheus(
            tmp_path / f"prometheus-{len(running)}", gateways=gateways, predictors=predictors, **options
        )
        running.append(watching)
        watching.start()
        watching.until(lambda: watching.scraped(len(gateways) + len(predictors)), 30.0, "every page has been read")
        return watching

    yield begin
    for watching in running:
        watching.stop()
