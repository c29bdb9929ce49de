"""Errors put on purpose into what predictors say, as Block's sensitivity study does (its section 6.8). Pure."""

from __future__ import annotations

import math
import random

import msgspec

from simcore.types import Forecast, LengthBelief

LEAST_FACTOR, LARGEST_FACTOR = 0.1, 5.0
"""Block's limits on the factor."""


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """Standard deviations of factors 1 + N(0, sd), cut to [0.1, 5]; as shares of 1. 0: no error."""

    length: float = 0.0
    """On the expected length of each request, drawn for each node on its own."""
    latency: float = 0.0
    """On every forecast, after it is made."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a share >= 0 (0.25 is 25 %), got {value}")


class NoiseSource:
    """The errors of one node, from a generator of its own: the same run gets the same errors."""

    def __init__(self, noise: Noise, seed: int, node_id: str) -> None:
        self._noise = noise
        self._rng = random.Random(f"{seed}/{node_id}")
        self._length_factors: dict[str, float] = {}

    def believed(self, request_id: str, belief: LengthBelief) -> LengthBelief:
        """The belief that this node holds of a request: one error per request, however often it is asked about."""
        if not self._noise.length:
            return belief
        factor = self._length_factors.get(request_id)
        if factor is None:
            factor = self._length_factors[request_id] = self._factor(self._noise.length)
        return LengthBelief(tuple(max(1, round(atom * factor)) for atom in belief.atoms_tokens))

    def forecast(self, forecast: Forecast) -> Forecast:
        """The forecast with its times off by one factor."""
        if not self._noise.latency:
            return forecast
        factor = self._factor(self._noise.latency)
        return msgspec.structs.replace(
            forecast,
            ttft_s=forecast.ttft_s.scaled(factor),
            tpot_s=forecast.tpot_s.scaled(factor),
            e2e_s=forecast.e2e_s.scaled(factor),
            harm_s=forecast.harm_s.scaled(factor),
        )

    def _factor(self, deviation: float) -> float:
        return min(LARGEST_FACTOR, max(LEAST_FACTOR, 1.0 + self._rng.gauss(0.0, deviation)))
