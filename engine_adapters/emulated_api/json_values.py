"""A value that satisfies a JSON schema, made up. Pure.

What it keeps to: type, enum, const, properties, required, additionalProperties, items, prefixItems, lengths and bounds,
multipleOf, pattern, the common formats, $ref (within the schema), anyOf, oneOf and allOf.
"""

from __future__ import annotations

import math
import random
from typing import Any

from engine_adapters.emulated_api.errors import ApiError
from engine_adapters.emulated_api.patterns import matching_text

_SAID = """amber bright calm delta early fable gentle harbor island jolly kind lunar meadow noble ocean plain quiet
river silver tidal upper velvet wander young zephyr"""
WORDS = tuple(_SAID.split())
DEEP = 5
"""Levels below which nothing is said that need not be."""
TOO_DEEP = 40
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_KEYWORDS = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems", "contains"),
    "string": ("pattern", "minLength", "maxLength", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_FORMATS = {
    "date": "2026-03-14",
    "time": "15:09:26Z",
    "date-time": "2026-03-14T15:09:26Z",
    "duration": "PT5M",
    "email": "amber@example.com",
    "hostname": "river.example.com",
    "ipv4": "192.0.2.17",
    "ipv6": "2001:db8::17",
    "uri": "https://example.com/amber",
    "uuid": "0b9c8f52-6a3e-4d0f-9f0e-2f1d6c3b7a51",
}


def made_up(schema: Any, rng: random.Random) -> Any:
    """A value for the schema. Raises ApiError for one that is not well formed, contradicts itself or is beyond this."""
    return _Maker(schema, rng).value(schema, 0)


def an_object(rng: random.Random) -> dict[str, Any]:
    """Some object, where no schema says more."""
    return {word: rng.choice((rng.choice(WORDS), rng.randint(0, 99), True)) for word in rng.sample(WORDS, 3)}


class _Maker:
    def __init__(self, root: Any, rng: random.Random) -> None:
        self._root = root
        self._rng = rng

    def value(self, schema: Any, depth: int) -> Any:
        if schema is True or schema == {}:
            return self._rng.choice(WORDS)
        if not isinstance(schema, dict):
            raise _bad(f"{schema!r} is no schema")
        if depth > TOO_DEEP:
            raise _bad("it has no end")
        schema = self._resolved(schema, depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._rng.choice(self._list(schema, "enum"))
        kind = self._kind(schema)
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            return self._array(schema, depth)
        if kind == "string":
            return self._string(schema)
        if kind in ("integer", "number"):
            return self._number(schema, whole=kind == "integer")
        return None if kind == "null" else self._rng.random() < 0.5

    def _resolved(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Without references and choices."""
        for _ in range(TOO_DEEP):
            if "$ref" in schema:
                rest = {k: v for k, v in schema.items() if k != "$ref"}
                schema = _merged(self._target(schema["$ref"]), rest)
            elif "allOf" in schema:
                parts = self._list(schema, "allOf")
                schema = {k: v for k, v in schema.items() if k != "allOf"}
                for part in parts:
                    schema = _merged(schema, self._resolved(part, depth) if isinstance(part, dict) else {})
            elif choice := next((k for k in ("anyOf", "oneOf") if k in schema), None):
                options = self._list(schema, choice)
                rest = {k: v for k, v in schema.items() if k != choice}
                if depth >= DEEP:
                    options = sorted(options, key=_weight)[:1]
                option = self._rng.choice(options)
                schema = _merged(rest, option if isinstance(option, dict) else {})
            else:
                return schema
        raise _bad("its references go in a circle")

    def _target(self, reference: Any) -> dict[str, Any]:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _bad(f"it refers to {reference!r}, which is outside it")
        found = self._root
        for step in filter(None, reference[1:].split("/")):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and step.isdecimal() and int(step) < len(found):
                found = found[int(step)]
            elif isinstance(found, dict) and step in found:
                found = found[step]
            else:
                raise _bad(f"{reference} is not in it")
        return found if isinstance(found, dict) else {}

    def _list(self, schema: dict[str, Any], key: str) -> list[Any]:
        values = schema[key]
        if not isinstance(values, list) or not values:
            raise _bad(f"{key} must be a list with something in it")
        return values

    def _kind(self, schema: dict[str, Any]) -> str:
        kinds = schema.get("type")
        if kinds is None:
            return next((k for k, words in _KEYWORDS.items() if any(w in schema for w in words)), "string")
        kind = self._rng.choice(kinds) if isinstance(kinds, list) and kinds else kinds
        if kind not in _TYPES:
            raise _bad(f"{kind!r} is no type")
        return str(kind)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties", {})
        required = schema.get("required", [])
        most = schema.get("maxProperties", math.inf)
        made: dict[str, Any] = {}
        optional_left = most - len(required)
        for name, inner in properties.items():
            wanted = name in required
            if not wanted and inner is not False and depth < DEEP and optional_left > 0 and self._rng.random() < 0.5:
                wanted, optional_left = True, optional_left - 1
            if wanted:
                made[name] = self.value(inner, depth + 1)
        more = schema.get("additionalProperties", True)
        for name in required:
            if name not in made:
                made[name] = self.value(more or True, depth + 1)
        few = schema.get("minProperties", 0 if properties or not isinstance(more, dict) else 1)
        for name in [*properties, *WORDS]:
            if len(made) >= few:
                break
            if name not in made and (name in properties or more is not False):
                made[name] = self.value(properties.get(name, more), depth + 1)
        return made

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        few = max(schema.get("minItems", 0), 1 if "contains" in schema else 0)
        first = schema.get("prefixItems", [])
        items = schema.get("items", True)
        most = schema.get("maxItems", few if depth >= DEEP else few + 2)
        if items is False:
            most = min(most, len(first))
        count = self._rng.randint(min(max(few, 0 if depth >= DEEP else 1), most), most) if most > few else few
        made: list[Any] = []
        tries = 0
        while len(made) < count:
            at = len(made)
            inner = first[at] if at < len(first) else schema["contains"] if "contains" in schema and not at else items
            value = self.value(inner, depth + 1)
            tries += 1
            if not schema.get("uniqueItems") or value not in made:
                made.append(value)
            elif tries > 50 * count:
                if len(made) >= few:
                    break
                raise _bad("there are not so many different items")
        return made

    def _string(self, schema: dict[str, Any]) -> str:
        few, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
        if "pattern" in schema:
            for _ in range(200):
                text = matching_text(schema["pattern"], self._rng, whole=False)
                if few <= len(text) <= most:
                    return text
            raise _bad(f"no text of that length was found for pattern {schema['pattern']!r}")
        text = _FORMATS.get(schema.get("format", ""), "")
        if not text:
            text = " ".join(self._rng.sample(WORDS, 2))
            while len(text) < few:
                text += " " + self._rng.choice(WORDS)
            text = text[: int(min(most, max(few, len(text))))]
            text = text[: len(text) - 1] + "s" if text.endswith(" ") else text
        if not few <= len(text) <= most:
            raise _bad("no text has that length")
        return text

    def _number(self, schema: dict[str, Any], *, whole: bool) -> int | float:
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        over, under = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
        # Draft 4 says with true that the bound itself is excluded.
        over, under = low if over is True else over, high if under is True else under
        step = schema.get("multipleOf", 1 if whole else None)
        if step is None:
            return self._real(low, high, over, under)
        least = max(math.ceil(low / step) if low > -math.inf else -math.inf, _after(over, step))
        greatest = min(math.floor(high / step) if high < math.inf else math.inf, _before(under, step))
        if least == -math.inf:
            least = 0 if greatest >= 0 else greatest - 99
        greatest = min(greatest, least + 99)
        if least > greatest:
            raise _bad("no number lies between its bounds")
        number = self._rng.randint(int(least), int(greatest)) * step
        return int(number) if whole else number

    def _real(self, low: float, high: float, over: float | None, under: float | None) -> float:
        least = max(low, over) if over is not None else low
        greatest = min(high, under) if under is not None else high
        if least == -math.inf:
            least = min(0.0, greatest - 1.0)
        if greatest == math.inf:
            greatest = least + 100.0
        number = round(least + (greatest - least) * self._rng.uniform(0.25, 0.75), 3)
        if not least < number < greatest:
            number = (least + greatest) / 2
        if (
            not low <= number <= high
            or (over is not None and number <= over)
            or (under is not None and number >= under)
        ):
            raise _bad("no number lies between its bounds")
        return number


def _after(bound: float | None, step: float) -> float:
    return -math.inf if bound is None else math.floor(bound / step) + 1


def _before(bound: float | None, step: float) -> float:
    return math.inf if bound is None else math.ceil(bound / step) - 1


def _weight(option: Any) -> int:
    """Options that end soonest come first."""
    kind = option.get("type") if isinstance(option, dict) else None
    plain = kind in ("null", "boolean", "string", "integer", "number") or (
        isinstance(option, dict) and ("const" in option or "enum" in option)
    )
    return 0 if plain else 1 if kind == "array" else 2


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    made = {**first, **second}
    if "properties" in first and "properties" in second:
        made["properties"] = {**first["properties"], **second["properties"]}
    if "required" in first and "required" in second:
        made["required"] = list(dict.fromkeys([*first["required"], *second["required"]]))
    for key, tighter in (("minimum", max), ("minLength", max), ("minItems", max), ("maximum", min)):
        if key in first and key in second:
            made[key] = tighter(first[key], second[key])
    return made


def _bad(why: str) -> ApiError:
    return ApiError(f"The JSON schema cannot be followed: {why}.", param="response_format")
