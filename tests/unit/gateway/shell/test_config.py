from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config import NodeEntry, load
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import Router
from protos.runtime.addresses import parse_address
from protos.runtime.config import ConfigError
from protos.runtime.otlp import collector_url


def write(folder: Path, text: str) -> Path:
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


def test_defaults_are_complete_and_safe() -> None:
    config = load(None)
    assert config.listen == "127.0.0.1:8200"
    assert config.router.policy == "min_total_latency"
    Router(config.router)


def test_a_file_sets_keys_and_options_win_over_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        nodes = ["10.0.0.1:8100", { address = "10.0.0.2:8100", name = "b" }]
        [router]
        policy = "round_robin"
        seed = 7
        forecast_timeout_s = 0.02
        [router.hold]
        order = "deadline"
        """,
    )
    config = load(path, {"router": {"seed": 9, "hold": {"max_s": 5.0}}})
    assert (config.router.policy, config.router.seed) == ("round_robin", 9)
    assert config.router.hold == HoldConfig(order="deadline", max_s=5.0)
    assert config.entries() == (NodeEntry(address="10.0.0.1:8100"), NodeEntry(address="10.0.0.2:8100", name="b"))
    assert config.router.forecast_timeout_s == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('polcy = "random"', ["unknown key 'polcy'", "did you mean 'policy' in [router]"]),
        ("[router]\nsead = 1", ["unknown key 'sead' in [router]", "did you mean 'seed' in [router]"]),
        ("seed = 7", ["'seed' is now in [router]"]),
        ('hold = "never"', ["'hold' is now when in [router.hold]"]),
        ('hold_order = "fcfs"', ["'hold_order' is now order in [router.hold]"]),
        ('lengths = "none"', ["'lengths' is now model in [lengths]"]),
        ('tls_cert = "a"', ["'tls_cert' is now cert in [tls]"]),
        ('node_ca = "a"', ["'node_ca' is now ca in [node_tls]"]),
        ("forecast_timeout_ms = 5", ["'forecast_timeout_ms' is now forecast_timeout_s in [router]"]),
        ("tls = 3", ["[tls] is a table, not 3"]),
        ('[tls]\ncert = "a"', ["[tls]: key is missing"]),
        ("zzz = 1", ["unknown key 'zzz'", "known keys: listen, "]),
        ('[router]\nseed = "x"', ["key 'seed' in [router]", "expected 'int', got 'str'"]),
        ("[router]\nsample = -1", ["[router]: sample must be >= 0"]),
        ("[router]\nforecast_timeout_s = 0", ["[router]: forecast_timeout_s must be > 0"]),
        ("policy = ", ["not valid TOML", "https://toml.io"]),
        ('[router]\npolicy = "min_total_latncy"', ["key 'policy' in [router]", "did you mean 'min_total_latency'"]),
        ('[router]\nfallback = "min_total_latency"', ["key 'fallback'", "needs forecasts itself", "least_requests"]),
        ('[router.moves]\nrule = "llumnics"', ["key 'rule' in [router.moves]", "unknown rule of moving", "off"]),
        ("[router.moves.transfer]\noverlap = false", ["key 'transfer' in [router.moves]", "simulated runs"]),
        ("[router.moves]\nshare = 2.0", ["[router.moves]", "moves.share must be above 0 and at most 1"]),
        ('nodes = ["localhost"]', ["key 'nodes[0]'", "not host:port", "127.0.0.1:8100"]),
        ('nodes = ["a:1", "a:99999"]', ["key 'nodes[1]'", "between 1 and 65535"]),
        ('nodes = ["a:1", "a:1"]', ["key 'nodes[1]'", "listed twice"]),
        ('nodes = [{ adress = "a:1" }]', ["key 'nodes[0]'", "unknown field 'adress'"]),
        ("nodes = [3]", ["key 'nodes[0]'", "expected 'str | object', got 'int'"]),
        ('listen = "127.0.0.1:70000"', ["key 'listen'", "65535"]),
        ('log_level = "loud"', ["key 'log_level'", "'loud'"]),
        ("[router]\nmax_attempts = 0", ["max_attempts must be >= 1"]),
        ('[router.weights]\na = "fast"', ["a value in [router.weights]: expected 'float', got 'str'"]),
        ("[router.weights]\na = 0", ["[router]: weights must be > 0, got 0.0 for 'a'"]),
    ],
)
def test_a_bad_file_gives_one_line_with_file_key_and_cure(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_weights_are_a_table_of_names(tmp_path: Path) -> None:
    path = write(tmp_path, '[router.weights]\n"h100/llama-3.1-8b" = 22.6\nnode-7 = 3\n')
    assert load(path).router.weights == {"h100/llama-3.1-8b": 22.6, "node-7": 3.0}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: no such file"):
        load(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"gateway.toml: it begins as UTF-16 and is not"):
        load(path)
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\)"):
        load(tmp_path)


def test_a_bad_option_is_blamed_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"command line: key 'policy' in \[router\]: unknown policy 'nope'"):
        load(write(tmp_path, "workers = 1"), {"router": {"policy": "nope"}})


@pytest.mark.parametrize("text", ["", "host", ":80", "host:", "host:x", "host:0", "a b:1", "http://h:1/v1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port must be"):
        parse_address(text)


def test_addresses() -> None:
    assert parse_address("127.0.0.1:0", any_port=True) == ("127.0.0.1", 0)
    assert parse_address("[::1]:8100") == ("::1", 8100)
    assert parse_address("node-1.example:8100") == ("node-1.example", 8100)


@pytest.mark.parametrize(
    ("written", "url"),
    [
        ("http://127.0.0.1:4318/v1/traces", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("collector:4318/", "http://collector:4318/v1/traces"),
        ("collector", "http://collector:4318/v1/traces"),
        ("http://collector:4318/v1", "http://collector:4318/v1/traces"),
        ("https://collector.example/tenant/traces", "https://collector.example/tenant/traces"),
    ],
)
def test_where_spans_go(written: str, url: str) -> None:
    assert collector_url(written) == url
    assert load(None, {"otlp_endpoint": written}).otlp_endpoint == written


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_is_read_however_an_editor_has_saved_it(tmp_path: Path, encoding: str, end: str) -> None:
    text = '# größer\nlisten = "127.0.0.1:0"\nnodes = ["127.0.0.1:9"]\n'
    (tmp_path / "gateway.toml").write_bytes(text.replace("\n", end).encode(encoding))
    assert load(tmp_path / "gateway.toml").nodes == ("127.0.0.1:9",)


def test_a_file_that_is_not_utf8_is_told_where(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_bytes(b'listen = "127.0.0.1:0"\n# caf\xe9\n')
    with pytest.raises(ConfigError, match=r"gateway.toml, line 2: .* not UTF-8; save the file as UTF-8"):
        load(path)
