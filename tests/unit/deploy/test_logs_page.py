"""deploy/logs.md names every line that gateway and daemon can write, with its fields, and no other."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.helpers.log_page import described

ROOT = Path(__file__).resolve().parents[3]
LEVELS = {"debug", "info", "warning", "error", "exception", "log"}


def texts(node: ast.expr) -> list[str]:
    """What an event's expression can be; nothing for one that is put together."""
    if isinstance(node, ast.IfExp):
        return [*texts(node.body), *texts(node.orelse)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def lines_of(*folders: str) -> dict[str, set[str]]:
    """Events in the code with the fields that they name."""
    found: dict[str, set[str]] = {}
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        for call in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[0].endswith("log")):
                continue
            function = call.func.body if isinstance(call.func, ast.IfExp) else call.func
            if not (isinstance(function, ast.Attribute) and function.attr in LEVELS and call.args):
                continue
            fields = {"exception" if word.arg == "exc_info" else word.arg for word in call.keywords if word.arg}
            if function.attr == "exception":
                fields.add("exception")
            for event in texts(call.args[1 if function.attr == "log" else 0]):
                if not event.startswith("astrolabe:"):
                    found.setdefault(event, set()).update(fields)
    return found


def test_the_page_has_every_line_and_no_other() -> None:
    page = {**described("Daemon"), **described("Gateway")}
    both = [described("Daemon"), described("Gateway")]
    code = lines_of("gateway", "predictor", "protos/runtime", "engine_adapters")
    put_together = {"the connector cannot start a node", "the connector cannot stop a node"}
    by_notices = {"forecasts are too far off to place by", "forecasts are to be trusted again"}
    assert set(code) | put_together | by_notices == set(page)
    for event, fields in code.items():
        told: set[str] = set().union(
            *(section[event].always | section[event].sometimes for section in both if event in section)
        )
        assert fields <= told, event
