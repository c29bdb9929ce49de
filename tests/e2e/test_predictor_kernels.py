"""What a predictor's process calls is compiled before it serves: while a compiler runs it says nothing, and gateways
take it for lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import asyncio, json, sys

import msgspec

from simcore import warmup
from simcore.compiled.entry import ENTRIES
from simcore.types import Candidate, LengthBelief


def compiled():
    return {name: len(function.signatures) for name, function in ENTRIES._asdict().items()}


async def serve():
    from tests.unit.predictor.test_node_runtime import CONFIG, Rig

    rig = Rig(msgspec.structs.replace(CONFIG, **json.loads(sys.argv[1])))
    await rig.node.start()
    for i in range(12):
        rig.dispatch(f"r{i}", 200)
    await rig.until(lambda: rig.tokens.get("r0", 0) > 5)
    belief = LengthBelief((50,))
    ask = Candidate(request_id="c", prompt_tokens=20, max_output_tokens=50, belief=belief)
    stays = Candidate(request_id="r0", prompt_tokens=20, max_output_tokens=50, belief=belief, leaving=True)
    answers = await rig.node.asking.forecast([ask, stays])
    await rig.node.requests.abort("r3")
    await rig.until(lambda: len(rig.ends) >= 11)
    await rig.node.close()
    return answers


for of in sys.argv[2:]:
    getattr(warmup, of)()
before = compiled()
answers = asyncio.run(serve())
late = [name for name, count in compiled().items() if count != before[name]]
print(json.dumps({"answers": [type(answer).__name__ for answer in answers], "late": late}))
"""


@pytest.mark.parametrize(
    ("engine", "warmed"),
    [
        ({}, ["warm_node"]),
        ({"kv_windows_tokens": (0, 64)}, ["warm_node", "warm_node_of_all_rules"]),
        ({"num_speculative_tokens": 2}, ["warm_node", "warm_node_of_all_rules"]),
    ],
    ids=["plain", "windows", "drafts"],
)
def test_a_daemon_that_is_ready_compiles_nothing_more(engine: dict[str, Any], warmed: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, json.dumps(engine), *warmed]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said == {"answers": ["Forecast", "Forecast"], "late": []}
