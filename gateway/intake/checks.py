"""Request validation: what a client asks becomes a request for the router, or an error that says how to mend it.

Checks what is wrong on its face. Whether a prompt fits a model, and whether there is a node for it, is the router's to
say: it knows the nodes.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Sequence

from gateway.core.decision.policies.registry import PolicyError, canonical_name
from gateway.core.events import Continuation, RequestShape, Slo
from gateway.intake.client_request import ClientRequest, Sampling
from gateway.intake.denied import invalid
from gateway.intake.lengths import ExpectedLength
from simcore.types import LengthBelief

MAX_ID_CHARS = 128
_ATTEMPT = re.compile(r"~\d+$")
MAX_BELIEF_ATOMS = 256
MAX_STOPS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKEN_IDS = 256
MAX_BIASED = 1024
MAX_BAD_WORDS = 256
MAX_LOGPROBS = 20
"""As many as engines tell unless they are told otherwise."""
MAX_ANSWERS = 16
"""To one prompt, by tokens."""
GREEDY_BELOW = 1e-5
"""Temperatures that vLLM takes for 0."""
MAX_SEED = 2**63 - 1
MAX_TEXT_CHARS_INLINE = 16_384
"""Longer texts are tokenized in a thread: beyond this the event loop would stand still for milliseconds."""


def request_id_of(request_id: str) -> str:
    """The client's id for its request, or a new one. Raises Denied."""
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


def continuation_of(sampling: Sampling) -> Continuation:
    """How well another node could go on with an answer that is drawn like this.

    It takes the answer so far for prompt: there a presence penalty does not see it, nor does a forbidden word its own
    beginning. A frequency penalty can be given on as a bias (`gateway.wire`), which engines add before they divide by a
    repetition penalty and not after it: either alone is exact.
    """
    seeded = sampling.seed is not None and sampling.temperature != 0
    repeats = sampling.repetition_penalty not in (None, 1.0)
    unseen = sampling.presence_penalty or sampling.bad_words or (sampling.frequency_penalty and repeats)
    return "approximate" if seeded or unseen else "exact"


def policy_of(name: str) -> str:
    """The canonical name, "" for none asked. Raises Denied with the nearest name."""
    if not name:
        return ""
    try:
        return canonical_name(name)
    except PolicyError as bad:
        raise invalid(f"policy: {bad}", param="policy") from None


def check_sampling(sampling: Sampling) -> None:
    """Raises Denied for values no engine takes and for what no engine behind us does yet."""
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise invalid(
            f"max_tokens must be >= 1, got {sampling.max_tokens}; omit it for as much as the model allows",
            param="max_tokens",
        )
    if sampling.temperature is not None and not (0 <= sampling.temperature < math.inf):
        raise invalid(f"temperature must be >= 0, got {sampling.temperature:g}", param="temperature")
    if sampling.top_p is not None and not (0 < sampling.top_p <= 1):
        raise invalid(f"top_p must be in (0, 1], got {sampling.top_p:g}", param="top_p")
    if sampling.top_k is not None and sampling.top_k < 0:
        raise invalid(f"top_k must be >= 0, got {sampling.top_k}; 0 means all tokens", param="top_k")
    _check_range("min_p", sampling.min_p, 0, 1)
    _check_range("presence_penalty", sampling.presence_penalty, -2, 2)
    _check_range("frequency_penalty", sampling.frequency_penalty, -2, 2)
    if sampling.repetition_penalty is not None and not (0 < sampling.repetition_penalty < math.inf):
        raise invalid(
            f"repetition_penalty must be > 0, got {sampling.repetition_penalty:g}; 1 means none",
            param="repetition_penalty",
        )
    if sampling.min_tokens < 0 or (sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens):
        raise invalid(
            f"min_tokens must be from 0 to max_tokens, got {sampling.min_tokens} of {sampling.max_tokens}",
            param="min_tokens",
        )
    if len(sampling.logit_bias) > MAX_BIASED or not all(map(math.isfinite, sampling.logit_bias.values())):
        raise invalid(f"logit_bias has at most {MAX_BIASED} finite values", param="logit_bias")
    if len(sampling.bad_words) > MAX_BAD_WORDS or not all(sampling.bad_words):
        raise invalid(f"bad_words has at most {MAX_BAD_WORDS} texts, none of them empty", param="bad_words")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= MAX_LOGPROBS:
        raise invalid(f"logprobs must be from 0 to {MAX_LOGPROBS}, got {sampling.logprobs}", param="logprobs")
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


