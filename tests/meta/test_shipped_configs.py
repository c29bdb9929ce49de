"""What `deploy/` ships is what the processes accept."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import load as load_gateway
from predictor.config import load as load_predictor

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def test_gateway_config() -> None:
    config = load_gateway(DEPLOY / "config/gateway.toml", {})
    assert [node.address for node in config.entries()] == ["10.0.0.11:8100", "10.0.0.12:8100"]


def test_node_config() -> None:
    config = load_predictor(DEPLOY / "config/node.toml", {})
    assert (config.node_id, config.emulated.max_num_seqs) == ("gpu-11", 48)


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda p: p.name)
def test_units_start_commands_that_exist(unit: Path) -> None:
    from deploy.cli import ASTROLABE

    line = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    command = line.split("/astrolabe ")[1].split()
    assert command[0] in ASTROLABE.list_commands(None)  # type: ignore[arg-type]
    assert (DEPLOY / "config" / Path(command[2]).name).is_file()


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda p: p.name)
def test_units_keep_compiled_kernels_where_their_user_may_write(unit: Path) -> None:
    """Sources are root's and a system user has no home: without it every start compiles for a minute."""
    said = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "CACHE_DIR" in line or "Cache" in line)
    assert said["Environment"] == f"NUMBA_CACHE_DIR=/var/cache/{said['CacheDirectory']}"
