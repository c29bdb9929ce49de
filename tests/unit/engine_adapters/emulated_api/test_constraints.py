"""Answers held to a schema, a pattern or a choice keep to it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from engine_adapters.emulated_api.errors import ApiError
from engine_adapters.emulated_api.json_values import made_up
from engine_adapters.emulated_api.patterns import matching_text
from tests.helpers.emulated_calls import emulated_caller
from tests.helpers.emulated_samples import SCHEMAS

SEED = 5
ASK = {"messages": [{"role": "user", "content": "who is it?"}]}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def is_person(value: Any) -> bool:
    return (
        set(value) == {"name", "age", "tags"}
        and isinstance(value["name"], str)
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 120
        and 2 <= len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "b"}
    )


CASES: list[tuple[dict[str, Any], Callable[[str], bool]]] = [
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}},
        lambda text: is_person(json.loads(text)),
    ),
    ({"response_format": {"type": "json_object"}}, lambda text: isinstance(json.loads(text), dict)),
    ({"structured_outputs": {"json": PERSON}}, lambda text: is_person(json.loads(text))),
    ({"structured_outputs": {"json": json.dumps(PERSON)}}, lambda text: is_person(json.loads(text))),
    ({"structured_outputs": {"json_object": True}}, lambda text: isinstance(json.loads(text), dict)),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, lambda text: text in ("yes", "no")),
    ({"structured_outputs": {"regex": r"\d{3}-[a-f]+"}}, lambda text: bool(re.fullmatch(r"\d{3}-[a-f]+", text))),
    ({"guided_choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
    ({"guided_regex": r"(red|green)\s\w+"}, lambda text: bool(re.fullmatch(r"(red|green)\s\w+", text))),
    ({"guided_json": PERSON}, lambda text: is_person(json.loads(text))),
]


@pytest.mark.parametrize("tokenizer", ["bytes", "qwen2"])
@pytest.mark.parametrize("stream", [False, True])
async def test_chats_keep_to_what_they_are_held_to(tokenizer: str, stream: bool) -> None:
    async with emulated_caller(tokenizer=tokenizer) as caller:
        for more, keeps in CASES:
            answered = await caller.call("/v1/chat/completions", {**ASK, **more, "stream": stream})
            if stream:
                said = [choice for event in answered.events()[:-1] for choice in event["choices"]]
                text = "".join(choice["delta"].get("content", "") for choice in said)
                finish = said[-1]["finish_reason"]
            else:
                (choice,) = answered.json()["choices"]
                text, finish = choice["message"]["content"], choice["finish_reason"]
            assert keeps(text), (more, text)
            assert finish == "stop"


async def test_completions_are_held_too_each_answer_with_words_of_its_own() -> None:
    async with emulated_caller() as caller:
        body = {"prompt": ["a", "b"], "n": 3, "max_tokens": 300, "structured_outputs": {"json": PERSON}}
        texts = [c["text"] for c in (await caller.call("/v1/completions", body)).json()["choices"]]
        assert all(is_person(json.loads(text)) for text in texts)
        assert len(set(texts)) > 3


async def test_an_answer_that_is_too_long_is_cut_where_the_limit_is() -> None:
    async with emulated_caller() as caller:
        body = {**ASK, "max_tokens": 5, "guided_choice": ["a very long choice"]}
        (choice,) = (await caller.call("/v1/chat/completions", body)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("a ver", "length")


def types(value: Any) -> set[str]:
    names = {dict: "object", list: "array", str: "string", type(None): "null", bool: "boolean", float: "number"}
    return {"integer", "number"} if type(value) is int else {names[type(value)]}


def keeps(value: Any, schema: Any, root: Any) -> bool:
    """A checker of the keywords that the schemas of the test use, written against the specification."""
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema and not keeps(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root):
        return False
    options = [keeps(value, option, root) for option in schema.get("anyOf", ())]
    one = [keeps(value, option, root) for option in schema.get("oneOf", ())]
    wanted = schema.get("type")
    checks = [
        not options or any(options),
        not one or sum(one) == 1,
        all(keeps(value, part, root) for part in schema.get("allOf", ())),
        "const" not in schema or value == schema["const"],
        "enum" not in schema or value in schema["enum"],
        wanted is None or bool(types(value) & set([wanted] if isinstance(wanted, str) else wanted)),
    ]
    if isinstance(value, dict):
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        checks += [keeps(inner, properties.get(name, more), root) for name, inner in value.items()]
        checks += [name in value for name in schema.get("required", ())]
        checks.append(schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", 99))
    elif isinstance(value, list):
        first, items = schema.get("prefixItems", []), schema.get("items", True)
        checks += [keeps(v, first[i] if i < len(first) else items, root) for i, v in enumerate(value)]
        checks.append(schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 99))
        checks.append(not schema.get("uniqueItems") or len({json.dumps(v) for v in value}) == len(value))
        checks.append("contains" not in schema or any(keeps(v, schema["contains"], root) for v in value))
    elif isinstance(value, str):
        checks.append(schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", 999))
        checks.append("pattern" not in schema or re.search(schema["pattern"], value) is not None)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        checks.append(schema.get("minimum", value) <= value <= schema.get("maximum", value))
        checks.append(schema.get("exclusiveMinimum", value - 1) < value < schema.get("exclusiveMaximum", value + 1))
        checks.append(value % schema.get("multipleOf", value or 1) == 0)
    return all(checks)


@pytest.mark.parametrize("schema", SCHEMAS, ids=[json.dumps(s)[:40] for s in SCHEMAS])
def test_made_up_values_satisfy_their_schema(schema: dict[str, Any]) -> None:
    rng = random.Random(SEED)
    for _ in range(200):
        value = made_up(schema, rng)
        assert json.loads(json.dumps(value)) == value
        assert keeps(value, schema, schema), f"seed {SEED}: {value!r}"


def test_the_same_luck_makes_the_same_value() -> None:
    assert made_up(PERSON, random.Random(SEED)) == made_up(PERSON, random.Random(SEED))
    assert len({json.dumps(made_up(PERSON, random.Random(i))) for i in range(20)}) > 10


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "unheard"}, "is no type"),
        ({"enum": []}, "enum must be a list"),
        ({"$ref": "#/$defs/absent"}, "is not in it"),
        ({"$ref": "https://example.com/x"}, "outside it"),
        ({"$ref": "#"}, "circle"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no end"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "between its bounds"),
        ({"type": "string", "minLength": 5, "maxLength": 4}, "no text has that length"),
        ({"type": "array", "items": {"const": 1}, "uniqueItems": True, "minItems": 2}, "different items"),
        ({"type": "string", "pattern": "(?=a)b"}, "beyond an emulated engine"),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ApiError, match=re.escape(why)):
        made_up(schema, random.Random(SEED))


@pytest.mark.parametrize(
    "pattern",
    [r"[a-z]{2,4}\d+", r"(foo|bar)?-baz", r"^\w+@\w+\.com$", r"[^abc]x*", r"(?P<a>\d)(?:z|y)\1", r"a{3}.", "ä[é-ü]?"],
)
def test_texts_match_their_pattern(pattern: str) -> None:
    rng = random.Random(SEED)
    for _ in range(100):
        text = matching_text(pattern, rng, whole=True)
        assert re.fullmatch(pattern, text), f"seed {SEED}: {text!r}"
