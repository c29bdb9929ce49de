"""What a node says of a request that it has and that might leave."""

from __future__ import annotations

import msgspec
import pytest

from length_model.core.belief import known
from predictor.core.calibration import Calibration
from predictor.core.estimator import Estimator, NoForecast
from predictor.core.node_predictor import NodePredictor
from predictor.core.traced_engine import TracedEngine
from simcore.node import SimRequest
from simcore.trace import child_id
from simcore.types import Candidate, Forecast, Quantiles
from tests.unit.predictor.test_estimator import CONFIG, STEP_TIME, Rig, candidate


def leaving(request_id: str) -> Candidate:
    return Candidate(request_id=request_id, prompt_tokens=1, max_output_tokens=1, belief=known(1), leaving=True)


def test_one_that_runs_is_foreseen_as_it_then_goes() -> None:
    rig = Rig().connect()
    rig.dispatch(candidate("a", output_tokens=20))
    rig.dispatch(candidate("b", output_tokens=40))
    rig.step(5)
    answer = rig.one(leaving("a"))
    assert answer.request_id == "a"
    assert answer.clear_start_s.p90 == 0.0
    asked_s = rig.now_s
    rig.step()
    assert answer.ttft_s.p50 == pytest.approx(rig.now_s - asked_s)
    while rig.node.output_tokens("a") is not None:
        rig.step()
    assert answer.e2e_s.p50 == pytest.approx(rig.now_s - asked_s)
    # A step with two costs 1/63 of 30 ms more than one with one.
    assert answer.harm_s.p50 == pytest.approx((rig.now_s - asked_s) - 15 * 0.02, rel=1e-6)


def test_one_on_its_way_is_here_and_who_is_not_here_is_told_from_the_others() -> None:
    rig = Rig().connect()
    rig.traced.reserve(candidate("sent"), now_s=rig.now_s, ttl_s=30.0)
    here, gone, other = rig.estimator.forecast([leaving("sent"), leaving("gone"), candidate("other")], rig.now_s)
    assert isinstance(here, Forecast)
    assert isinstance(gone, NoForecast)
    assert "'gone' is not here" in gone.reason
    assert isinstance(other, Forecast)
    assert (here.request_id, other.request_id) == ("sent", "other")


def test_of_an_unknown_engine_nothing_is_said() -> None:
    (answer,) = Estimator(TracedEngine("n", CONFIG, STEP_TIME)).forecast([leaving("a")], 0.0)
    assert isinstance(answer, NoForecast)


def test_it_is_found_under_the_engines_name_unless_there_are_several() -> None:
    rig = Rig()
    rig.node.add(sim_request(child_id("a", "0-x")), 0.0)
    for place in ("0", "1"):
        rig.node.add(sim_request(child_id("two", place)), 0.0)
    for name in ("a", "two"):
        rig.traced.dispatched(candidate(name), 0.0)
    rig.connect()
    answer, several = rig.estimator.forecast([leaving("a"), leaving("two")], rig.now_s)
    assert isinstance(answer, Forecast)
    assert answer.request_id == "a"
    assert isinstance(several, NoForecast)


def sim_request(name: str) -> SimRequest:
    return SimRequest(request_id=name, prompt_tokens=30, output_tokens=20, max_output_tokens=100)


@pytest.mark.parametrize(("hashes", "shared_tokens"), [((), 0), ((1, 2, 3, 4, 5, 6, 7), 28)])
def test_blocks_that_others_hold_too_are_known(hashes: tuple[int, ...], shared_tokens: int) -> None:
    rig = Rig().connect()
    for name in ("a", "b"):
        rig.node.add(sim_request(name), rig.now_s)
        rig.traced.dispatched(msgspec.structs.replace(candidate(name), block_hashes=hashes), rig.now_s)
        rig.step()
    assert rig.traced.cached_tokens(leaving("a")) == shared_tokens


def test_experience_corrects_it_and_nothing_waits_for_its_dispatch() -> None:
    rig = Rig().connect()
    rig.dispatch(candidate("a"))
    rig.step()
    calibration = Calibration()
    predictor = NodePredictor(rig.traced, calibration)
    simulated = rig.one(leaving("a"))
    raw = Quantiles(1.0, 1.0, 1.0)
    for i in range(300):
        forecast = msgspec.structs.replace(
            simulated, request_id=f"r{i}", ttft_s=raw, tpot_s=raw.scaled(0.1), e2e_s=raw.scaled(2.0)
        )
        calibration.forecast(forecast, float(i))
        calibration.dispatched(f"r{i}", float(i))
        calibration.first_token(f"r{i}", i + 2.0)
        calibration.ended(f"r{i}", i + 4.0, complete=True, output_tokens=11)
    (told,) = predictor.forecast([leaving("a")], rig.now_s)
    assert isinstance(told, Forecast)
    assert told.e2e_s.mean == pytest.approx(2.0 * simulated.e2e_s.mean, rel=0.01)
    assert told.harm_s.mean == pytest.approx(2.0 * simulated.harm_s.mean, rel=0.01)
    assert not calibration.awaits("a")
