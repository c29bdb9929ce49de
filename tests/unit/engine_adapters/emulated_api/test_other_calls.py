"""Completions, texts that are read, tokens, sound, and what is asked of the server itself."""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import wave
from typing import Any

import pytest

from engine_adapters.forwarding import ReplyEnd
from tests.helpers.emulated_calls import emulated_caller, limits

PLAIN = "/v1/completions"


async def test_every_prompt_gets_its_answers_in_order() -> None:
    async with emulated_caller() as caller:
        body = {"max_tokens": 4, "ignore_eos": True, "n": 2, "echo": True}
        prompts: list[tuple[Any, list[str], int]] = [
            ("ab", ["ab"], 2),
            ([97, 98, 99], ["abc"], 3),
            (["ab", "cde"], ["ab", "cde"], 5),
            ([[97], [98, 99]], ["a", "bc"], 3),
        ]
        for prompt, texts, tokens in prompts:
            tree = (await caller.call(PLAIN, {**body, "prompt": prompt})).json()
            assert [choice["index"] for choice in tree["choices"]] == list(range(2 * len(texts)))
            for choice in tree["choices"]:
                assert choice["text"].startswith(texts[choice["index"] // 2])
                assert len(choice["text"]) == len(texts[choice["index"] // 2]) + 4
            assert tree["usage"]["prompt_tokens"] == tokens
            assert tree["usage"]["completion_tokens"] == 8 * len(texts)


async def test_streamed_answers_to_several_prompts_are_told_apart_by_their_index() -> None:
    async with emulated_caller() as caller:
        body = {"prompt": ["ab", "cd"], "n": 2, "max_tokens": 5, "ignore_eos": True, "echo": True, "logprobs": 1}
        whole = (await caller.call(PLAIN, body)).json()["choices"]
        answered = await caller.call(PLAIN, {**body, "stream": True, "stream_options": {"include_usage": True}})
        *chunks, usage, done = answered.events()
        assert done == "[DONE]"
        assert usage["usage"] == {"prompt_tokens": 4, "total_tokens": 24, "completion_tokens": 20}
        texts, logprobs = ["", "", "", ""], [[], [], [], []]  # type: ignore[var-annotated]
        for chunk in chunks:
            (choice,) = chunk["choices"]
            texts[choice["index"]] += choice["text"]
            logprobs[choice["index"]] += choice["logprobs"]["text_offset"]
        assert texts == [choice["text"] for choice in whole]
        assert logprobs == [choice["logprobs"]["text_offset"] for choice in whole]
        assert answered.output_tokens == 20


async def test_echo_without_an_answer_gives_the_prompt_back() -> None:
    async with emulated_caller() as caller:
        body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1}
        (choice,) = (await caller.call(PLAIN, body)).json()["choices"]
        assert choice["text"] == "abc"
        assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
        assert choice["logprobs"]["token_logprobs"][0] is None
        refused = await caller.call(PLAIN, {"prompt": "abc", "max_tokens": 0})
        assert refused.status == 400


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ""}, "Either prompt or prompt_embeds must be provided"),
        ({}, "Either prompt or prompt_embeds must be provided"),
        ({"prompt": []}, "at least one prompt"),
        ({"prompt": ["a", 1]}, "Mixed prompt types"),
        ({"prompt": [99_999]}, "out of vocabulary"),
        ({"prompt": "a", "guided_grammar": "root ::= x"}, "does not follow a grammar"),
        ({"prompt": "a", "guided_regex": "a", "guided_choice": ["a"]}, "only use one kind"),
        ({"prompt": "a", "guided_regex": "(("}, "Failed to convert regex"),
    ],
)
async def test_completions_that_are_refused(body: dict[str, Any], said: str) -> None:
    async with emulated_caller() as caller:
        answered = await caller.call(PLAIN, body)
        assert (answered.status, said in answered.json()["error"]["message"]) == (400, True), answered.body


async def test_priority_is_the_schedulers_where_it_has_one() -> None:
    async with emulated_caller(config=limits(scheduling_policy="priority")) as caller:
        assert (await caller.call(PLAIN, {"prompt": "a", "max_tokens": 1, "priority": 3})).status == 200


async def test_embeddings_have_length_one_and_hang_on_the_text() -> None:
    async with emulated_caller() as caller:
        tree = (await caller.call("/v1/embeddings", {"input": ["a", "b", "a"], "dimensions": 8})).json()
        vectors = [entry["embedding"] for entry in tree["data"]]
        assert vectors[0] == vectors[2] != vectors[1]
        assert all(len(v) == 8 and math.isclose(math.hypot(*v), 1.0) for v in vectors)
        assert tree["usage"]["prompt_tokens"] == 3
        packed = (
            await caller.call("/v1/embeddings", {"input": "a", "dimensions": 8, "encoding_format": "base64"})
        ).json()
        unpacked = struct.unpack("8f", base64.b64decode(packed["data"][0]["embedding"]))
        assert unpacked == pytest.approx(vectors[0], rel=1e-6)


