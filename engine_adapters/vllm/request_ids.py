"""Our requests' ids within vLLM's own, which its trace tells. Pure."""

from __future__ import annotations

import re

from simcore.trace import child_id

_OWN_ID = re.compile(r"(?:(\d+)_)?.*?astrolabe=(.+)=([^=]*)", re.DOTALL)
_RANDOM = re.compile(r"-[0-9a-f]{8}$")


def own_request_id(engine_id: str) -> str:
    """The id that our client gave to a request, out of the engine's longer one; other people's stay as they are.

    vLLM splits a call with several prompts, or for several answers (n), into requests of their own:
    `1_cmpl-<id>-0-<random>` is the second answer to the first prompt. The first of all has the plain id, the others are
    its children (`simcore.trace.child_id`).
    """
    found = _OWN_ID.fullmatch(engine_id)
    if found is None:
        return engine_id
    answer, request_id, rest = found.groups()
    prompt = _RANDOM.sub("", rest)
    if answer in (None, "0") and prompt in ("", "-0"):
        return request_id
    return child_id(request_id, f"{answer or 0}{prompt}")


def engine_request_id(request_id: str) -> str:
    """The id under which our client sends a request, so that it can be told from those of others."""
    return f"astrolabe={request_id}="
