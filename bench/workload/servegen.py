"""ServeGen (arXiv:2505.09999): production statistics per client and window, and requests drawn from them. Pure.

`*_arrivals.csv`: `client,window_start_s,rate_rps,cv_iat,pattern,param_shape,param_scale`, a row per client and window
of 600 s with traffic; gaps are gamma or Weibull. `*_lengths_quantiles.csv`: `client,window_start_s,field,mean,q0,...`
with the quantiles of `input_tokens` and `output_tokens`. A few heavy clients make most of the load, and each has its
own burstiness and lengths: that is what one Poisson stream cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.rows import Parsed, Table, Tally, finite_number, plain_names, plural, whole_number

WINDOW_S = 600.0
ARRIVAL_COLUMNS = ("client", "window_start_s", "rate_rps", "cv_iat", "pattern", "param_shape", "param_scale")
ARRIVALS_SUFFIX, LENGTHS_SUFFIX = "_arrivals.csv", "_lengths_quantiles.csv"
DRAWN_RATE_PER_S = 10.0
DRAWN_DURATION_S = 3600.0
_SEED = 13
_LENGTH_COLUMNS = ("client", "window_start_s", "field", "mean")
_FIELDS = ("input_tokens", "output_tokens")
_SETTLING_GAPS = 10.0


class ClientWindow(msgspec.Struct, frozen=True, kw_only=True):
    """One client in one window: its rate, and gamma or Weibull gaps of this shape."""

    client: int
    start_s: float
    rate_per_s: float
    weibull: bool
    shape: float


class LengthQuantiles(msgspec.Struct, frozen=True, kw_only=True):
    """Quantile functions of one client's lengths in one window: shares ascending, tokens beside them."""

    shares: tuple[float, ...]
    input_tokens: tuple[float, ...]
    output_tokens: tuple[float, ...]


Lengths = dict[tuple[int, float], LengthQuantiles]
"""By client and start of the window."""


def drawn(
    windows: Sequence[ClientWindow],
    lengths: Lengths,
    source: str,
    *,
    start_s: float = 0.0,
    duration_s: float | None = None,
    notes: Sequence[str] = (),
) -> Parsed:
    """Requests drawn from both, the same ones every time, at a mean of 10 requests/s (the recorded services have up to
    2,000: a run scales them to its own rate). Without `duration_s` one hour. `notes` are those of the files.

    Raises:
        DatasetError: no client has traffic in the slice.
    """
    try:
        rows = draw_requests(
            np.random.default_rng(_SEED),
            windows,
            lengths,
            start_s=start_s,
            duration_s=DRAWN_DURATION_S if duration_s is None else duration_s,
            rate_per_s=DRAWN_RATE_PER_S,
        )
    except ValueError as error:
        raise DatasetError(source, str(error), mend="Choose another start or duration.") from None
    clients = len({row.session for row in rows})
    title = f"ServeGen: {plural(len(rows), 'request')} of {plural(clients, 'client')} drawn from their statistics"
    strangers = len({window.client for window in windows} - {client for client, _ in lengths})
    if strangers:
        notes = [*notes, f"{plural(strangers, 'client')} without lengths: those of another client, drawn at random"]
    return Parsed(rows=rows, counts={"rows": len(rows), "kept": len(rows), "clients": clients}, notes=[title, *notes])


def is_servegen(header: Iterable[str]) -> bool:
    """Whether a table with this header is one of arrivals by client."""
    return plain_names(ARRIVAL_COLUMNS) <= plain_names(header)


def parse_arrivals(lines: Iterable[str], source: str, tally: Tally | None = None) -> list[ClientWindow]:
    """All windows. Raises DatasetError with file, row and reason."""
    tally = tally or Tally(source)
    expected = ",".join(ARRIVAL_COLUMNS)
    table = Table(lines, tally, expected=expected)
    if not is_servegen(table.header):
        raise DatasetError(source, f"its header is `{','.join(table.header)}`", mend=f"Expected `{expected}`.")
    at = {name: table.need(name, expected=expected) for name in ARRIVAL_COLUMNS}
    windows: list[ClientWindow] = []
    for row, fields in table:
        with tally:
            pattern = fields[at["pattern"]].strip()
            if pattern not in ("Gamma", "Weibull"):
                raise DatasetError(source, f"unknown pattern `{pattern}`", row=row, mend="Expected Gamma or Weibull.")
            rate_per_s = finite_number(fields[at["rate_rps"]], "rate_rps", source, row)
            shape = finite_number(fields[at["param_shape"]], "param_shape", source, row)
            if rate_per_s <= 0 or shape <= 0:
                raise DatasetError(source, "a rate or shape of 0 or below", row=row, mend="Both must be above 0.")
            windows.append(
                ClientWindow(
                    client=whole_number(fields[at["client"]], "client", source, row),
                    start_s=finite_number(fields[at["window_start_s"]], "window_start_s", source, row),
                    rate_per_s=rate_per_s,
                    weibull=pattern == "Weibull",
                    shape=shape,
                )
            )
    if not windows:
        reason = "; ".join(["there are no rows below the header", *tally.account()])
        raise DatasetError(source, reason, mend="Fetch the file again.")
    return windows


