"""What the traffic envelope of scaling rules costs, against the number of arrivals within what it looks back to.

    python -m bench.micro.envelope

Prints µs per arrival and per question (InferLine's windows, from 0.2 s doubling to 60 s, all at once) for 10^3 to 10^7
arrivals within 80 s; beside it a list of arrivals, as an envelope is written down at first, as far as that is bearable.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import msgspec

from gateway.core.scale.envelope import TrafficEnvelope, doubling_windows_s

LOOK_BACK_S = 80.0
STRETCH_S = 0.1
WINDOWS_S = doubling_windows_s(0.2, 60.0)
QUESTIONS = 200
LIST_UP_TO = 100_000
TOKENS = 257


class EnvelopeCost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one number of arrivals."""

    arrivals: int
    update_us: float
    query_us: float
    """One question for all windows."""
    list_query_us: float | None
    """The same of a plain list of arrivals."""


def measure(arrivals: int, questions: int = QUESTIONS) -> EnvelopeCost:
    """Arrivals spread evenly over what is looked back to."""
    envelope = TrafficEnvelope(look_back_s=LOOK_BACK_S, stretch_s=STRETCH_S)
    step_s = LOOK_BACK_S / arrivals
    add = envelope.add
    began = time.perf_counter()
    for number in range(arrivals):
        add(TOKENS, number * step_s)
    update_us = (time.perf_counter() - began) / arrivals * 1e6
    began = time.perf_counter()
    for _ in range(questions):
        envelope.max_rates(WINDOWS_S, LOOK_BACK_S)
    query_us = (time.perf_counter() - began) / questions * 1e6
    listed = None
    if arrivals <= LIST_UP_TO:
        times_s = [number * step_s for number in range(arrivals)]
        began = time.perf_counter()
        for window_s in WINDOWS_S:
            largest_count(times_s, window_s)
        listed = (time.perf_counter() - began) * 1e6
    return EnvelopeCost(arrivals=arrivals, update_us=update_us, query_us=query_us, list_query_us=listed)


def largest_count(times_s: Sequence[float], window_s: float) -> int:
    """Most arrivals in any window of that length: two pointers over the list."""
    largest = first = 0
    for last, time_s in enumerate(times_s):
        while times_s[first] <= time_s - window_s:
            first += 1
        largest = max(largest, last + 1 - first)
    return largest


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000_000, help="arrivals in the last row")
    most = parser.parse_args(argv).most
    measure(1000)  # The first one pays for what is loaded.
    print("| arrivals | update µs | query µs | a list, query µs |\n|---|---|---|---|")
    arrivals = 1000
    while arrivals <= most:
        cost = measure(arrivals)
        listed = "-" if cost.list_query_us is None else f"{cost.list_query_us:,.0f}"
        print(f"| {cost.arrivals:,} | {cost.update_us:.2f} | {cost.query_us:.0f} | {listed} |", flush=True)
        arrivals *= 10
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
