"""KV headroom over time in a what-if: how many blocks are free when, and from when on a newcomer would be no burden."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.layout import Floats
from simcore.kernel_cache import kernel
from simcore.types import HEADROOM_HORIZONS_S

_HORIZONS = len(HEADROOM_HORIZONS_S)
_LAST_S = HEADROOM_HORIZONS_S[-1]


@kernel
def note_free(progress: Floats, began_s: float, ended_s: float, first: int, last: int) -> None:
    """Notes a time in which the free blocks fall evenly from `first` to `last`, for the horizons that end in it and
    the first one after it. `read_path` makes one path of all."""
    if began_s >= _LAST_S:
        return
    for k in range(_HORIZONS):
        horizon_s = HEADROOM_HORIZONS_S[k]
        if began_s < horizon_s:
            if ended_s <= horizon_s:
                progress[at.SO_FAR_PATH + k] = min(progress[at.SO_FAR_PATH + k], float(last))
                return
            free = first - (first - last) * (horizon_s - began_s) / (ended_s - began_s)
            progress[at.SO_FAR_PATH + k] = min(progress[at.SO_FAR_PATH + k], free)


@kernel
def read_path(progress: Floats, out: Floats) -> None:
    """Lowers `out` to the fewest free blocks within each of the horizons."""
    fewest = progress[at.SO_FAR_PATH]
    for k in range(_HORIZONS):
        fewest = min(fewest, progress[at.SO_FAR_PATH + k])
        out[k] = min(out[k], fewest)


@kernel
def note_room(headroom: Floats, rows: int, began_s: float, room: int) -> int:
    """Appends the room from `began_s` on to the headroom; -1: none for a newcomer.

    A row without room joins one without, and when the array is full the last row takes all. Returns the rows used:
    always one less than there are, for the end.
    """
    if rows > 0 and (rows + 1 == headroom.shape[0] or (room < 0 and headroom[rows - 1, at.ROOM] < 0)):
        headroom[rows - 1, at.ROOM] = min(headroom[rows - 1, at.ROOM], room)
        return rows
    headroom[rows, at.SINCE] = began_s
    headroom[rows, at.ROOM] = room
    return rows + 1


@kernel
def complete(headroom: Floats, rows: int, ended_s: float, blocks: int) -> int:
    """Appends the end, when all `blocks` are free, and turns the room of each row into that of it and all later
    ones. Returns the rows."""
    headroom[rows, at.SINCE] = ended_s
    headroom[rows, at.ROOM] = blocks
    for i in range(rows - 1, -1, -1):
        headroom[i, at.ROOM] = min(headroom[i, at.ROOM], headroom[i + 1, at.ROOM])
    return rows + 1


@kernel
def clear_from(headroom: Floats, rows: int, blocks: int) -> float:
    """The first moment from which on `blocks` are free for a newcomer; 0 if that is the first of all."""
    low, high = 0, rows - 1
    while low < high:
        middle = (low + high) // 2
        if headroom[middle, at.ROOM] >= blocks:
            high = middle
        else:
            low = middle + 1
    return headroom[low, at.SINCE] if low > 0 else 0.0
