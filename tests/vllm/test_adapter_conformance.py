"""The conformance suites of all engine adapters, against a real vLLM server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.vllm.servers import ROOT, emulated_server

SUITES = ("tests/conformance/test_engine_adapters.py", "tests/conformance/test_forwarders.py")


def test_the_vllm_adapter_conforms(vllm_python: str, tmp_path: Path) -> None:
    server = emulated_server(
        vllm_python,
        tmp_path,
        max_num_seqs=8,
        max_num_batched_tokens=64,
        num_blocks=16,
        max_model_len=200,
        tokenizer="bytes",
        time_scale=10,
    )
    try:
        server.start().wait_ready()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *SUITES, "-k", "vllm"],
            cwd=ROOT,
            env={**os.environ, "ASTROLABE_TEST_VLLM": server.url},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        server.stop()
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
