"""What workers share: quotas in one file of memory, idempotency keys in one folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.core.outcomes import Denial
from gateway.intake.caller_account import CallerLimits
from gateway.intake.callers import Caller
from gateway.intake.claims import OwnClaims
from gateway.intake.denied import Denied
from gateway.intake.quotas import Quotas
from gateway.workers.shared_claims import SharedClaims
from gateway.workers.shared_quotas import shared_quotas

CALLER = Caller(name="alice", limits=CallerLimits(max_concurrent=2))


def test_workers_share_a_callers_account(tmp_path: Path) -> None:
    first, second = (shared_quotas(tmp_path / "quotas", worker=i, workers=2) for i in range(2))
    first.enter(CALLER, 0.0)
    second.enter(CALLER, 0.0)
    for quotas in (first, second):
        with pytest.raises(Denied, match="the limit is 2") as caught:
            quotas.enter(CALLER, 0.0)
        assert caught.value.denial is Denial.RATE_LIMITED
        assert caught.value.retry_after_s
    second.enter(Caller(name="bob", limits=CallerLimits(max_concurrent=1)), 0.0)
    second.leave(CALLER)
    first.enter(CALLER, 0.0)


def test_what_a_crashed_worker_held_is_given_back(tmp_path: Path) -> None:
    shared_quotas(tmp_path / "quotas", worker=0, workers=2).enter(CALLER, 0.0)
    other = shared_quotas(tmp_path / "quotas", worker=1, workers=2)
    other.enter(CALLER, 0.0)
    shared_quotas(tmp_path / "quotas", worker=0, workers=2).enter(CALLER, 0.0)


def test_callers_without_limits_have_no_account() -> None:
    quotas = Quotas()
    for _ in range(10_000):
        quotas.enter(Caller(name="free"), 0.0)


@pytest.mark.parametrize("shared", [False, True])
def test_a_key_is_claimed_once(tmp_path: Path, shared: bool) -> None:
    claims = SharedClaims(tmp_path / "claims", 0) if shared else OwnClaims()
    claims.claim("a:key", "r1")
    with pytest.raises(Denied, match="'key' is that of the running request 'r1'"):
        claims.claim("a:key", "r2")
    claims.claim("b:key", "r3")
    claims.release("a:key")
    claims.claim("a:key", "r4")


def test_workers_see_each_others_claims_and_a_restart_clears_its_own(tmp_path: Path) -> None:
    first, second = (SharedClaims(tmp_path / "claims", i) for i in range(2))
    first.claim("a:x", "r1")
    second.claim("a:y", "r2")
    with pytest.raises(Denied):
        second.claim("a:x", "r3")
    again = SharedClaims(tmp_path / "claims", 0)
    again.claim("a:x", "r4")
    with pytest.raises(Denied):
        again.claim("a:y", "r5")


def test_a_worker_starts_while_others_give_their_claims_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SharedClaims(tmp_path / "claims", 1)
    other.claim("a:x", "r1")
    listed = list((tmp_path / "claims").iterdir())
    other.release("a:x")
    # What was there when the folder was listed is gone when it is read.
    monkeypatch.setattr(Path, "iterdir", lambda _folder: iter(listed))
    SharedClaims(tmp_path / "claims", 0).claim("a:x", "r2")


def test_a_worker_killed_in_the_middle_of_a_claim_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = SharedClaims(tmp_path / "claims", 0)

    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("gateway.workers.shared_claims.os.link", die)
        with pytest.raises(Killed):
            first.claim("a:x", "r1")
    SharedClaims(tmp_path / "claims", 1).claim("a:x", "r2")
