"""Going on elsewhere with an answer whose node has gone: when that is right, and what the next node is asked. Pure.

The next node gets prompt + tokens so far as its prompt and the rest of the limit. Greedy decoding then says what the
lost node would have said, and an unseeded draw is as good as the one that was lost. A seeded draw starts anew, and
state that lives in the engine (a grammar, sibling answers) is not in the tokens.
"""

from __future__ import annotations

import msgspec

from gateway.core.events import RequestShape
from length_model.core.belief import given_produced
from simcore.types import LengthBelief

BY_PROXY = "a proxy has taken it to its node"


def why_not_resumed(shape: RequestShape) -> str:
    """Why a begun answer must not go on at another node, for people; empty when it may."""
    if shape.lane == "by_proxy":
        return BY_PROXY
    if shape.resume == "off":
        return "the request says resume = off"
    if shape.continuation == "impossible":
        if shape.lane == "pass_through":
            return "an engine's own answer cannot go on elsewhere, unless it is one streamed text and nothing else"
        return "guided output and several answers at once cannot go on elsewhere"
    if shape.lane == "pass_through" and shape.resume == "exact":
        return "an engine's own answer cannot go on elsewhere but by its text; ask for resume = best_effort for that"
    if shape.continuation == "approximate" and shape.resume == "exact":
        return "with its sampling another node would go on differently; ask for resume = best_effort to allow that"
    return ""


def remainder(shape: RequestShape, output_tokens: int) -> RequestShape:
    """What is left of a request after `output_tokens` (>= 1, below its limit), as the next node is asked for it."""
    total = given_produced(shape.belief, output_tokens)
    return msgspec.structs.replace(
        shape,
        prompt_tokens=shape.prompt_tokens + output_tokens,
        max_output_tokens=shape.max_output_tokens - output_tokens,
        belief=LengthBelief(tuple(atom - output_tokens for atom in total.atoms_tokens)),
    )


def attempt_id(request_id: str, attempt: int) -> str:
    """The name of one attempt on the wire to its node, which may still be letting go of an earlier one."""
    return request_id if attempt == 1 else f"{request_id}~{attempt}"
