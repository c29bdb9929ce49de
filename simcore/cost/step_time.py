"""Step time: seconds that one engine step takes, from a few features of its batch.

    t = max(device, host)

    device = constant
      + dense(total tokens)                      piecewise linear through knots: weights are streamed once, so the
                                                 curve is flat while memory-bound and rises when compute-bound
      + prefill_work   * seconds per token pair  attention of prefill chunks
      + decode_kv      * seconds per KV token    attention of decoding sequences: reading their caches
      + sequences      * seconds per sequence    sampling, scheduling, per-sequence kernels
      + (decode_kv * m + sequences * n)          only in steps that prefill and decode: one attention kernel for both
                                                 loses the shortcuts (split KV, packed query heads) of pure decoding
      + (p + new sequences * q)                  only in steps that prefill: launches that no captured graph replays,
                                                 sequences taken up anew
    host   = h + sequences * i + new sequences * j

The device's part includes all work of the host that the device waits for: everything where a step is planned when the
last has come back, what is left between two steps where the engine plans ahead (`Profile.step_time_model`). `host` is
what runs beside the device there, and binds only when the device is faster. New sequences are those that prefill.

The device's time is affine in decode_kv for a fixed batch, so runs of pure decode steps sum in closed form: the slope
is `decode_kv_s_per_token` there. What they wait for the host does too (`waited_s`).

`StepTimeModel` is the record people read and files hold; `pack` turns it into the flat array that compiled code takes.
"""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
from numpy.typing import NDArray

from simcore.kernel_cache import cached, kernel
from simcore.trace import StepBatch
from simcore.types import EngineConfig, NodePace

N_HEADER = 12
"""Floats before the knots in a packed model: constant, prefill work, decode KV, per sequence, number of knots, in mixed
steps additionally per decode KV and per sequence, in steps that prefill additionally a constant and per new sequence;
of the host's part the constant, per sequence and per new sequence."""


class StepTimeModel(msgspec.Struct, frozen=True, kw_only=True):
    """Coefficients of one (GPU, model) pair. All in seconds."""

    name: str
    """`gpu/model`, e.g. `a30/llama-2-7b`."""
    constant_s: float
    prefill_work_s_per_token2: float
    decode_kv_s_per_token: float
    per_seq_s: float
    mixed_decode_kv_s_per_token: float = 0.0
    """Added to `decode_kv_s_per_token` in steps that also prefill."""
    mixed_seq_s: float = 0.0
    """Added to `per_seq_s` in steps that prefill and decode."""
    prefill_step_s: float = 0.0
    """Added in steps that prefill."""
    prefill_seq_s: float = 0.0
    """Added in steps that prefill, per sequence that does."""
    host_s: float = 0.0
    """Host work beside the device: no step is shorter than it."""
    host_seq_s: float = 0.0
    """The same, per sequence of the batch."""
    host_prefill_seq_s: float = 0.0
    """The same, additionally per sequence that prefills."""
    dense_knots_tokens: tuple[int, ...]
    """Ascending; below the first the first value holds, above the last the last slope goes on."""
    dense_knots_s: tuple[float, ...]
    source: str = ""
    """Where the numbers come from: file, rows, fit error."""

    def __post_init__(self) -> None:
        if len(self.dense_knots_tokens) != len(self.dense_knots_s) or len(self.dense_knots_s) < 2:
            raise ValueError(f"{self.name}: dense knots need two or more tokens/seconds pairs of equal number")
        numbers = (
            self.constant_s,
            self.prefill_work_s_per_token2,
            self.decode_kv_s_per_token,
            self.per_seq_s,
            self.mixed_decode_kv_s_per_token,
            self.mixed_seq_s,
            self.prefill_step_s,
            self.prefill_seq_s,
            self.host_s,
            self.host_seq_s,
            self.host_prefill_seq_s,
            *self.dense_knots_s,
        )
        if not all(np.isfinite(x) and x >= 0 for x in numbers):
            raise ValueError(f"{self.name}: coefficients must be finite and not negative")
        if any(a >= b for a, b in itertools.pairwise(self.dense_knots_tokens)) or self.dense_knots_tokens[0] < 1:
            raise ValueError(f"{self.name}: dense knots must be ascending token counts from 1 up")
        if any(a > b for a, b in itertools.pairwise(self.dense_knots_s)):
            raise ValueError(f"{self.name}: dense seconds must not fall with more tokens")

    def scaled(self, factor: float) -> StepTimeModel:
        """The model of the same hardware, `factor` times slower (0.1 = ten times faster)."""
        return msgspec.structs.replace(
            self,
            constant_s=self.constant_s * factor,
            prefill_work_s_per_token2=self.prefill_work_s_per_token2 * factor,
            decode_kv_s_per_token=self.decode_kv_s_per_token * factor,
            per_seq_s=self.per_seq_s * factor,
            mixed_decode_kv_s_per_token=self.mixed_decode_kv_s_per_token * factor,
            mixed_seq_s=self.mixed_seq_s * factor,
            prefill_step_s=self.prefill_step_s * factor,
            prefill_seq_s=self.prefill_seq_s * factor,
            host_s=self.host_s * factor,
            host_seq_s=self.host_seq_s * factor,
            host_prefill_seq_s=self.host_prefill_seq_s * factor,
            dense_knots_s=tuple(s * factor for s in self.dense_knots_s),
        )

    def pack(self) -> NDArray[np.float64]:
        """Flat float64 array: header, knot tokens, knot seconds."""
        return np.array(
            [
                self.constant_s,
                self.prefill_work_s_per_token2,
                self.decode_kv_s_per_token,
                self.per_seq_s,
                len(self.dense_knots_tokens),
                self.mixed_decode_kv_s_per_token,
                self.mixed_seq_s,
                self.prefill_step_s,
                self.prefill_seq_s,
                self.host_s,
                self.host_seq_s,
                self.host_prefill_seq_s,
                *self.dense_knots_tokens,
                *self.dense_knots_s,
            ],
            dtype=np.float64,
        )

    def pace(self, config: EngineConfig) -> NodePace:
        """The few numbers of an engine with these step times that gateways are told."""
        packed = self.pack()
        most, budget = config.max_num_seqs, config.max_num_batched_tokens
        batches = (*itertools.takewhile(lambda n: n < most, (1 << i for i in range(20))), most)
        empty_s, full_s = dense_seconds(packed, 1.0), dense_seconds(packed, float(budget))
        return NodePace(
            batches=batches,
            step_s=tuple(float(step_seconds(packed, n, 0.0, 0.0, n, 0)) for n in batches),
            kv_s_per_token=self.decode_kv_s_per_token,
            prefill_s_per_token=float(full_s - empty_s) / max(1, budget - 1),
            prefill_s_per_token2=self.prefill_work_s_per_token2,
        )

    def seconds(self, batch: StepBatch) -> float:
        """Duration of a step with this batch."""
        return float(
            step_seconds(
                self.pack(),
                batch.total_tokens,
                batch.prefill_work_tokens2,
                batch.decode_kv_tokens,
                batch.prefill_seqs + batch.decode_seqs,
                batch.prefill_seqs,
            )
        )


