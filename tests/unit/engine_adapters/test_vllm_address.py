"""Addresses of traces as people write them."""

from __future__ import annotations

import pytest

from engine_adapters.vllm.address import AddressError, address_for_url, parse_address
from protos.runtime.addresses import parse_url


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        (" /run/x.sock\n", "unix:/run/x.sock"),
        ("tcp:127.0.0.1:5555", "tcp:127.0.0.1:5555"),
        ("tcp://127.0.0.1:5555", "tcp:127.0.0.1:5555"),
        ("127.0.0.1:5555", "tcp:127.0.0.1:5555"),
        ("localhost:5555", "tcp:localhost:5555"),
    ],
)
def test_sockets_and_ports(written: str, address: str) -> None:
    assert str(parse_address(written)) == address


@pytest.mark.parametrize("written", ["", "unix:", "tcp:10.0.0.1:5", "10.0.0.1:5", "tcp:127.0.0.1:x", "run/x.sock"])
def test_what_is_none(written: str) -> None:
    with pytest.raises(AddressError):
        parse_address(written)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8001/v1", "127.0.0.1:8001", "http://127.0.0.1:8001/"])
def test_a_trace_is_found_by_the_port_of_any_url(url: str) -> None:
    assert address_for_url(parse_url(url), {}).path.endswith("/engine-8001.sock")
