"""The page for the person on call as a real browser shows it. Skipped where there is no Chromium."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gateway.intake.callers import KeyEntry, KeyFile, digest, write_keys
from protos import codec
from protos.v1 import astrolabe_predict_pb2 as predict_pb
from simcore.types import Outcome
from tests.e2e.browser import NAMES, Browser, browser, chromium
from tests.e2e.cluster import MakeCluster
from tests.e2e.in_process import ask, dispatched, part, running, status, until
from tests.e2e.scripted_node import ScriptedNode, load

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not chromium(), reason=f"no Chromium (of {', '.join(NAMES)}); on Debian: apt-get install chromium"
    ),
]

ROWS = "document.querySelectorAll('#nodes tbody tr').length"
WATCH_CELLS = """{
  window.written = new Set();
  const told = (all) => all.forEach(({ target }) => {
    const cell = (target.closest ? target : target.parentElement).closest("#nodes tbody td");
    if (!cell) return;
    const column = [...cell.classList].find((name) => name.startsWith("c-")).slice(2);
    window.written.add(`${cell.parentElement.querySelector(".c-name").textContent} ${column}`);
  });
  const what = { subtree: true, characterData: true, childList: true };
  new MutationObserver(told).observe(document.querySelector("#nodes tbody"), what);
}"""
"""Notes in `written` which cells are written from now on, as `node column`."""
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Browser]:
    """A tab that has nothing to complain of at the end."""
    async with browser(tmp_path) as opened:
        await opened.view(1440, 900)
        yield opened
        assert opened.complaints == []


def cell(node: int, column: str) -> str:
    return f"document.querySelectorAll('#nodes tbody tr')[{node}].querySelector('.c-{column}').textContent"


def tile(name: str) -> str:
    """The number below a heading of the totals."""
    return (
        f"[...document.querySelectorAll('#totals dt')].find((e) => e.textContent == '{name}').nextSibling.textContent"
    )


def focused(expression: str) -> str:
    return f"document.activeElement.{expression}"


async def test_nodes_appear_and_change_while_requests_run_and_a_story_opens(
    make_cluster: MakeCluster, tab: Browser
) -> None:
    cluster = await asyncio.to_thread(make_cluster, nodes=2, predictor={"time_scale": 2.0})
    await tab.open(f"{cluster.url}/ui")
    await tab.until(f"{ROWS} == 2 && {cell(0, 'state')}.startsWith('up')")
    assert await tab.js(cell(0, "name")) == "node-0"
    await tab.until("document.getElementById('connection').textContent == 'live'")
    body = {"prompt": "a long answer", "max_tokens": 600, "ignore_eos": True}
    async with aiohttp.ClientSession() as session:

        async def request(name: str) -> None:
            async with session.post(
                f"{cluster.url}/v1/completions", json=body, headers={"x-request-id": name}
            ) as reply:
                assert reply.status == 200
                await reply.read()

        under_way = [asyncio.create_task(request(f"r-{number}")) for number in range(6)]
        await tab.until(f"Number({cell(0, 'running')}) + Number({cell(1, 'running')}) > 0")
        await asyncio.gather(*under_way)
    await tab.until(f"Number({cell(0, 'running')}) + Number({cell(1, 'running')}) == 0")
    await tab.until("document.querySelectorAll('#log button.link').length >= 6")
    await tab.js("document.querySelector('#log button.link').click()")
    await tab.until("document.querySelectorAll('#panel svg rect').length >= 3")
    assert await tab.js("document.querySelector('#panel-title').textContent.startsWith('r-')")
    assert await tab.js("document.querySelectorAll('#panel .candidates .chosen').length") == 1
    # The timeline is drawn of what the gateway has kept.
    await tab.until("document.querySelectorAll('#charts canvas').length == 4")
    await tab.until("/[1-9]/.test(document.querySelector('#charts .value').parentElement.parentElement.textContent)")
    await tab.open(f"{cluster.url}/ui/")
    await tab.until("document.querySelectorAll('#log button.link').length >= 6")


async def test_a_page_of_several_workers_shows_what_all_do_and_who_is_missing(
    make_cluster: MakeCluster, tab: Browser
) -> None:
    cluster = await asyncio.to_thread(make_cluster, nodes=1, predictor={"time_scale": 1.0}, gateway={"workers": 3})
    await tab.open(f"{cluster.url}/ui")
    await tab.until(f"{ROWS} == 1 && {cell(0, 'state')}.startsWith('up')")
    await tab.until("document.getElementById('notice').hidden")
    body = {"prompt": "a long answer", "max_tokens": 600, "ignore_eos": True}
    async with contextlib.AsyncExitStack() as stack:

        async def request() -> None:
            # A connection of its own each, so that all workers get some.
            session = await stack.enter_async_context(aiohttp.ClientSession())
            async with session.post(f"{cluster.url}/v1/completions", json=body) as reply:
                await reply.read()

        under_way = [asyncio.create_task(request()) for _ in range(12)]
        await tab.until(f"{tile('Under way')} == '12' && {cell(0, 'in_flight')} == '12'")
        await asyncio.gather(*under_way)
    await tab.until("document.querySelectorAll('#log button.link').length == 12")
    (one, *_) = psutil.Process(cluster.gateway.pid).children()
    one.kill()
    # The page finds another worker if it was connected to that one.
    await tab.until("document.getElementById('notice').textContent.includes('1 of 3 workers does not answer')")
    await tab.until("document.getElementById('notice').hidden")
    tab.complaints.clear()


async def test_it_asks_for_the_key_keeps_it_in_the_tab_and_forgets_it(
    node: ScriptedNode, tab: Browser, tmp_path: Path
) -> None:
    entries = [KeyEntry(name=role, sha256=digest(f"key-of-{role}").hex(), role=role) for role in ("client", "admin")]
    write_keys(tmp_path / "keys.toml", KeyFile(keys=tuple(entries)))
    async with running(node.address, keys=str(tmp_path / "keys.toml")) as (gateway, _):
        await tab.open(f"http://{gateway.http_address}/ui/")
        await tab.until("!document.getElementById('login').hidden && document.activeElement.id == 'key'")
        assert await tab.js("document.getElementById('page').hidden")
        for key, said in (("key-of-nobody", "not known"), ("key-of-client", "admin")):
            await tab.type(key)
            await tab.press("Enter")
            await tab.until(f"document.getElementById('login-error').textContent.includes('{said}')")
        # The browser notes each status that is an error by itself.
        assert all("401" in told or "403" in told for told in tab.complaints)
        tab.complaints.clear()
        await tab.type("key-of-admin")
        await tab.press("Enter")
        await tab.until(f"{ROWS} == 1")
        assert await tab.js("document.cookie + localStorage.length") == "0"
        await tab.open(f"http://{gateway.http_address}/ui/")
        await tab.until(f"{ROWS} == 1")
        await tab.js("document.getElementById('forget').click()")
        await tab.until("!document.getElementById('login').hidden")
        assert await tab.js("sessionStorage.getItem('astrolabe-key')") is None
        assert all("401" in told for told in tab.complaints)
        tab.complaints.clear()


async def test_everything_can_be_done_with_the_keyboard(node: ScriptedNode, other: ScriptedNode, tab: Browser) -> None:
    async with running(node.address, other.address) as (gateway, stub):
        await until(lambda: status(gateway, "n") == status(gateway, "o") == "up")
        call = stub.Generate(ask(request_id="r-keys"))
        at, name = await first_dispatched(node, other)
        await tab.open(f"http://{gateway.http_address}/ui/")
        await tab.until(f"{ROWS} == 2")
        await tab.press("n")
        assert await tab.js(focused("querySelector('.c-name').textContent")) == "n"
        await tab.press("ArrowDown")
        assert await tab.js(focused("querySelector('.c-name').textContent")) == "o"
        await tab.press("Enter")
        await tab.until("document.getElementById('panel').open")
        assert await tab.js("document.getElementById('panel-title').textContent") == "o"
        assert other.address in await tab.js("document.getElementById('panel-body').textContent")
        await tab.press("Escape")
        await tab.until("!document.getElementById('panel').open")
        assert await tab.js(focused("querySelector('.c-name').textContent")) == "o"
        await tab.press("/")
        await tab.type("o up")
        await tab.until(f"{ROWS} == 1")
        assert await tab.js("document.getElementById('node-count').textContent") == "1 of 2"
        await tab.press("Escape")
        await tab.press("?")
        await tab.until("document.getElementById('help').open")
        assert await tab.js("document.querySelectorAll('#shortcuts dt').length") >= 9
        await tab.press("Escape")
        await tab.press("e")
        await tab.until("document.activeElement.id == 'request-id'")
        await tab.type("r-keys")
        await tab.press("Enter")
        await tab.until("document.getElementById('panel-body').textContent.includes('still runs')")
        # It goes on while it is open.
        at.say(part(name, b"12345678", Outcome.LENGTH))
        async for _ in call:
            pass
        await tab.until("document.getElementById('panel-body').textContent.includes('length')")
        await tab.press("Escape")
        # From the top, Tab leads everywhere: the heads of the table, one row, the log.
        await tab.js("document.activeElement.blur()")
        stops: list[str] = []
        for _ in range(40):
            await tab.press("Tab")
            stops.append(await tab.js(focused("id") + " || " + focused("className") + " || " + focused("tagName")))
        assert {"open-request", "node-filter", "TR", "log-filter", "log-scroll"} <= set(stops)


async def test_it_is_readable_in_the_dark_on_a_phone_and_without_motion(http_front: Any, tab: Browser) -> None:
    await tab.open(f"http://{http_front.http_address}/ui/")
    await tab.until(f"{ROWS} == 1")
    light = await tab.js("getComputedStyle(document.body).backgroundColor")
    await tab.view(1440, 900, dark=True, still=True)
    dark = await tab.js("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    assert await contrast(tab) >= 4.5
    moves = "[...document.querySelectorAll('*')].some((e) => getComputedStyle(e).transitionDuration != '0s')"
    assert not await tab.js(moves)
    for width in (390, 820, 1440):
        await tab.view(width, 844)
        assert await contrast(tab) >= 4.5
        await tab.until(FITS)
        assert await tab.js("document.querySelector('#nodes tbody tr .c-kv').getBoundingClientRect().right") <= width
    await tab.view(390, 844)
    assert await tab.js("getComputedStyle(document.querySelector('#nodes tbody .c-note')).display") == "none"
    await tab.js("document.querySelector('#nodes tbody tr').click()")
    await tab.until("document.getElementById('panel').open")
    assert await tab.js("document.getElementById('panel').getBoundingClientRect().width") == 390


async def test_four_hundred_nodes_scroll_sort_and_only_changed_cells_are_written(
    node: ScriptedNode, tab: Browser
) -> None:
    # A row each, though nobody listens there.
    dead = [f"127.1.{number // 200}.{number % 200 + 1}:1" for number in range(399)]
    async with running(node.address, *dead, reconnect_max_s=60.0) as (gateway, _):
        await until(lambda: status(gateway, "n") == "up")
        await tab.open(f"http://{gateway.http_address}/ui/")
        await tab.until(f"{ROWS} == 400")
        states = "[...document.querySelectorAll('#nodes .state')].map((one) => one.textContent)"
        await tab.until(f"{states}.filter((state) => state.startsWith('down')).length == 399")
        await tab.js("document.querySelector('#nodes th[data-column=state] button').click()")
        assert await tab.js("document.querySelector('#nodes th[data-column=state]').ariaSort") == "ascending"
        assert await tab.js(cell(399, "name")) == "n"
        await tab.js("document.querySelector('#nodes th[data-column=running] button').click()")
        assert await tab.js(cell(0, "name")) == "n"
        scroll = "document.getElementById('node-scroll')"
        assert await tab.js(f"{scroll}.scrollHeight > 5 * {scroll}.clientHeight")
        await tab.js(f"{scroll}.scrollTop = 1e6")
        assert await tab.js(f"{scroll}.scrollTop") > 5000
        head = "document.querySelector('#nodes thead th').getBoundingClientRect().top"
        assert await tab.js(f"Math.abs({head} - {scroll}.getBoundingClientRect().top)") < 2
        await tab.js(WATCH_CELLS)
        busy = codec.load_to_wire(load("n", waiting=7))
        node.say(predict_pb.NodeFrame(load=predict_pb.LoadNote(load=busy)))
        await tab.until(f"{cell(0, 'waiting')} == '7'")
        written = await tab.js("[...window.written]")
        assert "n waiting" in written
        assert "n running" not in written
        assert len(written) < 50


async def test_a_gateway_that_goes_is_missed_and_found_again(node: ScriptedNode, tab: Browser) -> None:
    async with running(node.address) as (gateway, _):
        address = gateway.http_address
        await until(lambda: status(gateway, "n") == "up")
        await tab.open(f"http://{address}/ui/")
        await tab.until(f"{ROWS} == 1")
    await tab.until("document.getElementById('connection').dataset.state == 'lost'")
    assert await tab.js(ROWS) == 1
    async with running(node.address, http_listen=address) as (gateway, _):
        await tab.until("document.getElementById('connection').dataset.state == 'live'")
    # The browser notes each attempt that found nobody.
    assert all("ERR_" in told for told in tab.complaints)
    tab.complaints.clear()


# --- helpers ----------------------------------------------------------------------------------------------------------


async def first_dispatched(*nodes: ScriptedNode) -> tuple[ScriptedNode, str]:
    """The node that gets the next request, and the name that it has there."""
    waits = {asyncio.create_task(dispatched(one)): one for one in nodes}
    done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    (task,) = done
    return waits[task], task.result().request.request_id


async def contrast(tab: Browser) -> float:
    """The least of a text against the panel below it (a ratio; https://www.w3.org/TR/WCAG22/#contrast-minimum)."""
    return float(
        await tab.js(
            """(() => {
              const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
              const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
              const light = (c) => c.map((v) => linear(v / 255))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
              const below = light(rgb(getComputedStyle(document.querySelector("section")).backgroundColor));
              const texts = [...document.querySelectorAll("section *")].filter((e) =>
                [...e.childNodes].some((n) => n.nodeType == 3 && n.textContent.trim()) && e.checkVisibility());
              return Math.min(...texts.map((e) => {
                const [a, b] = [light(rgb(getComputedStyle(e).color)), below].sort((x, y) => y - x);
                return (a + 0.05) / (b + 0.05);
              }));
            })()"""
        )
    )
