"""A daemon that was told the wrong hardware: it learns from its engine's trace, and says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import grpc.aio
import pytest

from deploy.local_cluster import Child
from predictor.config import PredictorConfig, load
from protos.runtime.options import tables
from protos.v1 import astrolabe_predict_pb2 as pb
from protos.v1.astrolabe_predict_pb2_grpc import PredictStub
from simcore.node import SimNode, SimRequest
from tests.e2e.predictor_daemon import DEADLINE_S, OPTIONS, SessionClient, candidate, daemon, engine_request

pytestmark = pytest.mark.e2e

PRIOR = "h100/llama-2-7b"
HARDWARE = {"profile": PRIOR, "engine_profile": "a30/llama-2-7b"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with daemon(tmp_path_factory.mktemp("predictor"), **HARDWARE) as child:
        yield child


def true_e2e_s(prompt_tokens: int, tokens: int) -> float:
    """Of a lone request on the engine as it really is."""
    config = load(None, tables(PredictorConfig, {**OPTIONS, **HARDWARE}))
    engine = SimNode("n", config.engine_config(), config.engine_step_time().scaled(1 / config.emulated.time_scale))
    engine.add(
        SimRequest(request_id="a", prompt_tokens=prompt_tokens, output_tokens=tokens, max_output_tokens=tokens), 0.0
    )
    return max(event.at_s for event in engine.advance(1000.0))


async def test_wrong_hardware_is_learned_from_the_trace(node: Child) -> None:
    async with grpc.aio.insecure_channel(node.address) as channel:
        stub = PredictStub(channel)

        async def forecast_s() -> float:
            asked = pb.PredictRequest(candidates=[candidate("asked", prompt_tokens=200, tokens=60)])
            reply = await stub.Predict(asked, timeout=DEADLINE_S)
            return float(reply.forecasts[0].e2e_s.p50)

        async def profile() -> str:
            return str((await stub.GetCalibration(pb.GetCalibrationRequest(), timeout=DEADLINE_S)).profile)

        actual_s = true_e2e_s(200, 60)
        assert await profile() == PRIOR
        assert abs(await forecast_s() / actual_s - 1) > 0.5, "the prior is not wrong"
        client = await SessionClient(channel).begin()
        sent = 0
        async with asyncio.timeout(DEADLINE_S):
            while not (match := re.fullmatch(rf"{PRIOR} \(learned, ([\d.]+) % error, [\d,]+ steps\)", await profile())):
                wave = [
                    engine_request(f"r{sent + i}", prompt_tokens=40 + 60 * i, max_tokens=20 + 15 * i) for i in range(8)
                ]
                sent += len(wave)
                await client.send(dispatch=tuple(wave))
                await client.until(lambda sent=sent: len(client.ends) == sent)  # type: ignore[misc]
        assert float(match[1]) < 10
        assert await forecast_s() == pytest.approx(actual_s, rel=0.1)
        await client.leave()
