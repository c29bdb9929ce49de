"""One request of a workload, one row of a data set, and what is told of a request's length. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import msgspec

from length_model.core.belief import known
from simcore.types import LengthBelief

LengthKnowledge = Literal["known", "none", "predicted"]
"""What the client says of the answer's length: the truth, nothing, or the data set's own prediction."""

LENGTH_KNOWLEDGE: tuple[LengthKnowledge, ...] = get_args(LengthKnowledge)


class DataRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of a data set, before it has a place in time (unless the data set gives it one)."""

    prompt_tokens: int
    output_tokens: int
    prompt: str = ""
    """Empty when the data set holds lengths only."""
    predicted_output_tokens: int | None = None
    predicted_atoms_tokens: tuple[int, ...] = ()
    """Equally likely lengths, ascending, when the prediction is a distribution; else empty."""
    session: str = ""
    arrival_s: float | None = None
    """Seconds since the data set's own beginning; None when it has no arrivals."""
    prefix_ids: tuple[int, ...] = ()
    """Names of the prompt's leading blocks of `prefix_block_tokens`, each for everything up to its end: prompts that
    begin with the same names begin with the same text. Empty when the data set does not say."""
    prefix_block_tokens: int = 0
    think_s: float | None = None
    """Set: a later turn of its session, which comes so long after the answer to the row before it."""


class WorkloadItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request to be sent. `output_tokens` is the true length: the engine ends exactly there."""

    request_id: str
    arrival_s: float
    """Seconds since the start of the run."""
    prompt_tokens: int
    output_tokens: int
    prompt: str = ""
    """Text when the data set has it; else token ids are made up (`bench.workload.synthetic`)."""
    predicted_output_tokens: int | None = None
    predicted_atoms_tokens: tuple[int, ...] = ()
    """As in `DataRow`; goes before `predicted_output_tokens`."""
    session: str = ""
    priority: int = 0
    prefix_ids: tuple[int, ...] = ()
    """As in `DataRow`, with `prefix_block_tokens`."""
    prefix_block_tokens: int = 0
    model: str = ""
    """Empty: the only one that is served."""
    after: str = ""
    """Set: it comes when the request of this id has ended, `think_s` later, and not at `arrival_s`."""
    think_s: float = 0.0


def check_sent_by_the_clock(items: Iterable[WorkloadItem]) -> None:
    """Raises ValueError for requests of which one waits for another's answer: live clients go by the clock alone."""
    if any(item.after for item in items):
        raise ValueError(
            "turns of this data set follow the answers before them, which only simulations can do: "
            "take `astrolabe bench simulate`, or another data set"
        )


def belief_of(item: WorkloadItem, lengths: LengthKnowledge) -> LengthBelief | None:
    """The belief to send with a request; None means that nothing is said and the receiver's own prior holds.

    Raises:
        ValueError: `predicted` is wanted of an item whose data set predicts nothing.
    """
    if lengths == "none":
        return None
    if lengths == "known":
        return known(item.output_tokens)
    if item.predicted_atoms_tokens:
        return LengthBelief(item.predicted_atoms_tokens)
    if item.predicted_output_tokens is None:
        raise ValueError(
            f"request {item.request_id}: the data set has no predicted length; "
            "use lengths `known` or `none`, or a data set with a column of predictions"
        )
    return known(item.predicted_output_tokens)
