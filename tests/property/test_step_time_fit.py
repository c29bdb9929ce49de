"""The fit finds what made the data, through noise and outliers, and never a negative cost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.profile.curve import fit_sum, knots_for
from bench.profile.fit import Measured, fit
from bench.profile.kernels import Kernel
from bench.profile.robust import Floats, fit_nonnegative, rising_basis

TOKENS = (1, 8, 16, 32, 48, 64, 72, 96, 128, 136, 192, 256, 264, 384, 512, 520, 768, 1024, 1032, 1536, 2048)
LAYERS = 32
FLOOR_S, WORK_S, KV_S, SEQ_S = 2e-5, 2.5e-10, 1.6e-8, 3e-7
MIXED_KV_S, MIXED_SEQ_S = 1.2e-8, 6e-7


def gemm_s(tokens: float, knee: float) -> float:
    """Flat while weights stream, then linear."""
    return 4e-4 * max(1.0, tokens / knee)


def tables(rng: np.random.Generator, noise: float, outliers: float, knee: float) -> tuple[list[Kernel], list[Kernel]]:
    """One GEMM and the attention of one layer, with relative noise and a share of rows three to ten times too slow."""

    def disturbed(seconds: float) -> float:
        seconds *= float(np.exp(rng.normal(0.0, noise))) if noise else 1.0
        return seconds * float(rng.uniform(3, 10)) if rng.random() < outliers else seconds

    dense = [
        Kernel(part="dense", op="gemm", tokens=n, seconds=disturbed(gemm_s(n, knee)), file="t", row=i)
        for i, n in enumerate(n for n in TOKENS for _ in range(5))
    ]
    attention: list[Kernel] = []
    for chunk in (0, 64, 256, 512, 1024):
        for decodes in (0, 1, 8, 24, 48):
            for context in (128, 512, 1024, 2048):
                if chunk or decodes:
                    work, kv = chunk * (context + chunk / 2), decodes * context
                    seqs = decodes + (chunk > 0)
                    seconds = FLOOR_S + WORK_S * work + KV_S * kv + SEQ_S * seqs
                    if chunk and decodes:
                        seconds += MIXED_KV_S * kv + MIXED_SEQ_S * seqs
                    attention.append(
                        Kernel(
                            part="attention",
                            op="attention",
                            tokens=chunk + decodes,
                            seqs=seqs,
                            prefill_work_tokens2=work,
                            decode_kv_tokens=kv,
                            seconds=disturbed(seconds),
                            file="t",
                            row=len(attention),
                        )
                    )
    return dense, attention


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.02, 0.05]), st.sampled_from([0.0, 0.03]))
def test_the_coefficients_come_back(seed: int, noise: float, outliers: float) -> None:
    dense, attention = tables(np.random.default_rng(seed), noise, outliers, knee=256.0)
    found, _ = fit(Measured(layers=LAYERS, dense=dense, attention=attention, head=[]))
    tolerance = 0.002 + 2.0 * noise + (0.06 if outliers else 0.0)
    assert found.decode_kv_s == pytest.approx(LAYERS * KV_S, rel=tolerance)
    assert found.prefill_work_s == pytest.approx(LAYERS * WORK_S, rel=tolerance)
    assert found.mixed_decode_kv_s == pytest.approx(LAYERS * MIXED_KV_S, rel=3 * tolerance)
    curve = np.interp(TOKENS, found.knots_tokens, found.dense_s)
    truth = np.array([LAYERS * gemm_s(n, 256.0) for n in TOKENS])
    assert np.median(np.abs(curve / truth - 1)) < tolerance
    assert np.max(np.abs(curve / truth - 1)) < 0.005 + 6 * tolerance


@given(st.integers(0, 2**32 - 1))
def test_no_cost_is_negative_whatever_the_numbers(seed: int) -> None:
    """Pure noise for times: the fit is worthless, but no engine gets faster by working more."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(0.0, 1e6, (40, 5))
    times = rng.lognormal(-8.0, 2.0, 40)
    found = fit_nonnegative(features, times, times)
    assert (found >= 0).all()
    assert np.isfinite(found).all()


@given(st.integers(0, 2**32 - 1))
def test_the_curve_never_falls(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernels = [
        Kernel(part="dense", op=op, tokens=n, seconds=float(rng.lognormal(-8, 1)), file="t", row=0)
        for op in ("a", "b")
        for n in TOKENS
    ]
    knots, seconds = fit_sum(kernels)
    assert list(knots) == sorted(set(knots))
    assert (np.diff(seconds) >= -1e-15).all()
    assert (seconds >= 0).all()


@given(st.lists(st.integers(1, 20_000), min_size=2, max_size=400, unique=True))
def test_there_are_never_more_knots_than_measurements(counts: list[int]) -> None:
    tokens: Floats = np.array(counts, dtype=np.float64)
    knots = knots_for(tokens)
    assert len(knots) <= len(counts)
    assert (np.diff(knots) > 0).all()
    assert (knots[0], knots[-1]) == (tokens.min(), tokens.max())


def test_operators_of_the_head_add_up() -> None:
    """Projection and sampler are measured apart and run one after the other."""
    dense, attention = tables(np.random.default_rng(0), 0.0, 0.0, knee=256.0)
    head = [
        Kernel(part="head", op=op, tokens=n, seqs=n, seconds=base + slope * n, file="t", row=n)
        for op, base, slope in (("lm_head", 1.1e-3, 2e-6), ("sampler", 2.5e-5, 1e-6))
        for n in (1, 8, 64, 256)
    ]
    found, _ = fit(Measured(layers=LAYERS, dense=dense, attention=attention, head=head))
    assert found.head_s == pytest.approx(1.125e-3, rel=1e-6)
    assert found.head_seq_s == pytest.approx(3e-6, rel=1e-6)


def test_a_few_wild_rows_do_not_move_the_fit() -> None:
    x = np.arange(1.0, 101.0)
    y = 3.0 + 0.5 * x
    y[::10] *= 50.0
    found = fit_nonnegative(np.stack([np.ones_like(x), x], axis=1), y, y)
    assert found == pytest.approx([3.0, 0.5], rel=0.02)


def test_what_cannot_be_determined_is_refused() -> None:
    with pytest.raises(ValueError, match="2 rows cannot determine 3"):
        fit_nonnegative(np.ones((2, 3)), np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="finite"):
        fit_nonnegative(np.ones((4, 1)), np.array([1.0, np.nan, 1.0, 1.0]), np.ones(4))


def test_the_basis_rises_from_knot_to_knot() -> None:
    knots = np.array([1.0, 10.0, 20.0])
    basis = rising_basis(np.array([1.0, 5.5, 10.0, 20.0, 30.0]), knots)
    assert basis.tolist() == [[1, 0, 0], [1, 0.5, 0], [1, 1, 0], [1, 1, 1], [1, 1, 2]]
