# mypy: disable-error-code="import-not-found"
"""Runs inside a vLLM environment: traced schedulers in surroundings that do not suit the trace.

Prints one JSON object: for each case whether the trace is on, what was logged, and how many tokens the engine made.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.vllm.scheduler_driver import Engine

ANSWER_TOKENS = 20


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            self.lines.append(record.getMessage())


def tried(prepare: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """One engine that answers one request; `prepare` gets it before its first step."""
    from engine_adapters.vllm import scheduler as ours

    seen = Lines()
    ours.log.addHandler(seen)
    ours.log.setLevel(logging.WARNING)
    ours.log.propagate = False
    limits = {"max_num_seqs": 4, "budget": 64, "blocks": 40, "max_loras": 0, "windows": "0", "drafts": 0, "seed": 0}
    options = {"mode": "sync", "policy": "fcfs", "plain": False, **limits}
    try:
        engine = Engine(argparse.Namespace(**options))
        if prepare is not None:
            prepare(engine.scheduler)
        engine.add("r", prompt=[9] * 30, max_tokens=ANSWER_TOKENS, priority=0, ends_at=ANSWER_TOKENS + 1)
        request = engine.scheduler.requests["r"]
        for _ in range(ANSWER_TOKENS + 10):
            engine.step()
        recorder = engine.scheduler._astrolabe
        return {
            "traced": recorder is not None and recorder.on,
            "lines": seen.lines,
            "tokens": request.num_output_tokens,
            "left": len(engine.scheduler.requests),
        }
    finally:
        ours.log.removeHandler(seen)


def break_hooks(scheduler: Any) -> None:
    """As if this vLLM's plans lacked what the hooks read of them."""

    def planned(_: Any) -> None:
        raise AttributeError("num_scheduled_tokens")

    scheduler._astrolabe.planned = planned


def main() -> None:
    from engine_adapters.vllm import describe

    folder = Path(tempfile.mkdtemp(prefix="astrolabe-degraded-"))
    (folder / "file").write_text("")

    def at(address: str) -> None:
        os.environ["ASTROLABE_TRACE"] = address

    found: dict[str, Any] = {}
    at(f"unix:{folder}/good.sock")
    found["well"] = tried()
    at(f"unix:{folder}/broken.sock")
    found["a defect in a hook"] = tried(break_hooks)
    at(f"unix:{folder}/file/t.sock")
    found["no place for a socket"] = tried()
    at("tcp:10.0.0.1:9")
    found["an address beyond this machine"] = tried()
    at(f"unix:{folder}/version.sock")
    version, describe.vllm_version = describe.vllm_version, lambda: "9.1.0"
    found["a release that nobody has seen"] = tried()
    describe.vllm_version = version
    at(f"unix:{folder}/parts.sock")
    describe._NEEDED += ("part_of_another_release",)  # type: ignore[assignment]
    found["a scheduler that lacks a part"] = tried()
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # vLLM's own threads would keep the process


if __name__ == "__main__":
    main()
