"""Reads lines of JSON, `{"kind", "tree", "whole"}`, and says whether vLLM's protocol model of that kind takes each.

    python -m tests.vllm.protocol_driver < lines

Runs in vLLM's environment. Answers with one JSON object a line: `error` (empty: taken) and `lost`, the fields that vLLM
would write into a whole answer and that are missing in ours, or that ours has beyond. A kind `schema` is a JSON schema
(`tree[0]`) with a value for it (`tree[1]`), `anthropic.Message` a type of that client library.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

from engine_adapters.emulated_api.checks import VllmChecks
from engine_adapters.emulated_api.errors import ApiError


def differing(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two trees have different fields."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        found = [f"{path}.{key}" for key in sorted(ours.keys() ^ theirs.keys())]
        for key in ours.keys() & theirs.keys():
            found += differing(ours[key], theirs[key], f"{path}.{key}")
        return found
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [d for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) for d in differing(a, b, f"{path}[{i}]")]
    return []


def main() -> None:
    from pydantic import TypeAdapter

    jsonschema = importlib.import_module("jsonschema")
    checks = VllmChecks()
    for line in sys.stdin:
        asked = json.loads(line)
        kind, tree = asked["kind"], asked["tree"]
        lost: list[str] = []
        error = ""
        try:
            if kind == "schema":
                jsonschema.validate(tree[1], tree[0])
            elif kind.startswith("anthropic."):
                TypeAdapter(
                    getattr(importlib.import_module("anthropic.types"), kind.partition(".")[2])
                ).validate_python(tree)
            elif kind not in checks.kinds():
                error = "vLLM has no model of this kind"
            elif asked.get("body"):
                checks.check_body(kind, json.dumps(tree).encode())
            else:
                lost = differing(tree, checks.written(kind, tree, whole=asked.get("whole", False)))
        except (ApiError, ValueError, jsonschema.ValidationError) as bad:
            error = str(bad)[:500] or repr(bad)
        sys.stdout.write(json.dumps({"error": error, "lost": lost}) + "\n")


if __name__ == "__main__":
    main()
