"""Both fronts say the same in their own languages, and nodes are told exactly that."""

from __future__ import annotations

import msgspec
import pytest

from gateway import wire
from gateway.core.events import Slo
from gateway.core.request.resume import remainder
from gateway.http.bodies import chat_body, client_request, completion_body, prompt_of
from gateway.intake.client_request import Sampling
from gateway.intake.client_stream import ClientStream
from gateway.intake.denied import Denied
from predictor import wire as node_wire
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import Candidate, LengthBelief
from tests.unit.gateway.shell.world import shape

TRACEPARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def test_the_same_request_over_grpc_and_http_is_the_same_record() -> None:
    message = pb.GenerateRequest(
        request_id="r",
        model="m",
        text="hello",
        sampling=types_pb.SamplingParams(
            max_tokens=9,
            temperature=0.7,
            top_p=0.9,
            top_k=4,
            seed=-3,
            stop=["a", "b"],
            stop_token_ids=[7],
            ignore_eos=True,
            min_p=0.25,
            presence_penalty=0.5,
            frequency_penalty=-0.5,
            repetition_penalty=1.25,
            min_tokens=3,
            logit_bias={5: -1.5},
            bad_words=["x y"],
        ),
        priority=-1,
        session="s",
        slo=pb.Slo(ttft_s=0.5, deadline_s=4),
        idempotency_key="k",
        belief=types_pb.LengthBelief(atoms_tokens=[5, 50]),
        policy="random",
        resume=pb.RESUME_BEST_EFFORT,
    )
    body = {
        "request_id": "r",
        "model": "m",
        "prompt": "hello",
        "max_tokens": 9,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 4,
        "seed": -3,
        "stop": ["a", "b"],
        "stop_token_ids": [7],
        "ignore_eos": True,
        "min_p": 0.25,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.25,
        "min_tokens": 3,
        "logit_bias": {"5": -1.5},
        "bad_words": ["x y"],
        "priority": -1,
        "session": "s",
        "slo": {"ttft_s": 0.5, "deadline_s": 4},
        "idempotency_key": "k",
        "policy": "random",
        "belief_tokens": [5, 50],
        "resume": "best_effort",
    }
    read = completion_body(msgspec.json.encode(body))
    over_http = client_request(read, {"traceparent": TRACEPARENT}, prompt_of(read))
    over_grpc = wire.client_request(message, traceparent=TRACEPARENT)
    assert msgspec.structs.asdict(over_grpc) | {"sampling": None, "belief_tokens": list(over_grpc.belief_tokens)} == (
        msgspec.structs.asdict(over_http) | {"sampling": None}
    )
    for name in Sampling.__struct_fields__:
        ours, theirs = getattr(over_grpc.sampling, name), getattr(over_http.sampling, name)
        assert (list(ours) if isinstance(theirs, list) else ours) == theirs, name


def test_what_is_absent_stays_absent() -> None:
    bare = wire.client_request(pb.GenerateRequest(text="x"))
    read = completion_body(b'{"prompt": "x"}')
    over_http = client_request(read, {}, "x")
    chat = client_request(chat_body(b'{"messages": []}'), {}, "x")
    # A completion alone has a limit where none is said, as OpenAI's and vLLM's have.
    assert [asked.sampling.max_tokens for asked in (bare, chat, over_http)] == [None, None, 16]
    for asked in (bare, chat, over_http):
        sampling = asked.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (None,) * 4
        assert (asked.slo, asked.resume, asked.call_deadline_s) == (Slo(), "exact", None)


@pytest.mark.parametrize(("said", "means"), [(1e300, float("inf")), (1e-60, 0.0)])
def test_numbers_over_http_are_checked_as_the_engine_gets_them(said: float, means: float) -> None:
    read = completion_body(msgspec.json.encode({"prompt": "x", "temperature": said}))
    assert client_request(read, {}, "x").sampling.temperature == means


def test_a_resume_of_another_version_is_refused_by_name() -> None:
    with pytest.raises(Denied, match="resume is 9; give RESUME_EXACT") as caught:
        wire.client_request(pb.GenerateRequest(text="x", resume=9))  # type: ignore[arg-type]
    assert caught.value.param == "resume"


def test_a_node_is_told_all_but_the_stop_strings() -> None:
    sampling = Sampling(temperature=0.5, top_k=0, seed=3, stop=("a",), stop_token_ids=(7,), emulated_output_tokens=4)
    stream = ClientStream(shape(), prompt_token_ids=(1, 2, 3), sampling=sampling)
    stream.sent(1, None)
    sent = wire.dispatched(5, stream)
    told = sent.request.sampling
    assert (sent.dispatch_seq, list(sent.request.prompt_token_ids)) == (5, [1, 2, 3])
    assert (told.max_tokens, told.temperature, told.HasField("top_p"), told.top_k, told.seed) == (10, 0.5, False, 0, 3)
    assert (list(told.stop), list(told.stop_token_ids), told.emulated_output_tokens) == ([], [7], 4)
    assert told.HasField("top_k")


def test_a_node_that_goes_on_counts_the_answer_before_it() -> None:
    sampling = Sampling(frequency_penalty=0.5, min_tokens=6, logit_bias={9: 2.0, 4: 1.0}, min_p=0.25)
    stream = ClientStream(shape(), prompt_token_ids=(1, 2, 3), sampling=sampling)
    stream.sent(1, None)
    first = wire.engine_request(stream).sampling
    assert (first.min_tokens, dict(first.logit_bias)) == (6, {9: 2.0, 4: 1.0})
    stream.put([9, 9, 8, 7], 0.0)
    stream.sent(2, remainder(stream.shape, 4))
    sent = wire.engine_request(stream)
    assert list(sent.prompt_token_ids) == [1, 2, 3, 9, 9, 8, 7]
    assert (sent.sampling.min_tokens, sent.sampling.frequency_penalty, sent.sampling.min_p) == (2, 0.5, 0.25)
    assert dict(sent.sampling.logit_bias) == {9: 1.0, 8: -0.5, 7: -0.5, 4: 1.0}


def test_one_candidate_is_encoded_once_in_a_row() -> None:
    encode = wire.CandidateEncoder()
    one, other = (
        Candidate(request_id=i, prompt_tokens=1, max_output_tokens=1, belief=LengthBelief((1,))) for i in "ab"
    )
    first = encode(one)
    assert encode(one) is first
    assert (encode(other).request_id, encode(one).request_id) == ("b", "a")


def test_a_stage_says_where_its_kv_is() -> None:
    stream = ClientStream(shape(), prompt_token_ids=(1, 2, 3))
    sent = wire.staged(1, stream, "r~2", 2, "10.0.0.1:5710").request
    asked = node_wire.engine_request(sent, max_model_len_tokens=100)
    assert (asked.request_id, asked.prompt_token_ids, asked.max_tokens) == ("r~2", (1, 2), 1)
    assert asked.kv_source == "10.0.0.1:5710"
