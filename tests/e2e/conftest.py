"""What all end-to-end tests share."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.e2e.cluster import make_cluster
from tests.e2e.in_process import running, status, until
from tests.e2e.scripted_node import ScriptedNode

__all__ = ["make_cluster"]

HERE = Path(__file__).parent
ON_BOTH_LOOPS = ("test_relay.py", "test_forwarding_session.py")
WARM_UP = (
    "import asyncio; from protos.runtime.kernels import kernels_ready as ready; "
    "[asyncio.run(ready(of)) for of in ('warm', 'warm_node', 'warm_fleet')]"
)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Compiles the kernels before the first test, outside its time limit: on a fresh checkout that takes a minute."""
    wanted = any(HERE in item.path.parents for item in session.items)
    if wanted and not session.config.option.collectonly:
        subprocess.run([sys.executable, "-c", WARM_UP], check=True, timeout=600, stdout=subprocess.DEVNULL)


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Where transports are handled by hand also the loop of the real processes, which has rules of its own."""
    plain = {"asyncio": asyncio.new_event_loop}
    return {**plain, "uvloop": uvloop.new_event_loop} if item.path.name in ON_BOTH_LOOPS else plain


@pytest.fixture
async def node() -> AsyncIterator[ScriptedNode]:
    scripted = ScriptedNode("n")
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def other() -> AsyncIterator[ScriptedNode]:
    scripted = ScriptedNode("o")
    await scripted.start()
    yield scripted
    await scripted.stop()


@pytest.fixture
async def http_front(node: ScriptedNode) -> AsyncIterator[Any]:
    """A gateway before one scripted node that is up."""
    async with running(node.address) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        yield gateway
