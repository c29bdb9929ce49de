"""A stock vLLM with `astrolabe-trace` alone: no other module of ours is where it looks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from tests.e2e.cluster import listed
from tests.helpers.wheels import ROOT, copy_of_checkout, make_wheel
from tests.vllm import servers
from tests.vllm.conftest import before

FLAG = "astrolabe_trace.scheduler.TraceScheduler"


def test_a_server_with_the_trace_package_is_followed(vllm_python: str, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("sources", "dist", "packages"):
        (tmp_path / name).mkdir()
    sources = copy_of_checkout(tmp_path / "sources")
    wheel = make_wheel(sources / "engine_adapters/trace_package", tmp_path / "dist")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(tmp_path / "packages")]
    subprocess.run([*install, str(wheel)], check=True, timeout=100, capture_output=True)
    server = servers.real_server(vllm_python, tiny_model, tmp_path, extra=["--scheduler-cls", FLAG])
    # In vLLM's environment of the tests our checkout is installed: a finder that refuses it stands before all others.
    (tmp_path / "packages" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuses:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('engine_adapters', 'simcore', 'protos'):\n"
        "            raise ModuleNotFoundError(f'{name} is not to be here')\n"
        "sys.meta_path.insert(0, Refuses())\n"
    )
    server = servers.Server(
        server._command,
        {**server._environment, "PYTHONPATH": str(tmp_path / "packages")},
        port=server.port,
        folder=tmp_path,
    )
    assert str(ROOT) not in os.environ.get("PYTHONPATH", "").split(":")
    try:
        server.start().wait_ready()
        with before((server,), tmp_path) as cluster, cluster.stub() as dispatch:
            (node,) = listed(dispatch).values()
            assert node.config.engine_version
            sampling = types_pb.SamplingParams(max_tokens=6, ignore_eos=True)
            chunks = list(dispatch.Generate(pb.GenerateRequest(text="hello", sampling=sampling), timeout=60.0))
            assert sum(len(chunk.token_ids) for chunk in chunks) == 6
        assert "astrolabe: trace of vLLM" in server.log_path.read_text(errors="replace")
    finally:
        server.stop()
