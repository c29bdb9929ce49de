"""Recordings of a scaler's events and actions, and their replay, as `gateway.core.recording` has the router's. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.core.nodes.pace import Pace
from gateway.core.recording import RecordingFormat
from gateway.core.scale.config import ScaleConfig
from gateway.core.scale.events import AnyScaleAction, AnyScaleEvent
from gateway.core.scale.scaler import Scaler
from simcore.types import NodePace


class ScalerSetup(msgspec.Struct, frozen=True, kw_only=True):
    """All that a scaler is made of. A rule of a user's own file must be registered before a replay."""

    config: ScaleConfig
    leads: bool = True
    advises: bool = False


class ScaleEntry(msgspec.Struct, frozen=True, array_like=True):
    """One event, when it was handled, and what the scaler wanted done."""

    now_s: float
    event: AnyScaleEvent
    actions: list[AnyScaleAction]


class _PaceTold(msgspec.Struct, frozen=True):
    told: NodePace
    seats: int


def _fresh(setup: ScalerSetup) -> Scaler:
    # What its rule raises at a tick changes nothing, in the first run and in this.
    return Scaler(setup.config, leads=setup.leads, advises=setup.advises, on_defect=lambda _: None)


def _encode(value: Any) -> Any:
    if isinstance(value, Pace):
        return _PaceTold(value.told, value.seats)
    raise NotImplementedError(f"{type(value).__name__} has no place in a recording")


def _decode(kind: type, value: Any) -> Any:
    if kind is Pace:
        told = msgspec.convert(value, _PaceTold)
        return Pace(told.told, told.seats)
    raise NotImplementedError(f"{kind.__name__} has no place in a recording")


SCALERS: RecordingFormat[ScalerSetup, AnyScaleEvent, AnyScaleAction] = RecordingFormat(
    "astrolabe_scaling_recording",
    ScalerSetup,
    ScaleEntry,
    _fresh,
    made_by="a gateway that records its scaler",
    enc_hook=_encode,
    dec_hook=_decode,
)

header_line = SCALERS.header_line
entry_line = SCALERS.entry_line
read_header = SCALERS.read_header
replay = SCALERS.replay
