# mypy: ignore-errors
"""Runs in an environment with clients of others: one client and all that it can ask of a server.

    python -m tests.vllm.clients_driver CLIENT URL MODEL

Prints one JSON object: what each question brought, an error as its class and text. Of a client that is not installed
`{"missing": "PACKAGE"}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import Callable

for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(variable, None)
os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LANGSMITH_TRACING="false", DO_NOT_TRACK="1")

HELLO = [{"role": "user", "content": "Say hello."}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Of a city.", "strict": True, "parameters": CITY},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": CITY}}
GREEDY = {"temperature": 0, "max_tokens": 12}
LONGER = {"temperature": 0, "max_tokens": 90}

Steps = dict[str, Callable[[], object]]


def openai_client(url: str, model: str) -> Steps:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    create = client.chat.completions.create

    def told(answer):
        return [
            (c.message.content, c.finish_reason, calls_of(c.message), c.logprobs and c.logprobs.model_dump())
            for c in answer.choices
        ] + [answer.usage.model_dump()]

    def calls_of(message):
        return [(c.type, c.function.name, c.function.arguments) for c in message.tool_calls or []]

    def whole(**fields):
        return told(create(model=model, messages=HELLO, **{**GREEDY, **fields}))

    def streamed(**fields):
        texts, ends, calls, usage = {}, {}, {}, None
        for chunk in create(model=model, messages=HELLO, stream=True, **{**GREEDY, **fields}):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
                ends[choice.index] = choice.finish_reason or ends.get(choice.index)
                for call in choice.delta.tool_calls or []:
                    name, arguments = calls.get(call.index, ("", ""))
                    calls[call.index] = (
                        name + (call.function.name or ""),
                        arguments + (call.function.arguments or ""),
                    )
        return texts, ends, calls, usage and usage.model_dump()

    def helper():
        """The library's own way to put a stream together."""
        asked = {"model": model, "messages": HELLO, "response_format": SCHEMA, **LONGER}
        with client.chat.completions.stream(**asked) as stream:
            kinds = list(dict.fromkeys(event.type for event in stream))
            return kinds, told_without_usage(stream.get_final_completion())

    def told_without_usage(answer):
        return [(c.message.content, c.finish_reason) for c in answer.choices]

    def parsed():
        from typing import Literal

        from pydantic import BaseModel

        class Place(BaseModel):
            city: Literal["Oslo", "Rome"]
            days: Literal[1, 2, 3]

        asked = {"model": model, "messages": HELLO, "response_format": Place, **LONGER}
        return client.chat.completions.parse(**asked).choices[0].message.parsed.model_dump()

    def responses():
        answer = client.responses.create(model=model, input="Say hello.", temperature=0, max_output_tokens=12)
        return answer.output_text, answer.status, answer.usage.model_dump()

    def responses_streamed():
        events = client.responses.create(
            model=model, input="Say hello.", temperature=0, max_output_tokens=12, stream=True
        )
        kinds, text = [], ""
        for event in events:
            if not kinds or kinds[-1] != event.type:
                kinds.append(event.type)
            text += getattr(event, "delta", "") if event.type == "response.output_text.delta" else ""
        return kinds, text

    def asynchronous():
        async def several():
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as many:
                asked = [many.chat.completions.create(model=model, messages=HELLO, **GREEDY) for _ in range(4)]
                return [a.choices[0].finish_reason for a in await asyncio.gather(*asked)]

        return asyncio.run(several())

    def left():
        """Its reader goes away in the middle."""
        with create(model=model, messages=HELLO, stream=True, temperature=0, max_tokens=500) as stream:
            return next(iter(stream)).object

    weather = {"type": "function", "function": {"name": "weather"}}
    return {
        "models": lambda: [m.id for m in client.models.list()],
        "whole": whole,
        "streamed": streamed,
        "streamed with usage": lambda: streamed(stream_options={"include_usage": True}),
        "stream helper": helper,
        "logprobs": lambda: whole(logprobs=True, top_logprobs=2),
        "n of 2": lambda: whole(n=2, temperature=1, seed=3),
        "n of 2, streamed": lambda: streamed(n=2, temperature=1, seed=3),
        "tools, auto": lambda: whole(tools=[TOOL], tool_choice="auto"),
        "tools, required": lambda: whole(tools=[TOOL], tool_choice="required", max_tokens=120),
        "tools, required, streamed": lambda: streamed(tools=[TOOL], tool_choice="required", max_tokens=120),
        "tools, named": lambda: whole(tools=[TOOL], tool_choice=weather, max_tokens=90),
        "json_schema": lambda: whole(response_format=SCHEMA, max_tokens=60),
        "json_schema, streamed": lambda: streamed(response_format=SCHEMA, max_tokens=60),
        "parsed": parsed,
        "responses": responses,
        "responses, streamed": responses_streamed,
        "completions": lambda: [
            c.text for c in client.completions.create(model=model, prompt=["One", "Two"], **GREEDY).choices
        ],
        "embeddings": lambda: client.embeddings.create(model=model, input="a").data[0].object,
        "asynchronous": asynchronous,
        "unknown model": lambda: create(model="nobody", messages=HELLO),
        "bad value": lambda: whole(temperature=-1),
        "left": left,
    }