def check_answers(request: ClientRequest) -> None:
    """Raises Denied for several answers that would all be the same, and for more than are asked for one by one."""
    count, sampling = request.answers, request.sampling
    if not 1 <= count <= MAX_ANSWERS:
        raise invalid(f"n must be from 1 to {MAX_ANSWERS}, got {count}", param="n")
    if count > 1 and sampling.temperature is not None and sampling.temperature < GREEDY_BELOW:
        raise invalid(f"n must be 1 when using greedy sampling, got {count}", param="n")
    if sampling.seed is not None and sampling.seed > MAX_SEED - count:
        raise invalid("seed is too large: each of several answers has the next one", param="seed")


def _check_range(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (least <= value <= most):
        raise invalid(f"{name} must be in [{least:g}, {most:g}], got {value:g}", param=name)


def runs_to_limit(sampling: Sampling) -> bool:
    """Whether nothing but its limit ends the answer."""
    return sampling.ignore_eos and not sampling.stop and not sampling.stop_token_ids


def slo_of(slo: Slo, call_deadline_s: float | None) -> Slo:
    """The client's service levels; the call's own deadline counts too. Raises Denied."""
    for name, value in (("ttft_s", slo.ttft_s), ("tpot_s", slo.tpot_s), ("deadline_s", slo.deadline_s)):
        if value is not None and not (0 <= value < math.inf):
            raise invalid(
                f"slo.{name} must be a number of seconds >= 0, got {value:g}; 0 means none", param=f"slo.{name}"
            )
    if call_deadline_s is None:
        return slo
    deadline_s = call_deadline_s if slo.deadline_s is None else min(slo.deadline_s, call_deadline_s)
    return Slo(ttft_s=slo.ttft_s, tpot_s=slo.tpot_s, deadline_s=max(0.0, deadline_s))


def said_belief(atoms_tokens: Sequence[int]) -> LengthBelief | None:
    """The client's belief; None when it has none. Raises Denied."""
    if not atoms_tokens:
        return None
    if len(atoms_tokens) > MAX_BELIEF_ATOMS:
        raise invalid(
            f"belief has {len(atoms_tokens)} atoms; send at most {MAX_BELIEF_ATOMS} quantiles", param="belief"
        )
    try:
        return LengthBelief(tuple(atoms_tokens))
    except ValueError as bad:
        raise invalid(f"belief: {bad}", param="belief") from None


def check_placement(request: ClientRequest, prompt_tokens: int) -> int:
    """The limit on the answer of a request that somebody else will send, which must say its sizes. Raises Denied."""
    if prompt_tokens < 1:
        raise invalid("prompt_tokens must be >= 1; or send the prompt", param="prompt_tokens")
    limit = request.sampling.max_tokens
    if limit is None or limit < 1:
        raise invalid("max_output_tokens must be >= 1", param="max_output_tokens")
    return limit


def request_shape(
    request: ClientRequest,
    *,
    request_id: str,
    prompt_tokens: int,
    max_output_tokens: int,
    expected: ExpectedLength,
    place_only: bool = False,
) -> RequestShape:
    """What the router gets to see. Raises Denied."""
    return RequestShape(
        request_id=request_id,
        model=request.model,
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
        belief=expected.belief,
        belief_source=expected.source,
        priority=request.priority,
        session=request.session,
        slo=slo_of(request.slo, request.call_deadline_s),
        policy=policy_of(request.policy),
        place_only=place_only,
        resume=request.resume,
        continuation=continuation_of(request.sampling),
        logprobs=request.sampling.logprobs is not None,
    )
