"""Settings that a library drops in silence when it does not know them: each name is held against the library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc._cython import cygrpc  # type: ignore[attr-defined, unused-ignore]

from protos.runtime.options import options_of
from tests.meta.test_config_records import PROCESSES

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(cygrpc.__file__).read_bytes()
OPTION = re.compile(r"grpc\.[a-z0-9_.]+")
NO_OPTIONS = {"grpc.aio", "grpc.health.v1"}


def strings_of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sources() -> list[Path]:
    skipped = {".venv", ".venv-vllm", "build", "results"}
    return [p for p in ROOT.rglob("*.py") if not skipped & set(p.relative_to(ROOT).parts) and p != Path(__file__)]


def option_names() -> list[str]:
    """gRPC option names, in code and in the pages' examples."""
    found = {text for file in sources() for text in strings_of(file) if OPTION.fullmatch(text)}
    for page in ROOT.glob("*/*.md"):
        found |= set(re.findall(rf'"({OPTION.pattern})"', page.read_text(encoding="utf-8")))
    return sorted(found - NO_OPTIONS)


def is_known(name: str) -> bool:
    """Whether the compiled library holds the name as a string of its own."""
    return re.search(rb"(?<![a-z_.])" + re.escape(name.encode()) + rb"\0", LIBRARY) is not None


def test_grpc_knows_every_option_that_is_set_anywhere() -> None:
    names = option_names()
    assert "grpc.http2.min_ping_interval_without_data_ms" in names
    assert [name for name in names if not is_known(name)] == []


@pytest.mark.parametrize(
    "name", ["grpc.http2.min_recv_ping_interval_without_data_ms", "grpc.keepalive_time", "grpc.no_such_option"]
)
def test_a_name_that_grpc_drops_is_found_out(name: str) -> None:
    assert not is_known(name)


def test_grpc_knows_the_experiments_that_are_switched_and_reads_those_variables() -> None:
    source = (ROOT / "gateway" / "cli.py").read_text(encoding="utf-8")
    (switched,) = re.findall(r'setdefault\("GRPC_EXPERIMENTS", "([^"]+)"\)', source)
    for name in ("GRPC_EXPERIMENTS", "GRPC_VERBOSITY", *(word.lstrip("-") for word in switched.split(","))):
        assert is_known(name), name


def test_only_known_words_stand_beside_a_field_of_a_configuration() -> None:
    """`Meta(extra=...)` takes any word; one that `protos.runtime.options` does not read would change nothing."""
    known = {"option", "metavar", "no_option"}
    for kind, _ in PROCESSES:
        assert options_of(kind)
    written = {
        key.value
        for file in sources()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict)
        for key in node.value.keys
        if isinstance(key, ast.Constant)
    }
    assert written == known


def test_channels_and_servers_are_made_of_the_shared_options() -> None:
    """One that is opened past `protos.runtime.channels` would take the environment's proxy, or end pinging clients."""
    shared = ROOT / "protos" / "runtime" / "channels.py"
    product = [p for p in sources() if p.relative_to(ROOT).parts[0] not in ("tests", "bench") and p != shared]
    opened = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in product
        if not file.name.endswith("_pb2_grpc.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("insecure_channel", "secure_channel")
    ]
    assert opened == []
