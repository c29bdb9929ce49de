"""Tables in the public layouts: honest ones are fitted, broken ones refused with file, row and reason.

The tables are made on the fly, from the roofline of an A100 at 80 %, and broken one way at a time.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from bench.commands.profile import profile as command
from bench.profile.recipe import LAYOUTS, ProfileTable, Recipe, make_profile, shipped_recipes
from bench.profile.rows import ProfileTableError, read_rows
from bench.profile.survey import survey
from bench.profile.vidur import ATTENTION_SHAPE, ELEMENTWISE, MLP_SHAPE
from simcore.cost.hardware import find_gpu
from simcore.cost.model_shape import find_shape
from simcore.cost.shipped import load_profile

SHAPE = find_shape("llama-2-7b")
A100 = find_gpu("a100")
TOKENS = (1, 8, 16, 32, 64, 72, 128, 136, 256, 264, 512, 520, 1024, 1032, 2048, 4096)
Rows = list[dict[str, Any]]
STATISTICS = ("min", "max", "mean", "median", "std")


def milliseconds(moved: float, flops: float) -> float:
    return (5e-6 + max(moved / A100.memory_bytes_per_s, flops / A100.tensor_flops_per_s) / 0.8) * 1e3


def mlp_rows() -> Rows:
    rows = []
    for tokens in TOKENS:
        row: dict[str, Any] = {c: getattr(SHAPE, a) for c, a in MLP_SHAPE.items()}
        row |= {"num_tokens": tokens, "num_tensor_parallel_workers": 1}
        for op in (*SHAPE.gemms(), *ELEMENTWISE):
            k, n = SHAPE.gemms().get(op, (0, 0))
            own = milliseconds(2.0 * k * n, 2.0 * tokens * k * n)
            row |= {f"time_stats.{op}.{s}": own for s in STATISTICS}
        rows.append(row)
    return rows


def attention_rows() -> Rows:
    rows = []
    kv_bytes = SHAPE.kv_bytes_per_token()
    cases = [(1, chunk, kv) for chunk in (64, 256, 512, 1024) for kv in (0, 512, 2048)]
    cases += [(batch, 0, kv) for batch in (1, 4, 16, 48) for kv in (64, 256, 1024, 2048)]
    for batch, chunk, kv in cases:
        work = batch * chunk * (kv + chunk / 2)
        own = milliseconds(kv_bytes * batch * (kv + chunk), 4.0 * SHAPE.hidden * work)
        row: dict[str, Any] = {c: getattr(SHAPE, a) for c, a in ATTENTION_SHAPE.items()}
        row |= {"num_tensor_parallel_workers": 1, "batch_size": batch, "prefill_chunk_size": chunk}
        row |= {"kv_cache_size": kv, "is_prefill": chunk > 0}
        for op, is_own in (("attn_prefill", chunk > 0), ("attn_decode", chunk == 0)):
            row |= {f"time_stats.{op}.{s}": own if is_own else 0.0 for s in STATISTICS}
        rows.append(row)
    return rows


def write(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as f:
        out = csv.DictWriter(f, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def recipe(*tables: ProfileTable) -> Recipe:
    return Recipe(
        name="a100/llama-2-7b", gpu="a100", model=SHAPE.name, quality="measured", tables=tables, rules=("head",)
    )


def fit_both(folder: Path, mlp: Rows, attention: Rows) -> Any:
    write(folder / "mlp.csv", mlp)
    write(folder / "attention.csv", attention)
    both = (
        ProfileTable(layout="vidur-mlp", file="mlp.csv"),
        ProfileTable(layout="vidur-attention", file="attention.csv"),
    )
    return make_profile(recipe(*both), folder)[0]


def test_an_honest_pair_of_tables_gives_the_hardware_back(tmp_path: Path) -> None:
    made = fit_both(tmp_path, mlp_rows(), attention_rows())
    assert made.fit.rows_refused == 0
    assert made.fit.p90_error["decode"] < 0.05
    bandwidth = SHAPE.layers * SHAPE.kv_bytes_per_token() / made.decode_kv_s_per_token.value
    assert bandwidth == pytest.approx(0.8 * A100.memory_bytes_per_s, rel=0.05)


def break_cell(column: str, row: int, value: object) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[row - 2][column] = value

    return change


BROKEN_MLP = [
    (break_cell("time_stats.mlp_up_proj.median", 5, -0.1), "row 5: mlp_up_proj: time must be above 0"),
    (break_cell("time_stats.mlp_up_proj.median", 5, 0.0), "row 5: mlp_up_proj: time must be above 0"),
    (break_cell("time_stats.attn_rope.median", 7, "nan"), "row 7: attn_rope: no value"),
    (break_cell("time_stats.attn_rope.median", 7, ""), "row 7: attn_rope: no value"),
    (break_cell("time_stats.add.median", 9, "fast"), "row 9: column 'time_stats.add.median' must be a number"),
    (break_cell("time_stats.add.median", 9, "inf"), "row 9: add: time must be above 0, found inf"),
    (break_cell("num_tokens", 4, "many"), "row 4: column 'num_tokens' must be a whole number"),
    (break_cell("time_stats.mlp_down_proj.median", 2, 0.01), r"row 2: mlp_down_proj: 90.2 MB in 10.00 us is 9.0 TB/s"),
    (break_cell("time_stats.mlp_down_proj.median", 17, 0.5), r"row 17: mlp_down_proj: .* 739 TFLOPS; a100 has 312"),
    (break_cell("n_embd", 3, 8192), "row 3: n_embd is 8192, but meta-llama/Llama-2-7b-hf has 4096"),
]


@pytest.mark.parametrize(("change", "reason"), BROKEN_MLP)
def test_a_broken_mlp_table_is_refused(tmp_path: Path, change: Callable[[Rows], None], reason: str) -> None:
    rows = mlp_rows()
    change(rows)
    with pytest.raises(ProfileTableError, match=reason) as caught:
        fit_both(tmp_path, rows, attention_rows())
    assert str(tmp_path / "mlp.csv") in str(caught.value)


def test_an_attention_table_with_impossible_bandwidth_is_refused(tmp_path: Path) -> None:
    rows = attention_rows()
    for row in rows:
        row["time_stats.attn_decode.median"] /= 6
    with pytest.raises(ProfileTableError, match=r"attention.csv: row \d+: attn_decode: .* TB/s; a100 has 2.04 TB/s"):
        fit_both(tmp_path, mlp_rows(), rows)


def test_an_attention_table_with_impossible_flops_is_refused(tmp_path: Path) -> None:
    rows = attention_rows()
    for row in rows:
        row["time_stats.attn_prefill.median"] /= 8
    with pytest.raises(ProfileTableError, match=r"attention.csv: row \d+: attn_prefill: .*; a100 has"):
        fit_both(tmp_path, mlp_rows(), rows)


def test_a_row_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    rows = attention_rows()
    rows[0]["is_prefill"] = "False"
    with pytest.raises(ProfileTableError, match="row 2: is_prefill is False with a prefill_chunk_size of 64"):
        fit_both(tmp_path, mlp_rows(), rows)


@pytest.mark.parametrize("kept", [0, 1])
def test_a_table_of_one_row_or_none_is_refused(tmp_path: Path, kept: int) -> None:
    path = write(tmp_path / "mlp.csv", mlp_rows())
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: kept + 1]))
    with pytest.raises(ProfileTableError, match=rf"mlp.csv: row 2: a table of {kept} row\(s\) cannot be fitted"):
        read_rows(path, ("num_tokens",))


@pytest.mark.parametrize("layout", sorted(set(LAYOUTS) - {"kernels"}))
def test_every_importer_refuses_another_layout_and_names_the_columns(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(ProfileTableError, match=r"table.csv: row 1: missing columns .*\(the header begins: a, b\)"):
        survey(LAYOUTS[layout], path, A100, SHAPE, 1)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_every_importer_refuses_files_that_are_missing_empty_or_cut_off(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ProfileTableError, match="nowhere"):
        survey(LAYOUTS[layout], tmp_path / "nowhere.csv", A100, SHAPE, 1)
    empty = tmp_path / "empty.csv"
    empty.touch()
    with pytest.raises(ProfileTableError, match=r"empty.csv: row 1"):
        survey(LAYOUTS[layout], empty, A100, SHAPE, 1)
    whole = gzip.compress(b"a,b\n" + b"1,2\n" * 500)
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ProfileTableError, match=r"cut.csv.gz"):
        survey(LAYOUTS[layout], cut, A100, SHAPE, 1)


def test_a_ragged_row_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "mlp.csv", mlp_rows())
    lines = path.read_text().splitlines()
    lines[3] = lines[3].rsplit(",", 2)[0]
    path.write_text("\n".join(lines))
    with pytest.raises(ProfileTableError, match=r"mlp.csv: row 4: has not the \d+ cells of the header"):
        read_rows(path, ("num_tokens",))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(command, arguments)


def test_the_command_line_fits_shows_and_checks(tmp_path: Path) -> None:
    write(tmp_path / "mlp.csv", mlp_rows())
    write(tmp_path / "attention.csv", attention_rows())
    pair = ("--gpu", "a100", "--model", "llama-2-7b")
    kernels = tmp_path / "mlp.jsonl"
    imported = run("import", "vidur-mlp", str(tmp_path / "mlp.csv"), *pair, "-o", str(kernels), "--json")
    assert imported.exit_code == 0, imported.output
    assert msgspec.json.decode(imported.output)["kernels"] == 9 * len(TOKENS)
    out = tmp_path / "own.json"
    tables = ("--table", f"kernels={kernels}", "--table", f"vidur-attention={tmp_path / 'attention.csv'}")
    fitted = run("fit", *pair, *tables, "--rule", "head", "-o", str(out))
    assert fitted.exit_code == 0, fitted.output
    assert "a100/llama-2-7b (composed)" in fitted.output
    shown = run("show", str(out), "--json")
    assert msgspec.json.decode(shown.output)["gpu"] == "a100"
    assert run("check", "vidur-attention", str(tmp_path / "attention.csv"), *pair).exit_code == 0


def test_check_lists_bad_rows_and_fails(tmp_path: Path) -> None:
    rows = mlp_rows()
    rows[3]["time_stats.add.median"] = 0.0
    write(tmp_path / "mlp.csv", rows)
    arguments = ("check", "vidur-mlp", str(tmp_path / "mlp.csv"), "--gpu", "a100", "--model", "llama-2-7b")
    found = run(*arguments)
    assert found.exit_code == 1
    assert "row 5: add: time must be above 0" in found.output
    as_json = run(*arguments, "--json")
    assert as_json.exit_code == 1
    assert [v["row"] for v in msgspec.json.decode(as_json.output)["refused"]] == [5]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("fit",), "give --gpu and --model"),
        (("fit", "--shipped", "a30/gpt-2"), "no recipe 'a30/gpt-2'"),
        (("fit", "--gpu", "a100", "--model", "llama-2-7b", "--table", "mlp.csv"), "is not LAYOUT=FILE"),
        (("fit", "--gpu", "z100", "--model", "llama-2-7b"), "no peaks for GPU 'z100'"),
        (("fit", "--gpu", "a100", "--model", "llama-9"), "no shape for model 'llama-9'"),
        (("fit", "--gpu", "l4", "--model", "llama-2-70b"), "leaves no room for KV on l4"),
        (("show", "a30/lama-2-7b"), "did you mean"),
        (("show", "nowhere.json"), "nowhere.json: No such file"),
        (("check", "vidur-mlp", "nowhere.csv", "--gpu", "a100", "--model", "llama-2-7b"), "nowhere.csv: no such file"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments: Sequence[str], reason: str) -> None:
    result = run(*arguments)
    assert result.exit_code != 0
    assert reason in result.output
    assert not isinstance(result.exception, (ValueError, KeyError, OSError))


def test_a_profile_tells_of_its_asynchronous_host_with_the_source() -> None:
    shown = run("show", "rtxpro6000/qwen3-32b-tp2").output
    assert "async_host.gap_prefill_s = 0.00479\n      LLMServingSim bench/examples/RTXPRO6000/Llama-3.1-8B" in shown
    assert "async_host" not in run("show", "a30/llama-2-7b").output


def test_what_is_not_a_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"name": "a30/llama-2-7b"}')
    assert "not a step-time profile" in run("show", str(path)).output


@pytest.mark.parametrize(
    "name",
    [
        "a30/llama-2-7b",
        "a30/qwen2-7b",
        "a30/qwen3-32b-tp4",
        "a100/llama-2-7b",
        "a100/llama-2-70b-tp4",
        "h100/llama-2-7b",
        "rtx4090/llama-3.1-8b",
        "rtxpro6000/qwen3-30b-a3b-instruct-2507-ep2",
    ],
)
def test_shipped_profiles_are_what_the_public_tables_give(name: str, data_dir: Path) -> None:
    made, _ = make_profile(shipped_recipes()[name], data_dir)
    shipped = load_profile(name)
    assert made.dense.tokens == shipped.dense.tokens
    assert made.dense.seconds == pytest.approx(shipped.dense.seconds, rel=1e-3)
    for field in ("constant_s", "prefill_work_s_per_token2", "decode_kv_s_per_token", "per_seq_s"):
        assert getattr(made, field).value == pytest.approx(getattr(shipped, field).value, rel=1e-3), field
    assert made.fit.median_error == pytest.approx(shipped.fit.median_error, abs=1e-3)
    assert made.async_host == shipped.async_host
    assert (made.shared is None) == (shipped.shared is None)
    if made.shared is not None and shipped.shared is not None:
        assert made.shared.tokens == shipped.shared.tokens
        assert made.shared.seconds == pytest.approx(shipped.shared.seconds, rel=1e-3)


def test_the_roofline_check_finds_the_known_defects_of_the_public_tables(data_dir: Path) -> None:
    """The A30 tables hold cells of the wrong kernel; those of the A100 are clean."""
    folder = data_dir / "block_a30" / "compute" / "a30" / "meta-llama" / "Llama-2-7b-hf"
    _, bad = survey(LAYOUTS["vidur-mlp"], folder / "mlp.csv.gz", find_gpu("a30"), SHAPE, 1)
    assert {v.op for v in bad if "TB/s" in v.reason} == {"attn_pre_proj", "mlp_down_proj"}
    clean = data_dir / "vidur" / "profiling" / "compute" / "a100" / "meta-llama" / "Llama-2-7b-hf" / "mlp.csv.gz"
    assert survey(LAYOUTS["vidur-mlp"], clean, A100, SHAPE, 1)[1] == []
