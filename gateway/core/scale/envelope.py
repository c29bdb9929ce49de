"""How fast traffic came, over windows of many lengths at once. Pure.

What comes is counted in a ring of equal stretches of time, so neither an arrival nor a question costs more where more
has come: an arrival adds to one stretch, a question reads a ring of running sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt


class TrafficEnvelope:
    """The largest rate within any window of a given length, as far as it looks back.

    A window is so many whole stretches, the last of them the one that runs now. With windows of k stretches what it
    finds is at most the maximum over all windows of that length wherever they begin, and that is at most what it finds
    with k + 1 stretches, taken as if they were k.
    """

    def __init__(self, *, look_back_s: float, stretch_s: float) -> None:
        """What is older than `look_back_s` is forgotten; `stretch_s` is how finely times are told apart.

        Raises ValueError for a stretch that is not above 0 or longer than what it looks back.
        """
        if not 0 < stretch_s <= look_back_s < math.inf:
            raise ValueError(f"an envelope of {look_back_s} s in stretches of {stretch_s} s cannot be")
        self.look_back_s = look_back_s
        self.stretch_s = stretch_s
        self._size = max(1, round(look_back_s / stretch_s))
        self._ring = [0.0] * self._size
        self._latest: int | None = None

    def add(self, amount: float, now_s: float) -> None:
        """So much has come. What is told late counts as come with the latest."""
        stretch = int(now_s // self.stretch_s)
        latest = self._latest
        if latest is None or stretch > latest:
            self._go_on_to(stretch)
            latest = stretch
        self._ring[latest % self._size] += amount

    def max_rate(self, window_s: float, now_s: float, *, look_back_s: float | None = None) -> float:
        """The largest amount per second in a window of that length; `look_back_s` is less than the envelope's own."""
        return self.max_rates([window_s], now_s, look_back_s=look_back_s)[0]

    def max_rates(
        self, windows_s: Iterable[float], now_s: float, *, look_back_s: float | None = None
    ) -> Sequence[float]:
        """`max_rate` for several lengths."""
        sums = self._sums(now_s, look_back_s)
        return [self._largest(sums, self._stretches(window_s, sums)) for window_s in windows_s]

    def max_rate_of_longer(self, window_s: float, now_s: float, *, look_back_s: float | None = None) -> float:
        """The largest amount per second in any window of that length or a longer one."""
        sums = self._sums(now_s, look_back_s)
        shortest = self._stretches(window_s, sums)
        # One of twice the length is two of them, and one of the two has its rate at least.
        longest = min(2 * shortest, len(sums))
        return max(self._largest(sums, stretches) for stretches in range(shortest, longest))

    def rate(self, window_s: float, now_s: float) -> float:
        """Amount per second in the window that ends now."""
        sums = self._sums(now_s, None)
        stretches = self._stretches(window_s, sums)
        return float(sums[-1] - sums[-1 - stretches]) / (stretches * self.stretch_s)

    def _stretches(self, window_s: float, sums: npt.NDArray[np.float64]) -> int:
        """So many make the window; at least one, at most all that are looked at."""
        return min(max(1, math.ceil(window_s / self.stretch_s - 1e-9)), len(sums) - 1)

    def _largest(self, sums: npt.NDArray[np.float64], stretches: int) -> float:
        return float(np.max(sums[stretches:] - sums[:-stretches])) / (stretches * self.stretch_s)

    def _sums(self, now_s: float, look_back_s: float | None) -> npt.NDArray[np.float64]:
        """Running sums over the stretches looked at, oldest first, from 0."""
        stretch = int(now_s // self.stretch_s)
        if self._latest is None or stretch > self._latest:
            self._go_on_to(stretch)
        assert self._latest is not None
        newest = self._latest % self._size
        ring = np.array(self._ring)
        in_order = np.concatenate((ring[newest + 1 :], ring[: newest + 1]))
        if look_back_s is not None:
            in_order = in_order[-max(1, round(look_back_s / self.stretch_s)) :]
        return np.concatenate(([0.0], np.cumsum(in_order)))

    def _go_on_to(self, stretch: int) -> None:
        if self._latest is not None:
            passed = stretch - self._latest
            if passed >= self._size:
                self._ring = [0.0] * self._size
            else:
                for number in range(self._latest + 1, stretch + 1):
                    self._ring[number % self._size] = 0.0
        self._latest = stretch


def doubling_windows_s(shortest_s: float, longest_s: float) -> list[float]:
    """The shortest, each twice as long as the one before, and the longest."""
    windows = []
    window_s = shortest_s
    while window_s < longest_s:
        windows.append(window_s)
        window_s *= 2.0
    return [*windows, longest_s]
