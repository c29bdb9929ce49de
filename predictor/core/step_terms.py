"""A step-time model as a sum of terms with a multiplier each, so that multipliers can be learned. Pure.

    t = base + dense rises + prefill attention + KV reads + sequences + the two of mixed steps + the two of prefills

A term's column holds the seconds that the *prior* gives it in each batch: the prior itself is the multiplier 1
everywhere, the same hardware at another speed is one multiplier for all. Columns are linear in the coefficients of
`StepTimeModel`, so a learned sum is again such a model, exactly.

The engine's CPU overhead and the streaming of the weights are the same in every step: no trace can tell them apart, and
no forecast has to. They are one term, `base`. What the host adds before a step that prefills, and for each request that
it takes up there, are terms of their own. A host slower than the device shows in base and sequences: the prior's lower
bound of a step (`StepTimeModel.host_s`) is no term, and no learned model has one.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from simcore.cost.step_time import StepTimeModel

Floats = NDArray[np.float64]

JOINTS_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192)
"""Where the dense curve may bend otherwise than the prior's. Between two joints it keeps the prior's shape."""
N_SCALARS = 7
"""Terms beside base and dense rises: prefill work, decode KV, sequences, and the last two again in mixed steps; steps
that prefill, and sequences that do."""
NOTHING_S = 1e-12
NOTHING_PER_UNIT_S = 1e-18
"""Seconds, and seconds per token, sequence or token pair, below which a prior's term counts as left out."""
TOKENS, WORK, KV, SEQS, NEW_SEQS, SECONDS = range(6)
"""Columns of an observation."""


class StepTerms:
    """The terms of one prior model. Immutable."""

    def __init__(self, prior: StepTimeModel) -> None:
        self.prior = prior
        x = np.asarray(prior.dense_knots_tokens, dtype=np.float64)
        y = np.asarray(prior.dense_knots_s, dtype=np.float64)
        self._x, self._y = x, y
        joints = [x[0], *(t for t in JOINTS_TOKENS if x[0] < t < x[-1]), x[-1]]
        self._joints = np.asarray(joints, dtype=np.float64)
        self._levels_s = np.interp(self._joints, x, y)
        self._widths = np.diff(self._joints)
        self._rises_s = np.diff(self._levels_s)
        base_s = _something(prior.constant_s + float(y[0]), NOTHING_S)
        # What the prior leaves out may still be there: such a term gets a unit of some size and the multiplier 0.
        unit_s = base_s or 1e-3
        work_s, kv_s, seq_s, mixed_kv_s, mixed_seq_s, prefill_s, new_seq_s = (
            _something(price_s, NOTHING_PER_UNIT_S)
            for price_s in (
                prior.prefill_work_s_per_token2,
                prior.decode_kv_s_per_token,
                prior.per_seq_s,
                prior.mixed_decode_kv_s_per_token,
                prior.mixed_seq_s,
                prior.prefill_step_s,
                prior.prefill_seq_s,
            )
        )
        some_kv_s, some_seq_s = kv_s or unit_s * 1e-5, seq_s or unit_s * 1e-3
        self._flat = self._rises_s <= NOTHING_S
        self._units = np.array(
            [
                unit_s,
                *np.where(self._flat, 0.1 * unit_s, self._rises_s),
                work_s or unit_s * 1e-6,
                some_kv_s,
                some_seq_s,
                mixed_kv_s or some_kv_s,
                mixed_seq_s or some_seq_s,
                prefill_s or 0.1 * unit_s,
                new_seq_s or some_seq_s,
            ]
        )
        self.multipliers = np.array(
            [
                float(base_s > 0),
                *np.where(self._flat, 0.0, 1.0),
                *(
                    float(price_s > 0)
                    for price_s in (work_s, kv_s, seq_s, mixed_kv_s, mixed_seq_s, prefill_s, new_seq_s)
                ),
            ]
        )
        """Those of the prior: 1, or 0 for what it leaves out."""

    def __len__(self) -> int:
        return len(self.multipliers)

    def columns(self, observed: Floats) -> Floats:
        """(n, terms) seconds of each term at multiplier 1, for (n, 6) observations: tokens, prefill work, decode KV,
        sequences, those of them that prefill, seconds."""
        tokens, work, kv, seqs, new_seqs = (observed[:, i] for i in range(SECONDS))
        out = np.empty((len(observed), len(self)))
        out[:, 0] = 1.0
        out[:, 1:-N_SCALARS] = self._rises(tokens)
        mixed = (work > 0.0) & (kv > 0.0)
        out[:, -7] = work
        out[:, -6] = kv
        out[:, -5] = seqs
        out[:, -4] = kv * mixed
        out[:, -3] = seqs * mixed
        out[:, -2] = work > 0.0
        out[:, -1] = new_seqs * (work > 0.0)
        out *= self._units
        return out

    def model(self, multipliers: Floats, *, source: str) -> StepTimeModel:
        """The sum as a model, under the prior's name."""
        base_s, *rest = (multipliers * self._units).tolist()
        rises_s, scalars = np.asarray(rest[:-N_SCALARS]), rest[-N_SCALARS:]
        knots = np.union1d(self._x, self._joints)
        dense_s = self._rises(knots) @ rises_s
        # The prior's share of the weights in what cannot be told apart.
        floor_s = min(base_s, float(multipliers[0]) * float(self._y[0]))
        # Sums of floats may fall by the last bit where the curve is flat.
        dense_s = np.maximum.accumulate(floor_s + dense_s)
        return StepTimeModel(
            name=self.prior.name,
            constant_s=base_s - floor_s,
            prefill_work_s_per_token2=scalars[0],
            decode_kv_s_per_token=scalars[1],
            per_seq_s=scalars[2],
            mixed_decode_kv_s_per_token=scalars[3],
            mixed_seq_s=scalars[4],
            prefill_step_s=scalars[5],
            prefill_seq_s=scalars[6],
            dense_knots_tokens=tuple(int(t) for t in knots),
            dense_knots_s=tuple(dense_s.tolist()),
            source=source,
        )

    def _rises(self, tokens: Floats) -> Floats:
        """(n, segments): how far each stretch of the dense curve is climbed, 1 at its end; the last goes on."""
        t = np.maximum(tokens, self._x[0])[:, None]
        level_s = np.interp(tokens, self._x, self._y)[:, None]
        shaped = (level_s - self._levels_s[:-1]) / np.where(self._flat, 1.0, self._rises_s)
        straight = (t - self._joints[:-1]) / self._widths
        climbed: Floats = np.clip(np.where(self._flat, straight, shaped), 0.0, 1.0)
        # Beyond its last knot a model climbs on as between its last two.
        slope = self._y[-1] - self._y[-2]
        over = np.maximum(0.0, t[:, 0] - self._x[-1])
        if self._flat[-1]:
            climbed[:, -1] += over / self._widths[-1]
        else:
            climbed[:, -1] += over * slope / (self._x[-1] - self._x[-2]) / self._rises_s[-1]
        return climbed


