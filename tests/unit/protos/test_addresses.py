"""Addresses and URLs as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.runtime.addresses import HostPort, is_loopback, parse_address, parse_kv_source, parse_url


@pytest.mark.parametrize(
    ("written", "root"),
    [
        ("http://host:8000", "http://host:8000"),
        ("http://host:8000/", "http://host:8000"),
        ("http://host:8000//", "http://host:8000"),
        ("http://host:8000/v1", "http://host:8000"),
        ("http://host:8000/v1/", "http://host:8000"),
        ("http://host:8000/v1/v1", "http://host:8000"),
        (" http://host:8000/v1/models\n", "http://host:8000"),
        ("http://host:8000/v1/chat/completions", "http://host:8000"),
        ("http://host:8000/metrics", "http://host:8000"),
        ("HTTP://Host:8000/v1", "http://Host:8000"),
        ("host:8000", "http://host:8000"),
        ("host:8000/v1", "http://host:8000"),
        ("//host:8000/v1", "http://host:8000"),
        ("host", "http://host:8000"),
        ("host/v1", "http://host:8000"),
        ("localhost", "http://localhost:8000"),
        ("127.0.0.1:30000", "http://127.0.0.1:30000"),
        ("http://host", "http://host"),
        ("https://host/v1", "https://host"),
        ("https://host/team-a/v1/", "https://host/team-a"),
        ("https://host//team-a//v1/completions", "https://host/team-a"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("http://[::1]/v1", "http://[::1]"),
    ],
)
def test_a_server_by_any_url_of_its_api(written: str, root: str) -> None:
    assert parse_url(written) == root
    assert parse_url(root) == root


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("", "is not a URL"),
        ("http://", "is not a URL"),
        ("ftp://host:21", "is not a URL"),
        ("unix:///run/x.sock", "is not a URL"),
        ("http://host:port", "is not a URL"),
        ("http://host:99999", "is not a URL"),
        ("http://ho st:80", "is not a URL"),
        ("http://host:8000/v1?key=1", "what follows the path"),
        ("http://host:8000#x", "what follows the path"),
    ],
)
def test_what_is_no_server_is_named_with_an_example(written: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        parse_url(written)
    assert "http://127.0.0.1:8000" in str(refused.value)


@pytest.mark.parametrize("parse", [parse_url, parse_address])
@pytest.mark.parametrize("written", ["http://me:hunter2@host:8000", "me:hunter2@host:8000", "hunter2@host:1"])
def test_a_password_in_a_url_is_refused_and_not_repeated(parse: object, written: str) -> None:
    assert callable(parse)
    with pytest.raises(ValueError, match="password") as refused:
        parse(written)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("10.0.0.11:8100", "10.0.0.11:8100"),
        (" 10.0.0.11:8100 ", "10.0.0.11:8100"),
        ("http://10.0.0.11:8100", "10.0.0.11:8100"),
        ("http://10.0.0.11:8100/", "10.0.0.11:8100"),
        ("grpc://gpu-11:8100", "gpu-11:8100"),
        ("ipv4:10.0.0.11:8100", "10.0.0.11:8100"),
        ("[::1]:8100", "[::1]:8100"),
        ("gpu-11", "gpu-11:8100"),
        ("http://gpu-11/", "gpu-11:8100"),
        ("[::1]", "[::1]:8100"),
    ],
)
def test_an_address_with_what_people_put_around_it(written: str, address: str) -> None:
    assert str(parse_address(written, default_port=8100)) == address


@pytest.mark.parametrize("written", ["", ":8100", "8100", "host:0", "host:70000", "host:8100/v1", "::1:8100", "a b:1"])
def test_what_is_no_address_to_reach(written: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port must be"):
        parse_address(written, default_port=8100)


def test_without_a_default_a_port_must_be_said() -> None:
    with pytest.raises(ValueError, match="host:port"):
        parse_address("10.0.0.11")


@pytest.mark.parametrize(
    "written", ["localhost:1", "LOCALHOST:1", "Localhost.:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1"]
)
def test_names_of_this_machine_alone_however_they_are_written(written: str) -> None:
    assert is_loopback(parse_address(written))


@pytest.mark.parametrize("written", [":8200", "*:8200", "0.0.0.0:8200"])
def test_every_address_of_this_machine(written: str) -> None:
    assert parse_address(written, any_port=True) == HostPort("0.0.0.0", 8200)
    assert not is_loopback(parse_address(written, any_port=True))


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused_and_reading_is_stable(text: str) -> None:
    for parse in (parse_url, lambda t: str(parse_address(t, default_port=1))):
        try:
            once = parse(text)
        except ValueError:
            continue
        assert parse(once) == once


@pytest.mark.parametrize(
    ("written", "source"),
    [
        ("10.0.0.11:5710", "10.0.0.11:5710"),
        ("[fd00::1]:5710", "[fd00::1]:5710"),
        ("http://10.0.0.11:8000/v1", "http://10.0.0.11:8000"),
        ("https://gpu3/team/", "https://gpu3/team"),
    ],
)
def test_sources_of_kv(written: str, source: str) -> None:
    assert parse_kv_source(written) == source


@pytest.mark.parametrize("written", ["gpu3", "10.0.0.11", "ftp://gpu3:1", "http://user:secret@gpu3:8000"])
def test_no_sources_of_kv(written: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_kv_source(written)