async def test_what_is_read_takes_a_prefill_in_the_scheduler() -> None:
    async with emulated_caller() as caller:
        answered = caller.begin("/v1/embeddings", {"input": ["a" * 600, "b"]})
        await caller.until_scheduled(2)
        await caller.until_scheduled(0)
        await answered.ended.wait()
        assert answered.output_tokens == 0


async def test_pooling_gives_a_vector_for_each_token_or_one_for_all() -> None:
    async with emulated_caller() as caller:
        each = (await caller.call("/pooling", {"input": "abc", "dimensions": 2})).json()["data"][0]
        assert (each["object"], len(each["data"]), len(each["data"][0])) == ("pooling", 3, 2)
        one = (await caller.call("/pooling", {"input": "abc", "dimensions": 2, "task": "embed"})).json()["data"][0]
        assert len(one["data"]) == 2
        chat = await caller.call("/pooling", {"messages": [{"role": "user", "content": "abc"}]})
        assert chat.status == 200


async def test_scores_and_ranks_agree_on_pairs() -> None:
    async with emulated_caller() as caller:
        documents = ["b", "c", "d"]
        scores = (await caller.call("/score", {"queries": "a", "documents": documents})).json()["data"]
        assert [s["index"] for s in scores] == [0, 1, 2]
        for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
            ranks = (await caller.call(path, {"query": "a", "documents": documents})).json()["results"]
            assert [r["relevance_score"] for r in ranks] == sorted((s["score"] for s in scores), reverse=True)
            assert all(r["document"]["text"] == documents[r["index"]] for r in ranks)
        best = (await caller.call("/rerank", {"query": "a", "documents": documents, "top_n": 1})).json()["results"]
        assert best == ranks[:1]
        pairs = await caller.call("/v1/score", {"text_1": ["a", "a"], "text_2": ["b", "c"]})
        assert [s["score"] for s in pairs.json()["data"]] == [s["score"] for s in scores[:2]]
        uneven = await caller.call("/score", {"data_1": ["a", "a"], "data_2": documents})
        assert (uneven.status, "1:1, 1:N or N:N" in uneven.json()["error"]["message"]) == (400, True)


async def test_classes_have_probabilities_that_add_up() -> None:
    async with emulated_caller() as caller:
        for entry in (await caller.call("/classify", {"input": ["a", "b"]})).json()["data"]:
            assert sum(entry["probs"]) == pytest.approx(1.0)
            assert entry["probs"][("negative", "positive").index(entry["label"])] >= 0.5


async def test_tokens_and_text_go_both_ways_and_count_as_chats_do() -> None:
    async with emulated_caller(tokenizer="qwen2") as caller:
        said = (await caller.call("/tokenize", {"prompt": "good morning", "return_token_strs": True})).json()
        assert said["count"] == len(said["tokens"]) == len(said["token_strs"])
        assert said["max_model_len"] == 4000
        back = await caller.call("/detokenize", {"tokens": said["tokens"]})
        assert back.json() == {"prompt": "good morning"}
        messages = [{"role": "user", "content": "good morning"}]
        tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        for more in ({}, {"tools": tools}):
            counted = (await caller.call("/tokenize", {"messages": messages, **more})).json()["count"]
            chat = await caller.call("/v1/chat/completions", {"messages": messages, "max_tokens": 1, **more})
            assert chat.json()["usage"]["prompt_tokens"] == counted


async def test_what_the_server_says_of_itself() -> None:
    async with emulated_caller() as caller:
        models = (await caller.get("/v1/models")).json()
        assert [card["id"] for card in models["data"]] == ["m", "alias"]
        assert models["data"][0]["max_model_len"] == 4000
        assert set((await caller.get("/version")).json()) == {"version"}
        for path in ("/health", "/ping"):
            well = await caller.get(path)
            assert (well.status, well.body) == (200, b"")
        assert (await caller.call("/ping")).status == 200


async def test_adapters_come_and_go() -> None:
    async with emulated_caller() as caller:
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        sql = {"lora_name": "sql", "lora_path": "/adapters/sql"}
        assert (await caller.call(PLAIN, {"model": "sql", "prompt": "a", "max_tokens": 1})).status == 404
        loaded = await caller.call(load, sql)
        assert (loaded.status, loaded.body) == (200, b"Success: LoRA adapter 'sql' added successfully.")
        assert await caller.engine.names() == ("m", "alias", "sql")
        cards = (await caller.get("/v1/models")).json()["data"]
        assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
            ("m", "m", None),
            ("alias", "m", None),
            ("sql", "/adapters/sql", "m"),
        ]
        assert (await caller.call(PLAIN, {"model": "sql", "prompt": "a", "max_tokens": 1})).json()["model"] == "sql"
        wrong = [
            (load, sql, 400, "has already been loaded"),
            (load, {"lora_name": "alias", "lora_path": "/x"}, 400, "conflicts with a served base model"),
            (load, {"lora_name": "other", "lora_path": ""}, 400, "must be provided"),
            (unload, {"lora_name": ""}, 400, "needs to be provided"),
            (unload, {"lora_name": "alias"}, 404, "cannot be found"),
        ]
        for path, body, status, words in wrong:
            refused = await caller.call(path, body)
            assert (refused.status, words in refused.json()["error"]["message"]) == (status, True)
        assert (await caller.call(load, {**sql, "load_inplace": True})).status == 200
        assert (await caller.call(unload, {"lora_name": "sql"})).status == 200
        assert await caller.engine.names() == ("m", "alias")


