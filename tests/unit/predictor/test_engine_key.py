"""The engine's API key: from configuration, environment or a file, and never to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine_adapters.base import EngineOptions
from predictor.config import PredictorConfig, load
from protos.runtime.config import ConfigError

KEY = "sk-hunter2"


def key_of(config: PredictorConfig, **environ: str) -> str:
    return config.engine.key(environ)


def test_where_it_may_stand(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"  {KEY}\n")
    assert key_of(load(None)) == ""
    assert key_of(load(None), ASTROLABE_ENGINE_API_KEY="") == ""
    assert key_of(load(None), ASTROLABE_ENGINE_API_KEY=KEY) == KEY
    assert key_of(load(None, {"engine": {"api_key": KEY}}), ASTROLABE_ENGINE_API_KEY="another") == KEY
    assert key_of(load(None, {"engine": {"api_key_file": str(file)}}), ASTROLABE_ENGINE_API_KEY="another") == KEY


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_file_as_an_editor_of_windows_writes_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "key").write_bytes(f"{KEY}\r\n".encode(encoding))
    assert key_of(load(None, {"engine": {"api_key_file": str(tmp_path / "key")}})) == KEY


def test_records_that_hold_it_do_not_show_it() -> None:
    config = load(None, {"engine": {"api_key": KEY}})
    options = EngineOptions(node_id="n", key=config.engine.key({}))
    for shown in (repr(config), str(config), repr(options), str(options), repr(config.engine)):
        assert KEY not in shown
        assert "***" in shown


@pytest.mark.parametrize("bad", ["two words", "two\nlines", "schlüssel", ""])
def test_what_is_no_key_is_not_repeated(tmp_path: Path, bad: str) -> None:
    file = tmp_path / "key"
    file.write_text(bad)
    with pytest.raises(ConfigError, match=r"key 'api_key_file' in \[engine\]") as refused:
        key_of(load(None, {"engine": {"api_key_file": str(file)}}))
    assert not bad or bad not in str(refused.value)
    if bad:
        with pytest.raises(ConfigError, match="ASTROLABE_ENGINE_API_KEY") as refused:
            key_of(load(None), ASTROLABE_ENGINE_API_KEY=bad)
        assert bad not in str(refused.value)
        with pytest.raises(ConfigError, match="printable ASCII") as refused:
            load(None, {"engine": {"api_key": bad}})
        assert bad not in str(refused.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        key_of(load(None, {"engine": {"api_key_file": str(tmp_path / "none")}}))
    (tmp_path / "binary").write_bytes(b"\xe9\xff\xfe")
    with pytest.raises(ConfigError, match="it is no text"):
        key_of(load(None, {"engine": {"api_key_file": str(tmp_path / "binary")}}))
    with pytest.raises(ConfigError, match="both set"):
        load(None, {"engine": {"api_key": KEY, "api_key_file": "x"}})
