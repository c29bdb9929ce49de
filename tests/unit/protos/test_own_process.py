from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
import trustme

from protos.runtime.config import ConfigError
from protos.runtime.own_process import certificate_ends, own_series, resident_bytes


def in_days(days: float) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days)


def test_of_a_file_with_several_certificates_the_first_to_end_counts(tmp_path: Path) -> None:
    authority = trustme.CA()
    soon, past = in_days(3), in_days(-3)
    one = authority.issue_cert("a.example", not_after=soon).cert_chain_pems[0].bytes()
    ended = authority.issue_cert("b.example", not_after=past).cert_chain_pems[0].bytes()
    (tmp_path / "both.pem").write_bytes(authority.cert_pem.bytes() + one)
    (tmp_path / "ended.pem").write_bytes(ended)
    both, gone = str(tmp_path / "both.pem"), str(tmp_path / "ended.pem")
    assert certificate_ends(both, "", gone) == {both: soon.timestamp(), gone: past.timestamp()}


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n"])
def test_a_file_without_a_certificate_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.pem: there is no certificate in it"):
        certificate_ends(str(path))


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.pem: cannot be read: No such file"):
        certificate_ends(str(tmp_path / "absent.pem"))


def test_what_a_process_says_of_itself() -> None:
    told = {family.name: family.samples for family in own_series({"/c": 5.0})}
    assert told["astrolabe_build_info"][0].value == 1
    assert told["astrolabe_build_info"][0].labels["version"]
    assert abs(told["astrolabe_clock_seconds"][0].value - time.time()) < 60
    (end,) = told["astrolabe_certificate_end_time_seconds"]
    assert (end.labels, end.value) == ({"file": "/c"}, 5.0)
    assert resident_bytes() > 1e6