@cached
def dense_seconds(packed: NDArray[np.float64], tokens: float) -> float:
    n = int(packed[4])
    if tokens <= packed[N_HEADER]:
        return packed[N_HEADER + n]
    # Steps are short on tokens (decoding) or at a budget: bisection serves both.
    low, high = 1, n - 1
    while low < high:
        middle = (low + high) // 2
        if tokens > packed[N_HEADER + middle]:
            low = middle + 1
        else:
            high = middle
    i = low
    x0, x1 = packed[N_HEADER + i - 1], packed[N_HEADER + i]
    y0, y1 = packed[N_HEADER + n + i - 1], packed[N_HEADER + n + i]
    return y0 + (y1 - y0) * (tokens - x0) / (x1 - x0)


@cached
def step_seconds(
    packed: NDArray[np.float64], tokens: float, prefill_work: float, decode_kv: float, seqs: float, prefill_seqs: float
) -> float:
    """Step time in seconds of a batch, from a packed model. `seqs` are all sequences, with those that prefill."""
    seconds = (
        packed[0] + dense_seconds(packed, tokens) + packed[1] * prefill_work + packed[2] * decode_kv + packed[3] * seqs
    )
    if prefill_work > 0.0:
        seconds += packed[7] + packed[8] * prefill_seqs
        if decode_kv > 0.0:
            seconds += packed[5] * decode_kv + packed[6] * seqs
    return max(seconds, packed[9] + packed[10] * seqs + packed[11] * prefill_seqs)


@kernel
def waited_s(short_s: float, rise_s: float, steps: float) -> float:
    """What the host adds to `steps` steps in which the same sequences decode: it takes `short_s` longer than the device
    in the first, and `rise_s` less of that in every next, since the caches grow."""
    waits = steps
    if rise_s * steps > short_s:
        waits = np.ceil(short_s / rise_s)
    return waits * short_s - 0.5 * rise_s * waits * (waits - 1.0)