async def test_paths_and_methods_that_are_not_there() -> None:
    async with emulated_caller() as caller:
        nowhere = await caller.call("/v1/nothing/here?x=1", {})
        assert (nowhere.status, nowhere.json()) == (404, {"detail": "Not Found"})
        wrong = await caller.get("/v1/chat/completions")
        assert (wrong.status, wrong.json()) == (405, {"detail": "Method Not Allowed"})
        assert wrong.headers["allow"] == "POST"
        for path in ("/metrics", "/sleep"):
            assert (await caller.call(path, {})).status == 404


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"{", "application/json", "JSON decode error"),
        (b"\xff", "application/json", "JSON decode error"),
        (b"", "application/json", "JSON decode error"),
        (b"[]", "application/json", "Expected `object`"),
        (b"{}", "text/plain", "Only 'application/json' is allowed"),
    ],
)
async def test_bodies_that_are_no_json(body: bytes, content_type: str, said: str) -> None:
    async with emulated_caller() as caller:
        for path in (PLAIN, "/v1/messages", "/v1/embeddings"):
            answered = await caller.call(path, body, content_type=content_type)
            error = answered.json()["error"]
            assert (answered.status, error["type"], error["code"]) == (400, "Bad Request", 400)
            assert said in error["message"]


def form(fields: dict[str, str], sound: bytes | None, boundary: str = "=-frontier") -> tuple[bytes, str]:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if sound is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
        parts.append(head.encode() + b"Content-Type: audio/wav\r\n\r\n" + sound + b"\r\n")
    return b"".join(parts) + f"--{boundary}--\r\n".encode(), f'multipart/form-data; boundary="{boundary}"'


def wav(seconds: float) -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        # Bytes that look like ends of lines must come through.
        sound.writeframes((b"\r\n\n\r" * 4000)[: int(seconds * 16_000)])
    return out.getvalue()


async def test_sound_is_made_into_words_for_as_long_as_it_lasts() -> None:
    async with emulated_caller() as caller:
        body, kind = form({"model": "m"}, wav(0.9))
        tree = (await caller.call("/v1/audio/transcriptions", body, content_type=kind)).json()
        assert tree["usage"] == {"type": "duration", "seconds": 1}
        assert len(tree["text"]) == 3
        body, kind = form({"response_format": "verbose_json"}, wav(0.5))
        verbose = (await caller.call("/v1/audio/transcriptions", body, content_type=kind)).json()
        assert verbose["duration"] == 0.5
        assert verbose["segments"][0]["text"] == verbose["text"]
        body, kind = form({"stream": "true", "stream_include_usage": "true"}, wav(0.9))
        for path, word in (("transcriptions", "transcription"), ("translations", "translation")):
            streamed = (await caller.call(f"/v1/audio/{path}", body, content_type=kind)).events()
            assert {event["object"] for event in streamed[:-1]} == {f"{word}.chunk"}
            assert streamed[-2]["usage"]["completion_tokens"] == 3


async def test_sound_that_is_not_there_is_missed() -> None:
    async with emulated_caller() as caller:
        for fields, status in (({"model": "m"}, 400), ({"file": "a text"}, 422)):
            body, kind = form(fields, None)
            answered = await caller.call("/v1/audio/transcriptions", body, content_type=kind)
            assert answered.status == status
            assert json.loads(answered.body)["error"]["code"] == status
        body, kind = form({"model": "nobody"}, wav(0.1))
        assert (await caller.call("/v1/audio/transcriptions", body, content_type=kind)).status == 404


@pytest.mark.parametrize("body", [{}, {"n": 3}, {"seed": 2**31}, {"seed": -5}])
async def test_what_is_asked_and_said_is_cached_whatever_the_seed(body: dict[str, Any]) -> None:
    async with emulated_caller() as caller:
        prompt = [number % 251 for number in range(16 * 4)]
        asked = {**body, "max_tokens": 17, "ignore_eos": True, "return_token_ids": True}
        tree = (await caller.call(PLAIN, {**asked, "prompt": prompt})).json()
        said = tree["choices"][0]["token_ids"]
        turn = [*prompt, *said, 7, 8, 9]
        again = await caller.call("/v1/responses", {"input": "x" * 100, "max_output_tokens": 4})
        assert again.json()["usage"]["input_tokens_details"]["cached_tokens"] == 0
        again = await caller.call("/v1/responses", {"input": "x" * 100, "max_output_tokens": 4})
        assert again.json()["usage"]["input_tokens_details"]["cached_tokens"] >= 96
        ended = await caller.call(PLAIN, {"prompt": turn, "max_tokens": 1})
        assert isinstance(ended.last, ReplyEnd)
        assert ended.last.cached_tokens == 16 * 5
