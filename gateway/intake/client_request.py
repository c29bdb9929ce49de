"""One request as its client wants it, whichever front it came through.

Each front translates its own language into this record (`gateway.wire` from protobuf, `gateway.http.bodies` from JSON)
and the intake takes nothing else. Nothing in it has been checked: that is `gateway.intake.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from gateway.core.events import Resume, Slo
from length_model.core.conversation import Turn

DEFAULT_COMPLETION_TOKENS = 16
"""Of a completion over HTTP that says no limit: https://platform.openai.com/docs/api-reference/completions/create"""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How the tokens of an answer are drawn and what ends it. None: as the engine has it."""

    max_tokens: int | None = None
    """Limit on the answer; None: what the model's context leaves."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0: all tokens."""
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    emulated_output_tokens: int = 0
    """For experiments on emulated engines; 0: none."""
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    """1: none."""
    min_tokens: int = 0
    """Before so many the answer does not end by itself."""
    logit_bias: Mapping[int, float] = {}
    """Added to the logits of these token ids."""
    bad_words: Sequence[str] = ()
    logprobs: int | None = None
    """Tell with each token how likely it was, and so many of the likeliest others; None: do not."""


class ClientRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for: an answer, or (`Intake.place`) a decision only."""

    prompt: str | Sequence[int] | None = None
    """Text or token ids; None for a decision when only `prompt_tokens` is known."""
    prompt_tokens: int = 0
    """Length of a prompt that does not come with the request."""
    request_id: str = ""
    """Empty: the gateway makes one up."""
    model: str = ""
    sampling: Sampling = Sampling()
    answers: int = 1
    """How many answers to the prompt are wanted."""
    priority: int = 0
    session: str = ""
    slo: Slo = Slo()
    call_deadline_s: float | None = None
    """Time limit of the call itself."""
    idempotency_key: str = ""
    belief_tokens: Sequence[int] = ()
    """The client's own belief of the answer's length: equally likely lengths, ascending; empty: none."""
    policy: str = ""
    resume: Resume = "exact"
    traceparent: str = ""
    """W3C trace context."""
    question: str = ""
    """The last user turn of a conversation, for the length model; empty: the prompt."""
    history: Sequence[Turn] = ()
    """The turns before it, oldest first."""
