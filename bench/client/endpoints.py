"""Open-loop replay against plain OpenAI-compatible servers, with their metrics read beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
import msgspec

from bench.client.balance import Balance, Dispatch, Token, make_balance
from bench.client.open_loop import Progress, made_up_prompt, reach
from bench.client.openai_client import complete, completion_body
from bench.client.server_metrics import ServerSample, read_sample
from bench.measure.results import RequestResult
from bench.workload.item import WorkloadItem
from gateway.core.outcomes import COMPLETE

METRICS_TIMEOUT_S = 5.0


class EndpointError(ValueError):
    """A server cannot be used as it was named."""


class EndpointPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send where."""

    urls: Sequence[str]
    """Roots of the servers, without `/v1`."""
    items: Sequence[WorkloadItem]
    model: str
    dispatch: Dispatch = "rr"
    natural_length: bool = False
    seed: int = 0
    vocab_size: int = 256
    timeout_s: float = 600.0
    poll_interval_s: float = 0.1


class EndpointRun(msgspec.Struct, frozen=True, kw_only=True):
    """What came back. `samples` per server, in time; those of a server without `/metrics` are empty."""

    results: list[RequestResult]
    samples: dict[str, list[ServerSample]]
    polls_failed: int


class ServedModel(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`. `max_model_len`: vLLM says it, others do not."""

    id: str
    max_model_len: int | None = None


class _Models(msgspec.Struct, frozen=True):
    data: list[ServedModel]


async def served_models(urls: Sequence[str], model: str) -> list[ServedModel]:
    """The model that every server will be asked for: `model`, or the first one of the first server.

    Raises:
        EndpointError: a server does not answer, answers something else, or does not serve the model.
    """
    found: list[ServedModel] = []
    timeout = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for url in urls:
            try:
                async with http.get(f"{url}/v1/models") as response:
                    body = await response.read()
                    response.raise_for_status()
                models = msgspec.json.decode(body, type=_Models).data
            except (aiohttp.ClientError, TimeoutError, msgspec.DecodeError, ValueError) as error:
                raise EndpointError(
                    f"{url}/v1/models gives no list of models ({error or type(error).__name__}); is an "
                    "OpenAI-compatible server there? Name its root, for example http://127.0.0.1:8000"
                ) from error
            wanted = model or (found[0].id if found else models[0].id if models else "")
            match = next((entry for entry in models if entry.id == wanted), None)
            if match is None:
                known = ", ".join(entry.id for entry in models) or "none"
                raise EndpointError(f"{url} does not serve {wanted!r}; its models are {known}")
            found.append(match)
    return found


async def run_endpoints(plan: EndpointPlan, *, progress: Progress | None = None) -> EndpointRun:
    """Sends each item when it is due to the server that the dispatch rule names, and waits for every answer."""
    count = progress if progress is not None else Progress()
    balance = make_balance(plan.dispatch, len(plan.urls))
    prompts = [
        item.prompt or made_up_prompt(item, seed=plan.seed, index=index, vocab_size=plan.vocab_size)
        for index, item in enumerate(plan.items)
    ]
    samples: dict[str, list[ServerSample]] = {url: [] for url in plan.urls}
    failures: list[str] = []
    # One connection per request in flight, as many as the open loop needs.
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None), read_bufsize=2**20
    ) as http:
        pollers = [
            asyncio.create_task(_poll(http, url, plan.poll_interval_s, samples[url], failures)) for url in samples
        ]
        start_s = time.perf_counter()
        tasks: list[asyncio.Task[RequestResult]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for item, prompt in zip(plan.items, prompts, strict=True):
                    due_s = start_s + item.arrival_s
                    await reach(due_s)
                    tasks.append(group.create_task(_one(http, plan, balance, (item, prompt), due_s, count)))
        finally:
            for poller in pollers:
                poller.cancel()
            await asyncio.gather(*pollers, return_exceptions=True)
        for url in samples:
            await _sample(http, url, samples[url], failures)
    return EndpointRun(results=[task.result() for task in tasks], samples=samples, polls_failed=len(failures))


async def _one(
    http: aiohttp.ClientSession,
    plan: EndpointPlan,
    balance: Balance,
    request: tuple[WorkloadItem, str | list[int]],
    due_s: float,
    count: Progress,
) -> RequestResult:
    item, prompt = request
    tokens: Sequence[Token] = prompt.split() if isinstance(prompt, str) else prompt
    server = balance.choose(tokens)
    count.sent += 1
    body = completion_body(item, model=plan.model, prompt=prompt, natural_length=plan.natural_length)

    def on_tokens(tokens: int) -> None:
        count.tokens += tokens

    begun_s = time.perf_counter()
    result = await complete(
        http, plan.urls[server], body, item=item, due_s=due_s, timeout_s=plan.timeout_s, on_tokens=on_tokens
    )
    balance.ended(server, tokens, time.perf_counter() - begun_s)
    count.ended += 1
    count.failed += result.outcome not in COMPLETE
    return result


async def _poll(
    http: aiohttp.ClientSession, url: str, interval_s: float, into: list[ServerSample], failures: list[str]
) -> None:
    while True:
        await _sample(http, url, into, failures)
        await asyncio.sleep(interval_s)


async def _sample(http: aiohttp.ClientSession, url: str, into: list[ServerSample], failures: list[str]) -> None:
    timeout: Any = aiohttp.ClientTimeout(total=METRICS_TIMEOUT_S)
    try:
        async with http.get(f"{url}/metrics", timeout=timeout) as response:
            text = await response.text()
            response.raise_for_status()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        failures.append(f"{url}/metrics: {error or type(error).__name__}")
        return
    into.append(read_sample(text, time.perf_counter()))
