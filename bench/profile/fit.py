"""From measured kernels to the coefficients of a step, with the error on rows the fit did not see.

    step = constant + dense(tokens) + a * prefill work + b * decode KV + c * sequences
           + in mixed steps (m * decode KV + n * sequences)

Dense operators give the curve, attention gives a, b, m and n plus a launch floor (into the constant), a cost per
sequence and one per token (into the curve); head and host work give a constant and a cost per sequence. Times of one
layer are multiplied by the layers. Attention rows are weighted by the step they would be part of, so that an error
matters as much as it matters to the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bench.profile.curve import by_op, fit_sum, measured_sum
from bench.profile.kernels import Kernel
from bench.profile.robust import Floats, fit_nonnegative
from bench.profile.rows import ProfileTableError

HELD_OUT_EVERY = 5
MIXED_BATCHES = 2000
MIX_SEED = 20240


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one model on one GPU."""

    layers: int
    dense: Sequence[Kernel]
    attention: Sequence[Kernel]
    head: Sequence[Kernel]
    host_seqs: Sequence[int] = ()
    """Host work: sequences of a step ..."""
    host_s: Sequence[float] = ()
    """... and its seconds."""


class Coefficients(msgspec.Struct, frozen=True, kw_only=True):
    """A step's coefficients, by origin. Seconds."""

    knots_tokens: tuple[int, ...]
    dense_s: tuple[float, ...]
    """At the knots, attention's cost per token included."""
    attention_floor_s: float
    prefill_work_s: float
    decode_kv_s: float
    attention_seq_s: float
    mixed_decode_kv_s: float
    mixed_seq_s: float
    head_s: float
    head_seq_s: float
    host_s: float
    host_seq_s: float


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """Relative error of the GPU part of a step (layers only) on held-out rows, by kind of batch."""

    rows_fitted: int
    rows_held_out: int
    median: dict[str, float]
    p90: dict[str, float]
    """Keys: `dense`, `decode`, `prefill`, `mixed`, `all`."""


def fit(measured: Measured) -> tuple[Coefficients, Errors]:
    """Coefficients from all rows, and errors from a fit that left every fifth row out.

    Raises `ProfileTableError` when a part has too few rows.
    """
    dense_train, dense_test = _split_dense(measured.dense)
    attention_train, attention_test = _split(measured.attention)
    trial = _coefficients(msgspec.structs.replace(measured, dense=dense_train, attention=attention_train))
    errors = _errors(trial, measured, dense_test, attention_test)
    seen = len(dense_train) + len(attention_train) + len(measured.head) + len(measured.host_s)
    errors = msgspec.structs.replace(errors, rows_fitted=seen, rows_held_out=len(dense_test) + len(attention_test))
    return _coefficients(measured), errors


