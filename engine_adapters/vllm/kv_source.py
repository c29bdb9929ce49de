"""From where a vLLM fetches the KV of a prompt instead of computing it: another vLLM that has it in its prefix cache.

Two of vLLM's own connectors do that; the source's text (`EngineConfig.kv_source`) says which:

- a URL, the source's API server: `NixlConnector`. The source is asked first for the same prompt and one token,
  nearly all of it found in its cache; its answer says which blocks it holds until they are fetched (vLLM's
  `docs/features/nixl_connector_usage.md`).
- host:port, the source's side channel: `OffloadingConnector` with a `p2p` tier, which asks by itself.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from engine_adapters.base import EngineError, EngineRequest
from engine_adapters.vllm.request_ids import engine_request_id
from protos.runtime.addresses import parse_address

HOLD_TIMEOUT_S = 5.0
"""A source that is so busy is not worth waiting for."""


def is_api_server(source: str) -> bool:
    return "://" in source


def side_channel(request: EngineRequest) -> dict[str, Any]:
    """`kv_transfer_params` that name a side channel."""
    source = parse_address(request.kv_source)
    name = engine_request_id(request.request_id)
    return {"remote_kv_source": {"kv_request_id": name, "remote_host": source.host, "remote_port": source.port}}


async def held_blocks(request: EngineRequest, model: str, session: aiohttp.ClientSession) -> dict[str, Any]:
    """Has the source hold the blocks of the prompt; the `kv_transfer_params` by which they are fetched.

    Raises EngineError when it does not hold them: the prompt is computed then.
    """
    wanted = {
        "model": request.model or model,
        "prompt": request.prompt_token_ids,
        "max_tokens": 1,
        "temperature": 0.0,
        "add_special_tokens": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }
    try:
        async with session.post(
            f"{request.kv_source}/v1/completions",
            data=msgspec.json.encode(wanted),
            headers={"Content-Type": "application/json"},
            timeout=aiohttp.ClientTimeout(total=HOLD_TIMEOUT_S),
        ) as answer:
            body = await answer.read()
            if answer.status != 200:
                raise EngineError(f"{request.kv_source} answered {answer.status}")
            held = msgspec.json.decode(body, type=_Held).kv_transfer_params
    except TimeoutError:
        raise EngineError(f"{request.kv_source} did not answer within {HOLD_TIMEOUT_S:g} s") from None
    except (aiohttp.ClientError, OSError) as error:
        raise EngineError(f"{request.kv_source}: {error or type(error).__name__}") from None
    except msgspec.MsgspecError as error:
        raise EngineError(f"{request.kv_source} answered what cannot be read: {error}") from None
    if not held:
        raise EngineError(
            f"{request.kv_source} holds no KV: it was not started with --kv-transfer-config NixlConnector"
        )
    return held


class _Held(msgspec.Struct, frozen=True):
    kv_transfer_params: dict[str, Any] | None = None
