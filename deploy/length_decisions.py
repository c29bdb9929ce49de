"""Length samples out of a gateway's decision log (`astrolabe gateway --record`). Pure: lines go in.

The log holds no prompts: what it can teach is how long the answers of each model are. Requests that did not end by
themselves (limit, client gone, deadline, lost node) come as cut answers: their length is at least what was seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from gateway.core.events import Arrived, Finish, RequestShape, TokensSeen
from gateway.core.recording import Entry, RecordingError, read_header
from length_model.core.query import LengthSample, make_query
from simcore.types import Outcome


def samples_from_decisions(lines: Iterable[bytes]) -> Iterator[LengthSample]:
    """One sample per request that ended with tokens, in the order of ending. A last line without its end, as a killed
    gateway leaves it, is not read. Raises RecordingError for what is no recording."""
    entries = iter(lines)
    head = next(entries, None)
    if head is None:
        raise RecordingError("line 1: the recording is empty")
    read_header(head)
    decoder = msgspec.json.Decoder(Entry)
    shapes: dict[str, RequestShape] = {}
    seen_tokens: dict[str, int] = {}
    for number, line in enumerate(entries, start=2):
        if not line.endswith(b"\n"):
            return
        try:
            entry = decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError) as bad:
            raise RecordingError(f"line {number}: not an entry of a recording ({bad})") from None
        event = entry.event
        if isinstance(event, Arrived):
            shapes[event.request.request_id] = event.request
        elif isinstance(event, TokensSeen):
            seen_tokens[event.request_id] = seen_tokens.get(event.request_id, 0) + event.tokens
        for action in entry.actions:
            if isinstance(action, Finish):
                shape = shapes.pop(action.request_id, None)
                tokens = seen_tokens.pop(action.request_id, 0)
                if shape is not None and tokens >= 1:
                    yield _sample(shape, tokens, action.outcome)


def _sample(shape: RequestShape, tokens: int, outcome: Outcome) -> LengthSample:
    return LengthSample(
        sample_id=shape.request_id,
        group=shape.session or shape.request_id,
        query=make_query("", model=shape.model),
        prompt_tokens=shape.prompt_tokens,
        output_tokens=tokens,
        censored=outcome is not Outcome.STOP,
    )
