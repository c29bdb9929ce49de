"""The importers of LLMServingSim and AIConfigurator, on tables made from known prices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.profile import aiconfigurator, llmservingsim, vidur
from bench.profile.kernels import Kernel
from bench.profile.physics import accept
from bench.profile.recipe import ProfileTable, Recipe, make_profile
from bench.profile.rows import ProfileTableError
from simcore.cost.hardware import find_gpu
from simcore.cost.model_shape import find_shape

H100 = find_gpu("h100")
SHAPE = find_shape("llama-3.1-8b")
MOE = find_shape("Qwen/Qwen3-30B-A3B-Instruct-2507")
TOKENS = (1, 8, 16, 32, 64, 80, 128, 144, 256, 272, 512, 528, 1024, 1040, 2048)


def keep(kernels: Sequence[Kernel]) -> list[Kernel]:
    return accept(kernels, H100, drop_bad_rows=False)[0]


def write(path: Path, header: str, rows: Iterable[Sequence[object]]) -> Path:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def gemm_us(tokens: int, inputs: int, outputs: int) -> float:
    streaming = 2.0 * inputs * outputs / (0.8 * H100.memory_bytes_per_s)
    return 1e6 * (5e-6 + max(streaming, 2.0 * tokens * inputs * outputs / (0.7 * H100.tensor_flops_per_s)))


KV_US, MIXED_US, WORK_US, FLOOR_US = 1.6e-3, 1.1e-3, 3.4e-5, 8.0


def llmservingsim_tables(folder: Path) -> tuple[ProfileTable, ...]:
    gemms = SHAPE.gemms()
    dense = [
        (layer, n, gemm_us(n, *gemms[op]) if op in gemms else 3.0 + n / 200)
        for layer, op in {**llmservingsim.GEMM_OF, "layernorm": "", "embedding": ""}.items()
        for n in TOKENS
    ]
    write(folder / "dense.csv", "layer,tokens,time_us", dense)
    attention = []
    for chunk in (0, 16, 64, 256, 1024):
        for context in (0, 512, 2048) if chunk else (0,):
            for decodes in (0, 1, 8, 32, 128):
                for kv in (128, 512, 2048) if decodes else (0,):
                    if chunk or decodes:
                        own = FLOOR_US + WORK_US * chunk * (context + chunk / 2) + KV_US * decodes * kv
                        own += MIXED_US * decodes * kv if chunk and decodes else 0.0
                        attention.append((chunk, context, decodes, kv, own))
    write(folder / "attention.csv", "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us", attention)
    head = [("lm_head", n, 400 + n / 10) for n in (1, 8, 64, 256)] + [("sampler", n, 20 + n) for n in (1, 8, 64, 256)]
    write(folder / "per_sequence.csv", "layer,sequences,time_us", head)
    return tuple(
        ProfileTable(layout=f"llmservingsim-{name}", file=f"{name.replace('-', '_')}.csv")
        for name in ("dense", "attention", "per-sequence")
    )


def test_llmservingsim_tables_give_their_prices_back(tmp_path: Path) -> None:
    recipe = Recipe(
        name="h100/llama-3.1-8b",
        gpu="h100",
        model=SHAPE.name,
        quality="measured",
        tables=llmservingsim_tables(tmp_path),
    )
    made, dropped = make_profile(recipe, tmp_path)
    assert dropped == []
    layers = SHAPE.layers * 1e-6
    assert made.decode_kv_s_per_token.value == pytest.approx(layers * KV_US, rel=0.02)
    assert made.mixed_decode_kv_s_per_token.value == pytest.approx(layers * MIXED_US, rel=0.05)
    assert made.prefill_work_s_per_token2.value == pytest.approx(layers * WORK_US, rel=0.02)
    assert made.constant_s.value == pytest.approx(layers * FLOOR_US + 420e-6, rel=0.05)
    assert made.per_seq_s.value == pytest.approx(1.1e-6, rel=0.1)
    # Four products, two norms a layer, and the embedding once for all layers.
    one = sum(gemm_us(512, *size) for size in SHAPE.gemms().values()) + 2 * (3.0 + 512 / 200)
    expected = layers * one + (3.0 + 512 / 200) * 1e-6
    assert np.interp(512, made.dense.tokens, made.dense.seconds) == pytest.approx(expected, rel=0.02)


def test_decoding_costs_what_it_costs_with_uneven_contexts(tmp_path: Path) -> None:
    header = "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us"
    table = write(tmp_path / "attention.csv", header, [(0, 0, 1, 512, 20), (0, 0, 32, 512, 100), (64, 0, 32, 512, 150)])
    even = llmservingsim.read_attention(table, SHAPE, 1, keep)
    skew = [(n, pc, 100, ratio) for n, pc, ratio in ((16, 0, 104), (64, 0, 112), (64, 0, 108), (16, 64, 110))]
    write(tmp_path / "skew.csv", "n,pc,t_mean_us,t_skew_us", skew)
    uneven = llmservingsim.read_attention(table, SHAPE, 1, keep)
    ratios = [b.seconds / a.seconds for a, b in zip(even, uneven, strict=True)]
    assert ratios == pytest.approx([1.0, 1.08, 1.10])
    write(tmp_path / "skew.csv", "n,pc,t_mean_us,t_skew_us", [(16, 0, 100, 104), (16, 0, -1, 104)])
    with pytest.raises(ProfileTableError, match=r"skew.csv: row 3: times must be above 0, found -1 and 104 us"):
        llmservingsim.read_attention(table, SHAPE, 1, keep)


def test_a_dense_table_without_a_product_of_the_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "dense.csv", "layer,tokens,time_us", [("qkv_proj", n, 50.0 + n) for n in TOKENS])
    with pytest.raises(ProfileTableError, match=r"dense.csv: no rows for layer o_proj, gate_up_proj, down_proj"):
        llmservingsim.read_dense(path, SHAPE, 1, keep)


def test_a_mixed_batch_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "attention.csv",
        "prefill_chunk,kv_prefill,n_decode,kv_decode,time_us",
        [(64, 0, 0, 0, 20), (0, 0, 0, 128, 9)],
    )
    with pytest.raises(ProfileTableError, match="row 3: neither a prefill chunk nor decoding sequences"):
        llmservingsim.read_attention(path, SHAPE, 1, keep)


def test_experts_are_priced_at_the_number_that_tokens_touch(tmp_path: Path) -> None:
    rows = [(n, active, 20 + 7 * active) for n in (1, 16, 256) for active in (8, 32, 128)]
    path = write(tmp_path / "moe.csv", "tokens,activated_experts,time_us", rows)
    found = {k.tokens: k.seconds for k in llmservingsim.read_moe(path, MOE, 1, keep)}
    assert found[1] == pytest.approx((20 + 7 * 8) * 1e-6)
    assert found[256] == pytest.approx((20 + 7 * 128) * 1e-6, rel=1e-3)
    assert found[1] < found[16] < found[256]


def gemm_table(folder: Path, sizes: Sequence[tuple[int, int]]) -> Path:
    rows = [("bfloat16", m, n, k, gemm_us(m, k, n) / 1e3) for n, k in sizes for m in TOKENS]
    return write(folder / "gemm.csv", "gemm_dtype,m,n,k,latency_ms", rows)


GRID = [(n, k) for n in (2048, 4096, 8192, 16384, 65536) for k in (2048, 4096, 8192, 16384)]


def test_a_product_between_the_grid_points_is_interpolated(tmp_path: Path) -> None:
    kernels = aiconfigurator.read_gemm(gemm_table(tmp_path, GRID), SHAPE, 1, keep)
    sizes = SHAPE.gemms() | {"lm_head": SHAPE.lm_head()}
    for kernel in kernels:
        expected = gemm_us(kernel.tokens, *sizes[kernel.op]) * 1e-6
        beyond_grid = kernel.op == "lm_head"
        assert kernel.seconds == pytest.approx(expected, rel=0.1 if beyond_grid else 0.25)
    assert {k.op for k in kernels if k.part == "head"} == {"lm_head"}
    assert max(k.tokens for k in kernels if k.part == "head") <= 256


def test_another_precision_or_an_empty_corner_is_refused(tmp_path: Path) -> None:
    path = gemm_table(tmp_path, GRID)
    with pytest.raises(ProfileTableError, match="no rows of gemm_dtype 'fp8'"):
        aiconfigurator.read_gemm(path, SHAPE, 1, keep, dtype="fp8")
    with pytest.raises(ProfileTableError, match=r"needs n=6144, k=4096; only 0 rows"):
        aiconfigurator.read_gemm(gemm_table(tmp_path, GRID[:5] + GRID[6:]), SHAPE, 1, keep)


def test_heads_that_are_absent_are_taken_from_the_nearest_layout(tmp_path: Path) -> None:
    """Multi-head attention from grouped queries: the same bytes take the same time."""
    seven = find_shape("llama-2-7b")
    header = "batch_size,kv_len,num_heads,num_key_value_heads,head_dim,kv_cache_dtype,kernel_source,latency_ms"
    rows = [
        (b, kv, 32, heads, 128, "bfloat16", "fa3", 0.01 + 1e-6 * b * kv * heads)
        for heads in (2, 8)
        for b in (1, 8, 64)
        for kv in (128, 1024)
    ]
    found = aiconfigurator.read_attention(write(tmp_path / "generation.csv", header, rows), seven, 1, keep)
    assert len(found) == 6
    for kernel in found:
        assert kernel.seconds == pytest.approx(1e-5 + 1e-9 * kernel.decode_kv_tokens * 32)


def test_an_attention_table_of_other_heads_only_is_refused(tmp_path: Path) -> None:
    header = "batch_size,isl,num_heads,num_key_value_heads,head_dim,kv_cache_dtype,kernel_source,latency_ms"
    path = write(tmp_path / "c.csv", header, [(1, n, 32, 8, 64, "bfloat16", "fa3", 1.0) for n in (64, 128)])
    with pytest.raises(ProfileTableError, match="no 16-bit rows of head_dim 128"):
        aiconfigurator.read_attention(path, SHAPE, 1, keep)


def test_all_reduces_come_by_tokens_and_the_faster_wins(tmp_path: Path) -> None:
    sizes = [2**i for i in range(8, 28)]
    custom = write(
        tmp_path / "custom.csv",
        "num_gpus,message_size,backend,latency_ms",
        [(2, s, "vllm_graph", 0.005 + s * 1e-7) for s in sizes] + [(2, s, "vllm_eager", 1.0) for s in sizes],
    )
    nccl = write(
        tmp_path / "nccl.csv",
        "num_gpus,message_size,nccl_dtype,latency_ms",
        [(2, s, "half", share * (0.02 + s * 1e-8)) for s in sizes for share in (1.0, 0.5)],
    )
    one, other = (aiconfigurator.read_all_reduce(p, SHAPE, 2, keep) for p in (custom, nccl))
    best = {k.tokens: k.seconds for k in aiconfigurator.faster(one, other)}
    assert best[1] == pytest.approx(2e-3 * (0.005 + 4096e-7))
    assert best[8192] == pytest.approx(2e-3 * (0.02 + 8192 * 4096e-8))
    with pytest.raises(ProfileTableError, match=r"0 row\(s\) for 4 GPUs"):
        aiconfigurator.read_all_reduce(custom, SHAPE, 4, keep)


def test_host_work_without_the_head_it_contains(tmp_path: Path) -> None:
    parts = ",".join(f"{part}_median" for part in vidur.OVERHEAD_PARTS)
    rows = [(0.1, 0.2, 0.5, 0.1, "m", n, 1) for n in (8, 16)] + [(0.1, 0.2, 0.05, 0.1, "bad", n, 1) for n in (8, 16)]
    path = write(tmp_path / "cpu.csv", f"{parts},model_name,batch_size,tensor_parallel_degree", rows)
    seqs, seconds = vidur.read_cpu_overheads(path, "m", 1, 2e-4)
    assert seqs == [8, 16]
    assert seconds == pytest.approx([7e-4, 7e-4])
    with pytest.raises(ProfileTableError, match=r"cpu.csv: 0 row\(s\) for m at TP 2"):
        vidur.read_cpu_overheads(path, "m", 2, 0.0)
    with pytest.raises(ProfileTableError, match=r"row 4: host work of .* s is not above the head's 0.001 s"):
        vidur.read_cpu_overheads(path, "bad", 1, 1e-3)
