"""Recipes: which tables a profile is made of. Those of the shipped profiles are in `recipes.toml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from bench.profile import aiconfigurator, llmservingsim, rules, vidur
from bench.profile.curve import fit_sum
from bench.profile.fit import Coefficients, Errors, Measured, fit
from bench.profile.kernels import Kernel, Screen, in_units_of
from bench.profile.physics import Violation, accept
from bench.profile.rows import ProfileTableError
from simcore.cost.hardware import Gpu, Link, find_gpu
from simcore.cost.model_shape import ModelShape, find_shape
from simcore.cost.profile import AsyncHost, Coefficient, DenseCurve, FitReport, KvHint, Profile
from simcore.cost.roofline import DECODE_EFFICIENCY, kv_hint, profile_name

Importer = Callable[[Path, ModelShape, int, Screen], list[Kernel]]


def _read_kernels(path: Path, shape: ModelShape, tp: int, screen: Screen) -> list[Kernel]:
    """Kernels as `astrolabe bench profile import` writes them, one JSON object a line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ProfileTableError(f"{path}: cannot be read ({error.strerror})") from None
    kernels = []
    for number, line in enumerate(lines, start=1):
        try:
            kernels.append(msgspec.json.decode(line, type=Kernel))
        except msgspec.DecodeError as error:
            raise ProfileTableError(f"{path}: row {number}: {error}") from None
    if len(kernels) < 2:
        raise ProfileTableError(f"{path}: row 1: {len(kernels)} kernel(s) cannot be fitted")
    return screen(kernels)


LAYOUTS: dict[str, Importer] = {
    "vidur-mlp": vidur.read_mlp,
    "vidur-mlp-nearest": vidur.read_mlp_nearest,
    "vidur-attention": vidur.read_attention,
    "vidur-anchors": vidur.read_anchors,
    "llmservingsim-dense": llmservingsim.read_dense,
    "llmservingsim-attention": llmservingsim.read_attention,
    "llmservingsim-per-sequence": llmservingsim.read_per_sequence,
    "llmservingsim-moe": llmservingsim.read_moe,
    "llmservingsim-moe-ep2": partial(llmservingsim.read_moe, expert_parallel=2),
    "aiconfigurator-gemm": aiconfigurator.read_gemm,
    "aiconfigurator-attention": aiconfigurator.read_attention,
    "aiconfigurator-all-reduce": aiconfigurator.read_all_reduce,
    "kernels": _read_kernels,
}
"""Importers by layout. Each raises `ProfileTableError`."""

FEWEST_DECODE_ROWS = 10
SHARED_OPS = ("experts (uniform routing)", rules.EXPERT_EXCHANGE)
"""Operators of what replicas do for each other."""

Rule = Literal["all-reduce", "expert-exchange", "elementwise", "decode-attention", "prefill-attention", "head"]


class ProfileTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of a recipe."""

    layout: str
    file: str
    """Relative to the data folder."""
    model: str = ""
    """The model it was measured for, if it stands in for the recipe's."""
    tensor_parallel: int = 0
    """The degree it was measured at, if it stands in for the recipe's."""
    gpu: str = ""
    """The GPU it was measured on, if it stands in for the recipe's."""
    ops: tuple[str, ...] = ()
    """Only these operators; all if empty."""
    drop_bad_rows: bool = False
    """Leave out rows that break physics instead of refusing the table."""


class Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Table of host work per step (Vidur's CPU overheads)."""

    file: str
    model: str
    gpu: str
    tensor_parallel: int = 1


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one profile is made of."""

    name: str
    gpu: str
    model: str
    tensor_parallel: int = 1
    expert_parallel: int = 1
    """Replicas that share the experts out among them (data parallel, experts parallel)."""
    quality: Literal["measured", "composed"]
    tables: tuple[ProfileTable, ...]
    rules: tuple[Rule, ...] = ()
    decode_efficiency: float = DECODE_EFFICIENCY
    """Of the rule `decode-attention`: share of peak bandwidth."""
    link: Link | None = None
    """Of the rules `all-reduce` and `expert-exchange`: the host's links, where they are known."""
    host: Host | None = None
    async_host: AsyncHost | None = None
    """The host's part where the engine schedules asynchronously, where it is known (`bench.profile.host_gap`)."""
    num_blocks: int = 0
    """0: by the memory rule of `kv_hint`."""
    num_blocks_source: str = ""
    note: str = ""


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Models on one GPU, all from AIConfigurator's kernel tables."""

    gpu: str
    folder: str
    version: str
    models: dict[str, int]
    """Hub name to tensor parallel degree."""
    host: Host

    def recipes(self) -> list[Recipe]:
        """One recipe for each model."""

        def table(layout: str, file: str) -> ProfileTable:
            return ProfileTable(layout=layout, file=f"{self.folder}/{file}")

        attention = "aiconfigurator-attention"
        tables = (
            table("aiconfigurator-gemm", f"vllm_{self.version}_gemm_perf.csv.gz"),
            table(attention, f"vllm_{self.version}_context_attention_perf.csv.gz"),
            table(attention, f"vllm_{self.version}_generation_attention_perf.csv.gz"),
        )
        links = (
            table("aiconfigurator-all-reduce", "vllm_custom_allreduce.csv.gz"),
            table("aiconfigurator-all-reduce", "nccl.csv.gz"),
        )
        return [
            Recipe(
                name=profile_name(find_gpu(self.gpu), find_shape(model), tp),
                gpu=self.gpu,
                model=model,
                tensor_parallel=tp,
                quality="composed",
                tables=(*tables, *links) if tp > 1 else tables,
                rules=("elementwise",),
                host=self.host,
                note="Kernels of this GPU, composed to the model; attention measured for prefill and decode apart.",
            )
            for model, tp in self.models.items()
        ]


class Recipes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profile: tuple[Recipe, ...]
    family: tuple[Family, ...] = ()


def shipped_recipes() -> dict[str, Recipe]:
    """Recipes of the shipped profiles, by name."""
    raw = Path(__file__).with_name("recipes.toml").read_bytes()
    written = msgspec.toml.decode(raw, type=Recipes)
    found = [*written.profile, *(recipe for family in written.family for recipe in family.recipes())]
    return {r.name: r for r in found}


class Gathered(msgspec.Struct, frozen=True):
    """Kernels of a recipe, with an account of the tables."""

    kernels: list[Kernel]
    dropped: list[Violation]
    sources: dict[str, list[str]]
    """By part of the step (`dense`, `attention`, `head`)."""


def gather(recipe: Recipe, data: Path) -> Gathered:
    """Read, check and convert all tables of a recipe. Raises `ProfileTableError` and `UnknownHardwareError`."""
    gpu, shape, tp = find_gpu(recipe.gpu), find_shape(recipe.model), recipe.tensor_parallel
    gathered = Gathered([], [], {"dense": [], "attention": [], "head": []})
    for table in recipe.tables:
        read_table(gathered, table, data, gpu, shape, tp)
    tokens = sorted({k.tokens for k in gathered.kernels if k.part == "dense"})
    by_rule: dict[str, list[Kernel]] = {
        "all-reduce": rules.all_reduce(shape, tp, gpu, tokens, recipe.link),
        "expert-exchange": rules.expert_exchange(shape, recipe.expert_parallel, gpu, tokens, recipe.link),
        "elementwise": rules.elementwise(shape, tp, gpu, tokens),
        "decode-attention": rules.decode_attention(shape, tp, gpu, efficiency=recipe.decode_efficiency),
        "prefill-attention": rules.prefill_attention(shape, tp, gpu),
        "head": rules.head(shape, tp, gpu),
    }
    for rule in recipe.rules:
        gathered.kernels.extend(by_rule[rule])
        gathered.sources[by_rule[rule][0].part].append(rules.source(rule, recipe.decode_efficiency, recipe.link))
    return gathered


def read_table(gathered: Gathered, table: ProfileTable, data: Path, gpu: Gpu, shape: ModelShape, tp: int) -> None:
    """Add one table's kernels to those gathered."""
    importer = LAYOUTS.get(table.layout)
    if importer is None:
        raise ProfileTableError(f"unknown layout {table.layout!r}; known: {', '.join(LAYOUTS)}")
    measured_gpu = find_gpu(table.gpu) if table.gpu else gpu
    measured_shape = find_shape(table.model) if table.model else shape
    measured_tp = table.tensor_parallel or tp
    dropped: list[Violation] = []

    def screen(kernels: Sequence[Kernel]) -> list[Kernel]:
        kept, bad = accept(
            [k for k in kernels if not table.ops or k.op in table.ops], measured_gpu, drop_bad_rows=table.drop_bad_rows
        )
        dropped.extend(bad)
        return kept

    kernels = importer(data / table.file, measured_shape, measured_tp, screen)
    if measured_shape != shape or measured_tp != tp:
        kernels = [
            in_units_of(k, measured=measured_shape, measured_tp=measured_tp, wanted=shape, tp=tp)
            for k in kernels
            if k.part == "attention"
        ]
    all_reduce = [k for k in kernels if k.op == aiconfigurator.TWO_ALL_REDUCES]
    earlier = [k for k in gathered.kernels if k.op == aiconfigurator.TWO_ALL_REDUCES]
    if all_reduce and earlier:
        gathered.kernels[:] = [k for k in gathered.kernels if k.op != aiconfigurator.TWO_ALL_REDUCES]
        kernels = aiconfigurator.faster(earlier, kernels)
    gathered.kernels.extend(kernels)
    gathered.dropped.extend(dropped)
    for part in sorted({k.part for k in kernels}):
        own = [k for k in kernels if k.part == part]
        stand_in = "".join(f", measured on {x}" for x in (table.gpu, table.model) if x)
        only = f" {'+'.join(table.ops)}" if table.ops else ""
        refused = f", {len(dropped)} refused" if dropped else ""
        gathered.sources[part].append(f"{table.file}{only} ({len(own)} rows{refused}{stand_in})")


def host_work(host: Host, data: Path) -> tuple[list[int], list[float]]:
    """(sequences, seconds) of the host's work per step."""
    gpu, shape = find_gpu(host.gpu), find_shape(host.model)
    head = rules.head(shape, host.tensor_parallel, gpu, seqs=(1,))[0].seconds
    return vidur.read_cpu_overheads(data / host.file, host.model, host.tensor_parallel, head)


def make_profile(recipe: Recipe, data: Path) -> tuple[Profile, list[Violation]]:
    """Fit the profile of a recipe, and say which rows were dropped. Raises `ProfileTableError`."""
    gpu, shape, tp = find_gpu(recipe.gpu), find_shape(recipe.model), recipe.tensor_parallel
    gathered = gather(recipe, data)
    kv = KvHint(num_blocks=recipe.num_blocks, source=recipe.num_blocks_source)
    kv = kv if recipe.num_blocks else kv_hint(gpu, shape, tp)
    host_seqs, host_s = host_work(recipe.host, data) if recipe.host else ([], [])
    measured = Measured(
        layers=shape.layers,
        dense=[k for k in gathered.kernels if k.part == "dense"],
        attention=_that_can_run(gathered.kernels, kv),
        head=[k for k in gathered.kernels if k.part == "head"],
        host_seqs=host_seqs,
        host_s=host_s,
    )
    coefficients, errors = fit(measured)
    return _profile(recipe, kv, coefficients, errors, gathered), gathered.dropped


def _that_can_run(kernels: Sequence[Kernel], kv: KvHint) -> list[Kernel]:
    """Attention rows whose KV fits the node: others never run, and say nothing about steps. All of them if hardly any
    decoding row fits (a table of large batches only)."""
    attention = [k for k in kernels if k.part == "attention"]
    fits = [k for k in attention if k.decode_kv_tokens <= kv.num_blocks * kv.block_size_tokens]
    return fits if sum(k.decode_kv_tokens > 0 for k in fits) >= FEWEST_DECODE_ROWS else attention


def _profile(recipe: Recipe, kv: KvHint, c: Coefficients, errors: Errors, gathered: Gathered) -> Profile:
    source = {part: "; ".join(texts) for part, texts in gathered.sources.items()}
    host = (
        f"{recipe.host.file} ({recipe.host.model}, TP {recipe.host.tensor_parallel})" if recipe.host else "not modelled"
    )
    head = f"head {c.head_s * 1e3:.3f} ms + {c.head_seq_s * 1e6:.2f} us per sequence: {source['head']}"
    floor = f"attention launches {c.attention_floor_s * 1e3:.3f} ms: {source['attention']}"

    def number(value: float) -> float:
        return float(f"{value:.6g}")

    shared = [k for k in gathered.kernels if k.op in SHARED_OPS] if recipe.expert_parallel > 1 else []
    knots, layer_s = fit_sum(shared) if shared else ((), ())
    layers = find_shape(recipe.model).layers
    return Profile(
        name=recipe.name,
        gpu=recipe.gpu,
        model=recipe.model,
        tensor_parallel=recipe.tensor_parallel,
        expert_parallel=recipe.expert_parallel,
        quality=recipe.quality,
        note=recipe.note,
        constant_s=Coefficient(number(c.head_s + c.attention_floor_s), f"{head}; {floor}"),
        prefill_work_s_per_token2=Coefficient(number(c.prefill_work_s), source["attention"]),
        decode_kv_s_per_token=Coefficient(number(c.decode_kv_s), source["attention"]),
        per_seq_s=Coefficient(number(c.head_seq_s + c.attention_seq_s), f"{head}; {source['attention']}"),
        mixed_decode_kv_s_per_token=Coefficient(number(c.mixed_decode_kv_s), source["attention"]),
        mixed_seq_s=Coefficient(number(c.mixed_seq_s), source["attention"]),
        host_s=Coefficient(number(c.host_s), host),
        host_seq_s=Coefficient(number(c.host_seq_s), host),
        async_host=recipe.async_host,
        dense=DenseCurve(c.knots_tokens, tuple(number(s) for s in c.dense_s), source["dense"]),
        shared=DenseCurve(knots, tuple(number(layers * s) for s in layer_s), source["dense"]) if shared else None,
        kv=kv,
        fit=FitReport(
            rows_fitted=errors.rows_fitted,
            rows_held_out=errors.rows_held_out,
            rows_refused=len(gathered.dropped),
            median_error={kind: round(e, 4) for kind, e in errors.median.items()},
            p90_error={kind: round(e, 4) for kind, e in errors.p90.items()},
        ),
    )
