"""The one log line of each request that has ended."""

from __future__ import annotations

import logging

import structlog

from gateway.intake.client_stream import ClientStream
from protos.runtime.otlp import trace_id_of

log = structlog.get_logger("gateway")


def request_finished(stream: ClientStream) -> None:
    """The one line of a finished request. Times in seconds from its arrival."""
    if not log.is_enabled_for(logging.INFO):
        return
    decision = stream.decision
    ended_s = stream.finished_s if stream.finished_s is not None else stream.arrived_s
    log.info(
        "request finished",
        request_id=stream.shape.request_id,
        outcome=stream.outcome.value if stream.outcome is not None else None,
        node=stream.node_id,
        prompt_tokens=stream.shape.prompt_tokens,
        output_tokens=stream.output_tokens,
        ttft_s=_rounded(stream.first_token_s - stream.arrived_s if stream.first_token_s is not None else None),
        e2e_s=_rounded(ended_s - stream.arrived_s),
        decision_s=_rounded(stream.decision_s),
        policy=decision.policy if decision is not None else None,
        attempts=decision.attempt if decision is not None else 0,
        **({"lane": stream.shape.lane} if stream.shape.lane != "tokens" else {}),
        **({"detail": stream.detail} if stream.detail else {}),
        **({"trace_id": trace_id_of(stream.traceparent)} if stream.traceparent else {}),
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
