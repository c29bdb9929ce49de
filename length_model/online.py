"""A length model at work: predictions that cannot fail, and corrections from what really came.

No thread, no event loop, no clock: a caller runs `predict_batch` wherever it may take its time (a worker thread) and
`observe` where requests end. A call that raises inside gives the prior and is counted; a caller with a deadline that
gives up counts with `note_late` and uses `prior_for`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from length_model.core.belief import DEFAULT_PRIOR, truncated
from length_model.core.distribution import Floats, beliefs
from length_model.core.model import LengthModel
from length_model.core.populations import MOST_POPULATIONS, Population, Populations, hazards_of, populations_of
from length_model.core.query import LengthQuery, make_query
from simcore.types import LengthBelief


class LengthForecast(msgspec.Struct, frozen=True, kw_only=True):
    """A belief, and what is needed to learn from the answer. About 400 bytes; keep it while the request runs."""

    belief: LengthBelief
    populations: tuple[Population, ...] = ()
    """Whose answer it will be, the widest first."""
    hazards: NDArray[np.float32] | None = None
    """What the model alone believes: per bucket [K] the chance to end there; None when the prior stood in."""


class Counters(msgspec.Struct):
    """Counts of predictions and observations since the start."""

    predictions: int = 0
    failed: int = 0
    """Predictions for which the prior stood in because the model raised."""
    late: int = 0
    """Predictions for which the prior stood in because a deadline passed."""
    observed: int = 0
    observed_censored: int = 0
    ignored: int = 0
    """Observations that could teach nothing: no tokens, or the prior had stood in."""


class OnlineLengths:
    """Safe to call from several threads. The model is never changed; only what is learned on top of it is."""

    def __init__(
        self, model: LengthModel, *, prior: LengthBelief = DEFAULT_PRIOR, most_populations: int = MOST_POPULATIONS
    ) -> None:
        self.model = model
        self.counters = Counters()
        self._prior = prior
        self._populations = Populations(model.edges, most_populations)
        self._lock = threading.Lock()

    def predict_batch(
        self, texts: Sequence[str], max_tokens: Sequence[int | None] | None = None, *, model: str = ""
    ) -> list[LengthBelief]:
        """One belief per prompt text, cut at its limit. Never raises for any text."""
        return [f.belief for f in self.forecast_batch([make_query(t, model=model) for t in texts], max_tokens)]

    def forecast_batch(
        self, queries: Sequence[LengthQuery], max_tokens: Sequence[int | None] | None = None
    ) -> list[LengthForecast]:
        """The same for full queries, with what `observe` needs. A query that breaks the model gets the prior, the
        others are answered."""
        limits = list(max_tokens) if max_tokens is not None else [None] * len(queries)
        if not queries:
            return []
        try:
            forecasts = self._forecasts(queries, limits)
        except Exception:
            if len(queries) > 1:
                return [f for q, m in zip(queries, limits, strict=True) for f in self.forecast_batch([q], [m])]
            return [self.failed(limits[0])]
        with self._lock:
            self.counters.predictions += len(queries)
        return forecasts

    def _forecasts(self, queries: Sequence[LengthQuery], limits: Sequence[int | None]) -> list[LengthForecast]:
        of = [populations_of(query) for query in queries]
        pmf, hazards = self._corrected(queries, of)
        return [
            LengthForecast(belief=belief, populations=populations, hazards=row)
            for belief, populations, row in zip(
                beliefs(self.model.edges, pmf, limits), of, hazards.astype(np.float32), strict=True
            )
        ]

    def pmf(self, queries: Sequence[LengthQuery]) -> Floats:
        """[n, K] the distributions that beliefs are made of: the model's, as corrected now. Raises what the model
        raises."""
        return self._corrected(queries, [populations_of(query) for query in queries])[0]

    def _corrected(self, queries: Sequence[LengthQuery], of: Sequence[tuple[Population, ...]]) -> tuple[Floats, Floats]:
        """Corrected distributions and the model's own hazards, both [n, K]."""
        pmf = np.array(self.model.pmf(queries), dtype=np.float64)
        if pmf.shape != (len(queries), len(self.model.edges) - 1) or not np.isfinite(pmf).all():
            raise FloatingPointError("the model's answer is no distribution")
        hazards = hazards_of(pmf)
        with self._lock:
            found = {populations: self._populations.correction(populations) for populations in dict.fromkeys(of)}
        for populations, correction in found.items():
            if correction is not None:
                rows = [row for row, mine in enumerate(of) if mine == populations]
                pmf[rows] = correction.pmf(hazards[rows])
        return pmf, hazards

    def prior_for(self, max_tokens: int | None) -> LengthBelief:
        """What is believed when there is no time or no model: the prior, cut at the limit."""
        return self._prior if max_tokens is None else truncated(self._prior, max_tokens)

    def note_late(self, count: int = 1) -> None:
        """Predictions that a deadline cut off."""
        with self._lock:
            self.counters.late += count

    def failed(self, max_tokens: int | None) -> LengthForecast:
        """What stands in for a prediction that failed, counted."""
        with self._lock:
            self.counters.predictions += 1
            self.counters.failed += 1
        return LengthForecast(belief=self.prior_for(max_tokens))

    def observe(self, forecast: LengthForecast, output_tokens: int, *, censored: bool) -> None:
        """Learns from one answer. `censored`: it was cut (limit, abort), so that its length is at least that."""
        with self._lock:
            if forecast.hazards is None or output_tokens < 1:
                self.counters.ignored += 1
                return
            self._populations.observe(forecast.populations, forecast.hazards, output_tokens, censored)
            self.counters.observed += 1
            self.counters.observed_censored += censored

    @property
    def drifts(self) -> int:
        """Times that answers of some population were found to have changed."""
        with self._lock:
            return self._populations.drifts()
