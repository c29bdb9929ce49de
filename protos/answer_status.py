"""What the status of an engine's own answer says of the request and of its node: one table for all processes. Pure.

Three kinds: the answer is what there is to say; the engine is full; the engine, or what stands before it, has failed,
which counts against its node and which another node may spare the client. "I cannot do this" is no failure, whoever
says it: another node of that model could not either, and this one is well.
"""

from __future__ import annotations

from simcore.types import Outcome

_OUTCOMES = {
    # The client's key never gets to the engine: it is the node's that was refused, or a proxy before it wants one.
    401: Outcome.ENGINE_FAILED,
    407: Outcome.ENGINE_FAILED,
    # The request did not come in whole in time, though it was there to be sent.
    408: Outcome.ENGINE_FAILED,
    429: Outcome.OVERLOADED,
    503: Outcome.OVERLOADED,
    # As servers behind Cloudflare and Anthropic's say it.
    529: Outcome.OVERLOADED,
    # Not implemented; not this version of HTTP; no such variant; an extension that is wanted.
    501: Outcome.INVALID,
    505: Outcome.INVALID,
    506: Outcome.INVALID,
    510: Outcome.INVALID,
}


def outcome_of_status(status: int) -> Outcome:
    """How a request ended whose answer is complete and has that status."""
    if status < 400:
        return Outcome.STOP
    return _OUTCOMES.get(status, Outcome.INVALID if status < 500 else Outcome.ENGINE_FAILED)


def may_be_spared(status: int) -> bool:
    """Whether another node may have a better answer."""
    return outcome_of_status(status) in (Outcome.ENGINE_FAILED, Outcome.OVERLOADED)