def _split(kernels: Sequence[Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    train = [k for i, k in enumerate(kernels) if i % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    return train, [k for i, k in enumerate(kernels) if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1]


def _split_dense(kernels: Sequence[Kernel]) -> tuple[list[Kernel], list[Kernel]]:
    """By token count, so that no operator has seen what the others are asked for; the ends of the range stay."""
    counts = sorted({k.tokens for k in kernels})
    held = set(counts[HELD_OUT_EVERY - 1 : -1 : HELD_OUT_EVERY])
    return [k for k in kernels if k.tokens not in held], [k for k in kernels if k.tokens in held]


def _matrix(kernels: Sequence[Kernel]) -> Floats:
    """(rows, 5): 1, prefill work, decode KV, sequences, tokens."""
    return np.array(
        [[1.0, k.prefill_work_tokens2, k.decode_kv_tokens, k.seqs, k.tokens] for k in kernels], dtype=np.float64
    ).reshape(-1, 5)


def _with_mixed(rows: Floats) -> Floats:
    """(rows, 7): the same and, where there are both prefill and decode, decode KV and sequences once more."""
    both = (rows[:, 1] > 0) & (rows[:, 2] > 0)
    return np.column_stack([rows, rows[:, 2] * both, rows[:, 3] * both])


def _evenly(rows: Floats) -> Floats:
    """Scales that give decode, prefill and mixed rows the same say, however many a table has of each."""
    kind = 2 * (rows[:, 1] > 0) + (rows[:, 2] > 0)
    sizes = np.bincount(kind, minlength=4)
    return np.sqrt(sizes[kind] / len(rows))


def _seconds(kernels: Sequence[Kernel]) -> Floats:
    return np.array([k.seconds for k in kernels], dtype=np.float64)


def affine(counts: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Non-negative (constant, slope) through the points."""
    x, y = np.asarray(counts, float), np.asarray(seconds, float)
    if len(x) < 2:
        return (float(y[0]) if len(y) else 0.0), 0.0
    constant, slope = fit_nonnegative(np.stack([np.ones_like(x), x], axis=1), y, y)
    return float(constant), float(slope)


def _per_sequence(head: Sequence[Kernel]) -> tuple[float, float]:
    """(constant, slope) of all operators of the head together."""
    constant_s = slope_s = 0.0
    for op in sorted({k.op for k in head}):
        own = [k for k in head if k.op == op]
        constant, slope = affine([k.tokens for k in own], [k.seconds for k in own])
        constant_s, slope_s = constant_s + constant, slope_s + slope
    return constant_s, slope_s


def _coefficients(measured: Measured) -> Coefficients:
    for part, kernels in (("dense", measured.dense), ("attention", measured.attention)):
        if len(kernels) < 10:
            where = kernels[0].file if kernels else "no table"
            raise ProfileTableError(f"{where}: {len(kernels)} usable {part} rows; ten or more are needed")
    knots, layer_s = fit_sum(measured.dense)
    x = np.array(knots, float)
    features, seconds = _matrix(measured.attention), _seconds(measured.attention)
    in_step = seconds + np.interp(features[:, 4], x, layer_s)
    floor, work, kv, seq, token, mixed_kv, mixed_seq = measured.layers * fit_nonnegative(
        _with_mixed(features), seconds, in_step * _evenly(features)
    )
    for name, value, phase in (("prefill work", work, "prefill"), ("decode KV", kv, "decode")):
        if value <= 0:
            raise ProfileTableError(
                f"{measured.attention[0].file}: the rows give no price to {name}; add a table of {phase} attention, "
                f"or the rule `{phase}-attention`"
            )
    head_s, head_seq_s = _per_sequence(measured.head)
    host_s, host_seq_s = affine(measured.host_seqs, measured.host_s)
    return Coefficients(
        knots_tokens=knots,
        dense_s=tuple(float(s) for s in measured.layers * layer_s + token * x),
        attention_floor_s=float(floor),
        prefill_work_s=float(work),
        decode_kv_s=float(kv),
        attention_seq_s=float(seq),
        mixed_decode_kv_s=float(mixed_kv),
        mixed_seq_s=float(mixed_seq),
        head_s=head_s,
        head_seq_s=head_seq_s,
        host_s=host_s,
        host_seq_s=host_seq_s,
    )


def _token_rows(dense: Sequence[Kernel]) -> Floats:
    """Feature rows of steps without attention, one per token count."""
    counts = sorted({k.tokens for k in dense})
    return np.array([[0.0, 0.0, 0.0, 0.0, n] for n in counts], dtype=np.float64).reshape(-1, 5)


def layers_seconds(c: Coefficients, features: Floats) -> Floats:
    """GPU seconds of all layers for rows of (1, prefill work, decode KV, sequences, tokens)."""
    x, y = np.array(c.knots_tokens, float), np.array(c.dense_s)
    tokens = features[:, 4]
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    dense = np.interp(tokens, x, y) + slope * np.maximum(tokens - x[-1], 0.0)
    linear = np.array([c.attention_floor_s, c.prefill_work_s, c.decode_kv_s, c.attention_seq_s, 0.0])
    mixed = np.array([c.mixed_decode_kv_s, c.mixed_seq_s])
    return dense + _with_mixed(features) @ np.concatenate([linear, mixed])


def _errors(c: Coefficients, measured: Measured, dense: Sequence[Kernel], attention: Sequence[Kernel]) -> Errors:
    """Steps composed of measured rows: held-out token counts without attention (`dense`), held-out attention rows with
    the dense operators of their tokens (`decode`, `prefill`), and `mixed`: measured so, or else pairs of the two."""
    highest = min(float(tokens.max()) for tokens, _ in by_op(measured.dense).values())
    usable = [k for k in attention if k.tokens <= highest]
    features, seconds = _matrix(usable), _seconds(usable)
    prefills, decodes = features[:, 1] > 0, features[:, 2] > 0
    kinds: dict[str, Floats] = {}

    def relative(rows: Floats, attention_s: Floats) -> Floats:
        truth = measured.layers * (measured_sum(measured.dense, rows[:, 4]) + attention_s)
        return np.abs(layers_seconds(c, rows) / truth - 1.0)

    held = _token_rows([k for k in dense if k.tokens <= highest])
    if len(held):
        kinds["dense"] = relative(held, np.zeros(len(held)))
    for kind, chosen in (("decode", ~prefills), ("prefill", ~decodes), ("mixed", prefills & decodes)):
        if chosen.any():
            kinds[kind] = relative(features[chosen], seconds[chosen])
    if "mixed" not in kinds and prefills.any() and decodes.any():
        rng = np.random.default_rng(MIX_SEED)
        i = rng.choice(np.flatnonzero(decodes), MIXED_BATCHES)
        j = rng.choice(np.flatnonzero(prefills), MIXED_BATCHES)
        both = features[i] + features[j]
        both[:, 0] = 1.0
        fits = both[:, 4] <= highest
        kinds["mixed"] = relative(both[fits], (seconds[i] + seconds[j])[fits])
    kinds["all"] = np.concatenate(list(kinds.values()))
    return Errors(
        rows_fitted=0,
        rows_held_out=0,
        median={kind: float(np.median(e)) for kind, e in kinds.items()},
        p90={kind: float(np.quantile(e, 0.9)) for kind, e in kinds.items()},
    )
