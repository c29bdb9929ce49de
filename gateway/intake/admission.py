"""From a client's message to a request the router understands, or to a refusal that says how to mend it.

Checks what is wrong on its face. Whether a prompt fits a model, and whether there is a node for it, is the router's to
say: it knows the nodes.
"""

from __future__ import annotations

import math
import re
import secrets

import msgspec

from gateway.core.decision.policies.registry import PolicyError, canonical_name
from gateway.core.events import Continuation, RequestShape, Resume, Slo
from gateway.core.outcomes import Denial
from gateway.intake.lengths import Expected, expected_without_model
from protos import codec
from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from simcore.types import LengthBelief

MAX_ID_CHARS = 128
_ATTEMPT = re.compile(r"~\d+$")
_RESUME: dict[int, Resume] = {
    pb.RESUME_UNSPECIFIED: "exact",
    pb.RESUME_EXACT: "exact",
    pb.RESUME_BEST_EFFORT: "best_effort",
    pb.RESUME_OFF: "off",
}
MAX_BELIEF_ATOMS = 256
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_TEXT_CHARS_INLINE = 16_384
"""Longer texts are tokenized in a thread: beyond this the event loop would stand still for milliseconds."""


class Refused(Exception):
    """The call is turned away. The message is for people; `param` names the field at fault, if one is."""

    def __init__(self, denial: Denial, message: str, *, param: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.denial = denial
        self.param = param
        self.retry_after_s = retry_after_s


def invalid(message: str, *, param: str = "") -> Refused:
    return Refused(Denial.INVALID, message, param=param)


class Sizes(msgspec.Struct, frozen=True):
    """Prompt and answer limit of a request, in tokens."""

    prompt_tokens: int
    max_output_tokens: int


def request_id_of(given: str, header: str) -> str:
    """The message's id, else that of the header or metadata `x-request-id`, else a new one. Raises Refused."""
    request_id = given or header
    if not request_id:
        return f"r-{secrets.token_hex(8)}"
    if len(request_id) > MAX_ID_CHARS or not request_id.isascii() or not request_id.isprintable():
        raise invalid(
            f"request_id must be at most {MAX_ID_CHARS} printable ASCII characters; shorten or omit it",
            param="request_id",
        )
    if _ATTEMPT.search(request_id):
        raise invalid(
            f"request_id {request_id!r} ends like the name of a second attempt; leave out ~ and the number",
            param="request_id",
        )
    return request_id


def resume_of(value: int) -> Resume:
    """What a `Resume` of the wire means. Raises Refused for a number that this version does not know."""
    try:
        return _RESUME[value]
    except KeyError:
        raise invalid(
            f"resume is {value}; give RESUME_EXACT, RESUME_BEST_EFFORT or RESUME_OFF", param="resume"
        ) from None


def continuation_of(sampling: types_pb.SamplingParams) -> Continuation:
    """How well another node could go on with an answer that is drawn like this."""
    is_greedy = sampling.HasField("temperature") and sampling.temperature == 0
    return "approximate" if sampling.HasField("seed") and not is_greedy else "exact"


def policy_of(name: str) -> str:
    """The canonical name, "" for none asked. Raises Refused with the nearest name."""
    if not name:
        return ""
    try:
        return canonical_name(name)
    except PolicyError as bad:
        raise invalid(f"policy: {bad}", param="policy") from None


def check_sampling(sampling: types_pb.SamplingParams) -> None:
    """Raises Refused for values no engine takes and for what no engine behind us does yet."""
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        raise invalid(
            f"max_tokens must be >= 1, got {sampling.max_tokens}; omit it for as much as the model allows",
            param="max_tokens",
        )
    if sampling.HasField("temperature") and not (0 <= sampling.temperature < math.inf):
        raise invalid(f"temperature must be >= 0, got {sampling.temperature:g}", param="temperature")
    if sampling.HasField("top_p") and not (0 < sampling.top_p <= 1):
        raise invalid(f"top_p must be in (0, 1], got {sampling.top_p:g}", param="top_p")
    if sampling.HasField("top_k") and sampling.top_k < 0:
        raise invalid(f"top_k must be >= 0, got {sampling.top_k}; 0 means all tokens", param="top_k")
    if len(sampling.stop) > MAX_STOPS:
        raise invalid(f"stop has {len(sampling.stop)} strings; send at most {MAX_STOPS}", param="stop")
    for stop in sampling.stop:
        if not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise invalid(f"a stop string has 1 to {MAX_STOP_CHARS} characters, this one {len(stop)}", param="stop")
    if len(sampling.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise invalid(
            f"stop_token_ids has {len(sampling.stop_token_ids)} ids; send at most {MAX_STOP_TOKEN_IDS}",
            param="stop_token_ids",
        )


def runs_to_limit(sampling: types_pb.SamplingParams) -> bool:
    """Whether nothing but its limit ends the answer."""
    return sampling.ignore_eos and not sampling.stop and not sampling.stop_token_ids


def slo_of(slo: pb.Slo, call_deadline_s: float | None) -> Slo:
    """The client's service levels; the call's own deadline counts too. Raises Refused."""
    for name in ("ttft_s", "tpot_s", "deadline_s"):
        value = getattr(slo, name)
        if not (0 <= value < math.inf):
            raise invalid(
                f"slo.{name} must be a number of seconds >= 0, got {value:g}; 0 means none", param=f"slo.{name}"
            )
    deadlines = [d for d in (slo.deadline_s or None, call_deadline_s) if d is not None]
    return Slo(
        ttft_s=slo.ttft_s or None,
        tpot_s=slo.tpot_s or None,
        deadline_s=max(0.0, min(deadlines)) if deadlines else None,
    )


def said_belief(belief: types_pb.LengthBelief) -> LengthBelief | None:
    """The client's belief; None when it has none. Raises Refused."""
    if len(belief.atoms_tokens) > MAX_BELIEF_ATOMS:
        raise invalid(
            f"belief has {len(belief.atoms_tokens)} atoms; send at most {MAX_BELIEF_ATOMS} quantiles", param="belief"
        )
    try:
        return codec.belief_from_wire(belief)
    except ValueError as bad:
        raise invalid(f"belief: {bad}", param="belief") from None


def generate_shape(
    request: pb.GenerateRequest, *, request_id: str, sizes: Sizes, expected: Expected, call_deadline_s: float | None
) -> RequestShape:
    """Raises Refused."""
    return RequestShape(
        request_id=request_id,
        model=request.model,
        prompt_tokens=sizes.prompt_tokens,
        max_output_tokens=sizes.max_output_tokens,
        belief=expected.belief,
        belief_source=expected.source,
        priority=request.priority,
        session=request.session,
        slo=slo_of(request.slo, call_deadline_s),
        policy=policy_of(request.policy),
        resume=resume_of(request.resume),
        continuation=continuation_of(request.sampling),
    )


def place_shape(request: pb.PlaceRequest, *, request_id: str) -> RequestShape:
    """Raises Refused."""
    if request.prompt_tokens < 1:
        raise invalid("prompt_tokens must be >= 1; or send the prompt", param="prompt_tokens")
    if request.max_output_tokens < 1:
        raise invalid("max_output_tokens must be >= 1", param="max_output_tokens")
    expected = expected_without_model(said_belief(request.belief), request.max_output_tokens)
    return RequestShape(
        request_id=request_id,
        model=request.model,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        belief=expected.belief,
        belief_source=expected.source,
        priority=request.priority,
        session=request.session,
        slo=slo_of(request.slo, None),
        policy=policy_of(request.policy),
        place_only=True,
    )