def _something(seconds: float, least: float) -> float:
    return seconds if seconds > least else 0.0


class Quadratic(msgspec.Struct, frozen=True):
    """The quadratic form v' gram v - 2 v' moment."""

    gram: Floats
    """(terms, terms), positive definite."""
    moment: Floats
    """(terms,)"""

    def minimum_nonnegative(self, start: Floats) -> Floats:
        """Its minimum over v >= 0 by Lawson and Hanson's active set (Solving Least Squares Problems, 1974, chapter 23),
        begun from the support of `start` >= 0.

        By hand, because a daemon may take 200 MB: loading `scipy.optimize` for its `nnls` brings one from 176 to
        211 MiB resident.
        """
        gram, moment = self.gram, self.moment
        n = len(moment)
        v = start.copy()
        free = v > 0.0
        for _ in range(3 * n):
            if free.any():
                inside = np.flatnonzero(free)
                solved = np.linalg.solve(gram[np.ix_(inside, inside)], moment[inside])
                if (solved <= 0.0).any():
                    now = v[inside]
                    falling = solved <= 0.0
                    steps = now[falling] / np.maximum(now[falling] - solved[falling], 1e-300)
                    step = float(steps.min())
                    v[inside] = np.maximum(0.0, now + step * (solved - now))
                    v[inside[falling][steps <= step]] = 0.0
                    free = v > 0.0
                    continue
                v[:] = 0.0
                v[inside] = solved
            gradient = np.where(free, -np.inf, moment - gram @ v)
            best = int(np.argmax(gradient))
            if gradient[best] <= 1e-9 * max(1.0, abs(float(moment[best]))):
                break
            free[best] = True
            # A first step off the bound, so that the term counts as moving.
            v[best] = 1e-12
        return v