def parse_length_quantiles(lines: Iterable[str], source: str, tally: Tally | None = None) -> Lengths:
    """Quantiles by client and window; rows of other fields, and windows with one of the two lengths, are counted."""
    tally = tally or Tally(source)
    table = Table(lines, tally, expected="client,window_start_s,field,mean,q0,q50,q100")
    header = table.header
    quantiles = header[len(_LENGTH_COLUMNS) :]
    if tuple(header[:4]) != _LENGTH_COLUMNS or len(quantiles) < 2 or not all(q[:1] == "q" for q in quantiles):
        raise DatasetError(
            source, f"its header is `{','.join(header)}`", mend="Expected client,window_start_s,field,mean,q0,...,q100."
        )
    shares = tuple(finite_number(q[1:], q, source, 1) / 100.0 for q in quantiles)
    found: dict[tuple[int, float], dict[str, tuple[float, ...]]] = {}
    for row, fields in table:
        with tally:
            if fields[2] not in _FIELDS:
                tally.leave_out("other_field", "row", detail=f"of neither {_FIELDS[0]} nor {_FIELDS[1]}")
                continue
            values = tuple(
                finite_number(v, q, source, row) for v, q in zip(fields[len(_LENGTH_COLUMNS) :], quantiles, strict=True)
            )
            if list(values) != sorted(values):
                raise DatasetError(source, "quantiles that do not ascend", row=row, mend="Fetch the file again.")
            client = whole_number(fields[0], "client", source, row)
            found.setdefault((client, finite_number(fields[1], "window_start_s", source, row)), {})[fields[2]] = values
    halves = sum(len(both) < len(_FIELDS) for both in found.values())
    tally.leave_out("half", "window", detail="with one of the two lengths only", rows=halves)
    return {
        key: LengthQuantiles(shares=shares, input_tokens=both[_FIELDS[0]], output_tokens=both[_FIELDS[1]])
        for key, both in found.items()
        if len(both) == len(_FIELDS)
    }


def draw_requests(
    rng: np.random.Generator,
    windows: Sequence[ClientWindow],
    lengths: Lengths,
    *,
    start_s: float,
    duration_s: float,
    rate_per_s: float | None = None,
) -> list[DataRow]:
    """Requests of all clients in [start, start + duration), by time; `session` is the client.

    `rate_per_s` scales the aggregate to a mean rate (None: as recorded); the shares of the clients, their burstiness
    and the course of the day stay. A client without lengths in a window takes those of its nearest window; one without
    any takes those of a random client (the published files lack the biggest clients' lengths).

    Raises:
        ValueError: nothing falls into the slice, or there are no lengths at all.
    """
    chosen = [w for w in windows if w.start_s + WINDOW_S > start_s and w.start_s < start_s + duration_s]
    if not chosen:
        raise ValueError(f"no client has traffic from {start_s:g} s for {duration_s:g} s")
    if not lengths:
        raise ValueError("no client has lengths")
    mean_per_s = sum(w.rate_per_s * _overlap_s(w, start_s, duration_s) for w in chosen) / duration_s
    scale = 1.0 if rate_per_s is None else rate_per_s / mean_per_s
    starts_of: dict[int, list[float]] = {}
    for client, at_s in lengths:
        starts_of.setdefault(client, []).append(at_s)
    keys = sorted(lengths)
    stand_in: dict[int, tuple[int, float]] = {}
    rows: list[DataRow] = []
    for window in sorted(chosen, key=lambda w: (w.start_s, w.client)):
        times = _times_s(rng, window, window.rate_per_s * scale)
        times = times[(times >= start_s) & (times < start_s + duration_s)]
        own = starts_of.get(window.client)
        if own is not None:
            key = (window.client, min(own, key=lambda at_s, s=window.start_s: abs(at_s - s)))  # type: ignore[misc]
        else:
            key = stand_in.setdefault(window.client, keys[int(rng.integers(len(keys)))])
        rows.extend(_rows(rng, times - start_s, lengths[key], str(window.client)))
    rows.sort(key=lambda row: row.arrival_s or 0.0)
    if not rows:
        raise ValueError("no request falls into the slice: make it longer or raise the rate")
    return rows


def _overlap_s(window: ClientWindow, start_s: float, duration_s: float) -> float:
    return min(window.start_s + WINDOW_S, start_s + duration_s) - max(window.start_s, start_s)


def _times_s(rng: np.random.Generator, window: ClientWindow, rate_per_s: float) -> NDArray[np.float64]:
    """Arrivals in the window, of a stream that has run for long.

    Bursty gaps that began with the window would put too many requests into it ((cv^2 - 1) / 2 of them, by renewal
    theory): the stream begins earlier, by more the burstier it is.
    """
    if window.weibull:
        mean_gap = math.gamma(1.0 + 1.0 / window.shape)
        squared_cv = math.gamma(1.0 + 2.0 / window.shape) / mean_gap**2 - 1.0
    else:
        mean_gap, squared_cv = window.shape, 1.0 / window.shape
    batch = max(64, math.ceil(rate_per_s * WINDOW_S * 1.2))
    parts: list[NDArray[np.float64]] = []
    end_s = -_SETTLING_GAPS * (1.0 + squared_cv) / rate_per_s
    while end_s < WINDOW_S:
        drawn = rng.weibull(window.shape, size=batch) if window.weibull else rng.gamma(window.shape, size=batch)
        times = end_s + np.cumsum(drawn / (mean_gap * rate_per_s))
        parts.append(times)
        end_s = float(times[-1])
    times = np.concatenate(parts)
    inside: NDArray[np.float64] = window.start_s + times[(times >= 0) & (times < WINDOW_S)]
    return inside


def _rows(
    rng: np.random.Generator, times_s: NDArray[np.float64], lengths: LengthQuantiles, session: str
) -> list[DataRow]:
    shares = np.array(lengths.shares)
    prompts = np.interp(rng.random(times_s.size), shares, np.array(lengths.input_tokens))
    outputs = np.interp(rng.random(times_s.size), shares, np.array(lengths.output_tokens))
    return [
        DataRow(
            prompt_tokens=max(1, round(float(prompt))),
            output_tokens=max(1, round(float(output))),
            session=session,
            arrival_s=float(at_s),
        )
        for at_s, prompt, output in zip(times_s, prompts, outputs, strict=True)
    ]