def anthropic_client(url: str, model: str) -> Steps:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0, timeout=120)
    # Newer versions of the library know no temperature.
    common = {"model": model, "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}}
    tool = {"name": "weather", "description": "Of a city.", "strict": True, "input_schema": CITY}

    def told(answer):
        blocks = [{k: v for k, v in b.model_dump().items() if k != "id"} for b in answer.content]
        return blocks, answer.stop_reason, answer.usage.input_tokens, answer.usage.output_tokens

    def whole(**fields):
        return told(client.messages.create(**{**common, **fields}))

    def streamed(**fields):
        with client.messages.stream(**{**common, **fields}) as stream:
            text = "".join(stream.text_stream)
            return text, told(stream.get_final_message())

    forced = {"tools": [tool], "tool_choice": {"type": "any"}, "max_tokens": 120}
    return {
        "whole": whole,
        "system": lambda: whole(system="Be brief."),
        "streamed": streamed,
        "tools, auto": lambda: whole(tools=[tool]),
        "tools, any": lambda: whole(**forced),
        "tools, any, streamed": lambda: streamed(**forced),
        "count_tokens": lambda: client.messages.count_tokens(model=model, messages=HELLO).input_tokens,
        "unknown model": lambda: whole(model="nobody"),
    }


def langchain_client(url: str, model: str) -> Steps:
    from langchain_openai import ChatOpenAI
    from pydantic import BaseModel

    class Place(BaseModel):
        """A place and how long to stay."""

        city: str
        days: int

    def llm(**fields):
        return ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", max_retries=0, **{**GREEDY, **fields})

    def streamed():
        pieces = list(llm(stream_usage=True).stream("Say hello."))
        return "".join(p.content for p in pieces), [p.usage_metadata for p in pieces if p.usage_metadata]

    def tools(choice):
        answer = llm(max_tokens=120).bind_tools([TOOL], tool_choice=choice).invoke("Weather in Oslo?")
        return answer.content, [(c["name"], c["args"]) for c in answer.tool_calls]

    return {
        "whole": lambda: (lambda a: (a.content, a.usage_metadata))(llm().invoke("Say hello.")),
        "streamed": streamed,
        "tools, auto": lambda: tools("auto"),
        "tools, required": lambda: tools("required"),
        "batch": lambda: [a.content for a in llm().batch(["One", "Two", "Three"])],
        "structured": lambda: (
            llm(max_tokens=90).with_structured_output(CITY | {"title": "place"}).invoke("Oslo, 3 days")
        ),
        "structured, function calling": lambda: (
            llm(max_tokens=90)
            .with_structured_output(CITY | {"title": "place"}, method="function_calling", strict=True)
            .invoke("Oslo, 3 days")
        ),
        "responses": lambda: llm(use_responses_api=True).invoke("Say hello.").content[0]["text"],
        "asynchronous": lambda: asyncio.run(llm().ainvoke("Say hello.")).content,
    }


def llama_index_client(url: str, model: str) -> Steps:
    from typing import Literal

    from llama_index.core.llms import ChatMessage
    from llama_index.core.tools import FunctionTool
    from llama_index.llms.openai_like import OpenAILike

    llm = OpenAILike(
        model=model,
        api_base=f"{url}/v1",
        api_key="none",
        max_retries=0,
        is_chat_model=True,
        is_function_calling_model=True,
        context_window=2048,
        strict=True,
        **LONGER,
    )
    messages = [ChatMessage(role="user", content="Say hello.")]

    def weather(days: Literal[1, 2, 3]) -> str:
        """The weather of the coming days."""
        return f"rain for {days} days"

    def tools():
        tool = FunctionTool.from_defaults(weather)
        answer = llm.chat_with_tools([tool], user_msg="Weather?", tool_required=True)
        calls = llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
        return [(c.tool_name, c.tool_kwargs) for c in calls]

    return {
        "whole": lambda: llm.chat(messages).message.content,
        "streamed": lambda: "".join(p.delta or "" for p in llm.stream_chat(messages)),
        "complete": lambda: llm.complete("Say hello.").text,
        "tools": tools,
    }


def litellm_client(url: str, model: str) -> Steps:
    import litellm

    litellm.telemetry = False

    def ask(**fields):
        common = {"api_base": f"{url}/v1", "api_key": "none", "num_retries": 0, "messages": HELLO, **GREEDY}
        return litellm.completion(model=f"hosted_vllm/{model}", **{**common, **fields})

    def told(answer):
        choice = answer.choices[0]
        calls = [(c.function.name, c.function.arguments) for c in choice.message.tool_calls or []]
        return choice.message.content, choice.finish_reason, calls, answer.usage.total_tokens

    return {
        "whole": lambda: told(ask()),
        "streamed": lambda: "".join(c.choices[0].delta.content or "" for c in ask(stream=True)),
        "tools, required": lambda: told(ask(tools=[TOOL], tool_choice="required", max_tokens=120)),
        "json_schema": lambda: told(ask(response_format=SCHEMA, max_tokens=60)),
        "unknown model": lambda: litellm.completion(
            model="hosted_vllm/nobody", api_base=f"{url}/v1", api_key="none", num_retries=0, messages=HELLO
        ),
    }


def instructor_client(url: str, model: str) -> Steps:
    from typing import Literal

    import instructor
    import openai
    from pydantic import BaseModel, Field

    class Place(BaseModel):
        city: Literal["Oslo", "Rome"]
        days: int = Field(ge=1, le=9)

    def ask(mode):
        plain = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        client = instructor.from_openai(plain, mode=mode)
        made = client.chat.completions.create(
            model=model, messages=HELLO, response_model=Place, max_retries=0, **LONGER
        )
        return made.model_dump()

    return {
        "tools": lambda: ask(instructor.Mode.TOOLS_STRICT),
        "json_schema": lambda: ask(instructor.Mode.JSON_SCHEMA),
    }


CLIENTS = {
    "openai": openai_client,
    "anthropic": anthropic_client,
    "langchain": langchain_client,
    "llama_index": llama_index_client,
    "litellm": litellm_client,
    "instructor": instructor_client,
}
MADE_UP = re.compile(r"[0-9a-f]{16,}|127\.0\.0\.1:\d+")


def main() -> None:
    name, url, model = sys.argv[1:]
    try:
        steps = CLIENTS[name](url, model)
    except ImportError as missing:
        sys.stdout.write(json.dumps({"missing": missing.name or str(missing)}) + "\n")
        return
    told: dict[str, object] = {}
    for step, ask in steps.items():
        try:
            told[step] = ask()
        except Exception as error:
            told[step] = {"error": type(error).__name__, "says": MADE_UP.sub("...", str(error))[:600]}
    sys.stdout.write(json.dumps(told, default=str) + "\n")


if __name__ == "__main__":
    main()
