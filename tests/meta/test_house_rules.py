"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("protos", "simcore", "length_model", "engine_adapters", "predictor", "gateway", "deploy", "bench")
SOURCES = sorted(
    p
    for folder in (*PACKAGES, "tests")
    for p in (ROOT / folder).rglob("*.py")
    if not re.search(r"_pb2(_grpc)?\.py$", p.name)
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_module_hides_behind_a_vague_name() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [relative(p) for p in SOURCES if p.name in vague] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_come_from_this_checkout(package: str) -> None:
    module = __import__(package)
    assert Path(module.__path__[0]).resolve() == ROOT / package


def test_every_wire_field_says_what_it_is() -> None:
    bare = []
    for proto in sorted((ROOT / "protos/v1").glob("*.proto")):
        lines = proto.read_text().splitlines()
        for number, line in enumerate(lines, start=1):
            is_field = re.match(r"\s+(repeated |optional )?[\w.]+ \w+ = \d+;", line) and "rpc" not in line
            commented = number >= 2 and lines[number - 2].lstrip().startswith("//")
            if is_field and not commented:
                bare.append(f"{proto.name}:{number}: {line.strip()}")
    assert bare == []


def test_seconds_and_counts_carry_their_unit_in_the_name() -> None:
    """Floating point on the wire is seconds, a ratio or a declared exception."""
    without_unit = {"mean", "p50", "p90", "preemptions", "cost", "median_relative", "p90_relative", "coverage_p90"}
    without_unit |= {"bias", "spread", "preemption_probability", "prefill_share"}
    # A figure's name, which goes with it, carries the unit.
    without_unit |= {"value"}
    for proto in sorted((ROOT / "protos/v1").glob("*.proto")):
        for name in re.findall(r"\bdouble (\w+) =", proto.read_text()):
            assert re.search(r"_s(_per_\w+)?$", name) or name in without_unit, f"{proto.name}: {name}"


LIGHT_GATEWAY = """
import sys
import gateway.main
heavy = {"numba", "scipy", "torch", "transformers", "matplotlib", "pandas"} & set(sys.modules)
print(",".join(sorted(heavy)))
"""


def test_a_gateway_process_loads_nothing_heavy() -> None:
    out = subprocess.run([sys.executable, "-c", LIGHT_GATEWAY], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == ""


PURE_CORE = """
import sys
for name in ("grpc", "google", "google.protobuf"):
    sys.modules[name] = None
import bench.simcluster
import gateway.core.router
"""


def test_the_simulated_cluster_runs_without_grpc() -> None:
    done = subprocess.run([sys.executable, "-c", PURE_CORE], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


TRANSLATORS = {
    *("protos/codec.py", "gateway/wire.py", "gateway/nodes/news_wire.py", "predictor/wire.py"),
    *("gateway/ext_proc/wire.py", "gateway/ui/part_wire.py"),
}
SMALL_MESSAGES = {
    # Frames, filled with translated messages.
    "gateway/nodes/outbox.py": {"GatewayFrame", "Ask", "BodyPart", "Consumed"},
    "predictor/session.py": {"NodeFrame"},
    # Replies of a field or none.
    "gateway/grpc_api.py": {
        *("Decision", "CancelReply", "Explanation", "NodeList", "DrainReply", "MoveReply", "SetPolicyReply"),
        "ScalingExplanation",
    },
    "predictor/service.py": {"PredictReply", "ReserveReply", "ReleaseReply", "AbortReply"},
    # What a worker asks its siblings.
    "gateway/operators.py": {"ListNodesRequest", "ExplainRequest", "CancelRequest", "ExplainScalingRequest"},
    "gateway/ui/siblings.py": {"WatchPartRequest"},
}


def test_messages_are_made_by_the_translators_only() -> None:
    for package in ("gateway", "predictor", "engine_adapters", "simcore"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if relative(path) in TRANSLATORS:
                continue
            made = {
                call.func.attr
                for call in ast.walk(ast.parse(path.read_text()))
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)
                if isinstance(call.func.value, ast.Name) and re.fullmatch(r"(\w+_)?pb", call.func.value.id)
            }
            assert made <= SMALL_MESSAGES.get(relative(path), set()), relative(path)


def test_no_public_class_name_stands_for_two_things() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCES:
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(f"{relative(path)}:{node.lineno}")
    doubled = {name: where for name, where in places.items() if len(where) > 1}
    assert doubled == {}
