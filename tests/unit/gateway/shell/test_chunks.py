"""Whole answers that are put together from tokens have the fields of the engines' own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.http.chunks import CHAT, COMPLETION, Style, choice, whole
from gateway.intake.client_stream import Usage
from simcore.types import Outcome
from tests.helpers.emulated_calls import emulated_caller

CALLS: dict[str, tuple[Style, dict[str, Any]]] = {
    "/v1/chat/completions": (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
    "/v1/completions": (COMPLETION, {"prompt": "hi"}),
}


@pytest.mark.parametrize("path", sorted(CALLS))
async def test_every_field_of_an_engine_s_own_answer_is_there_and_no_other(path: str) -> None:
    style, body = CALLS[path]
    async with emulated_caller() as caller:
        engines = (await caller.call(path, {**body, "max_tokens": 2, "ignore_eos": True})).json()
    ours = answer(style)
    assert ours.keys() == engines.keys()
    (our_choice,), (engine_choice,) = ours["choices"], engines["choices"]
    assert our_choice.keys() == engine_choice.keys()
    if style.is_chat:
        assert our_choice["message"].keys() == engine_choice["message"].keys()


def answer(style: Style) -> dict[str, Any]:
    usage = Usage(prompt_tokens=2, output_tokens=2, cached_tokens=0)
    told: dict[str, Any] = orjson.loads(
        whole(
            style,
            [choice(style, "ab", Outcome.LENGTH)],
            request_id="r",
            model="m",
            created=1,
            usage=usage,
            prompt_token_ids=None,
        )
    )
    return told
