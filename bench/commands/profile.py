"""`astrolabe bench profile`: step-time profiles from public tables, and the profiles that are shipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from bench.profile.physics import Violation
    from bench.profile.recipe import Recipe
    from simcore.cost.profile import Coefficient, Profile

LAYOUT_NAMES = (
    "vidur-mlp vidur-mlp-nearest vidur-attention vidur-anchors llmservingsim-dense llmservingsim-attention "
    "llmservingsim-per-sequence llmservingsim-moe aiconfigurator-gemm aiconfigurator-attention "
    "aiconfigurator-all-reduce kernels"
)
RULE_NAMES = ("all-reduce", "elementwise", "decode-attention", "prefill-attention", "head")
BATCHES = (
    # name, prefill tokens, prefill context, decoding sequences, KV tokens of each
    ("decode 1 x 570", 0, 0, 1, 570),
    ("decode 24 x 450", 0, 0, 24, 450),
    ("decode 48 x 350", 0, 0, 48, 350),
    ("decode 48 x 570", 0, 0, 48, 570),
    ("prefill 512", 512, 0, 0, 0),
    ("prefill 464 + decode 48 x 350", 464, 0, 48, 350),
    ("prefill 2048", 2048, 0, 0, 0),
)
"""Typical steps that `show` prices."""


def _hardware(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Tensor parallel degree."),
        click.option("--model", required=True, help="Model by hub name or short name, e.g. llama-2-7b."),
        click.option("--gpu", required=True, help="GPU it was measured on, e.g. a100; its peaks judge the table."),
    ):
        command = option(command)
    return command


_as_json = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


@contextmanager
def _one_line_errors() -> Iterator[None]:
    from bench.profile.rows import ProfileTableError
    from simcore.cost.hardware import UnknownHardwareError
    from simcore.cost.shipped import UnknownProfileError

    try:
        yield
    except (ProfileTableError, UnknownHardwareError, UnknownProfileError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example: what is shipped, and what one of them says.
  astrolabe bench profile show
  astrolabe bench profile show a30/llama-2-7b

\b
Example: a profile of your own from two Vidur tables.
  astrolabe bench profile fit --gpu a100 --model llama-2-7b --table vidur-mlp=mlp.csv \\
      --table vidur-attention=attention.csv --rule head -o a100-llama.json
""",
)
def profile() -> None:
    """Fit and show step-time profiles: what a step of an engine costs on a GPU."""


@profile.command(
    "import",
    short_help="Read a public table and write its kernels.",
    epilog="""\b
Example:
  astrolabe bench profile import vidur-mlp mlp.csv.gz --gpu a100 --model llama-2-7b -o mlp.jsonl
""",
)
@click.argument("layout", type=click.Choice(LAYOUT_NAMES.split()), metavar="LAYOUT")
@click.argument("table", type=click.Path(path_type=Path), metavar="TABLE")
@_hardware
@click.option("--drop-bad-rows", is_flag=True, help="Leave out rows that break physics instead of refusing the table.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Kernels, one JSON object a line.")
@_as_json
def import_(
    layout: str, table: Path, gpu: str, model: str, tp: int, drop_bad_rows: bool, out: Path, as_json: bool
) -> None:
    """Read a TABLE of a public LAYOUT, check it against the roofline, and write its kernels.

    What is written can be given to `fit` as `--table kernels=FILE`.
    """
    import msgspec

    with _one_line_errors():
        kernels, dropped = _kernels_of(layout, table, gpu, model, tp, drop_bad_rows)
        out.write_bytes(b"".join(msgspec.json.encode(k) + b"\n" for k in kernels))
    by_op: dict[str, int] = {}
    for kernel in kernels:
        by_op[kernel.op] = by_op.get(kernel.op, 0) + 1
    summary = {"out": str(out), "kernels": len(kernels), "dropped": len(dropped), "rows_by_operator": by_op}
    if as_json:
        click.echo(msgspec.json.encode(summary))
        return
    click.echo(f"{len(kernels)} kernels written to {out}; {len(dropped)} rows dropped")
    for op, rows in by_op.items():
        click.echo(f"  {op}: {rows}")


def _kernels_of(
    layout: str, table: Path, gpu: str, model: str, tp: int, drop_bad_rows: bool
) -> tuple[list[Any], list[Violation]]:
    from bench.profile.recipe import Gathered, ProfileTable, read_table
    from simcore.cost.hardware import find_gpu
    from simcore.cost.model_shape import find_shape

    gathered = Gathered([], [], {"dense": [], "attention": [], "head": []})
    wanted = ProfileTable(layout=layout, file=str(table), drop_bad_rows=drop_bad_rows)
    read_table(gathered, wanted, Path(), find_gpu(gpu), find_shape(model), tp)
    return gathered.kernels, gathered.dropped


@profile.command(
    short_help="Find rows of a table that claim too much.",
    epilog="""\b
Example: which rows of a table cannot be true?
  astrolabe bench profile check vidur-attention attention.csv.gz --gpu a100 --model llama-2-70b --tp 4
""",
)
@click.argument("layout", type=click.Choice(LAYOUT_NAMES.split()), metavar="LAYOUT")
@click.argument("table", type=click.Path(path_type=Path), metavar="TABLE")
@_hardware
@click.option("--most", type=click.IntRange(min=1), default=10, show_default=True, help="Bad rows to list.")
@_as_json
def check(layout: str, table: Path, gpu: str, model: str, tp: int, most: int, as_json: bool) -> None:
    """The roofline check alone: exit code 1 if any row claims more than the hardware can do."""
    import msgspec

    from bench.profile.recipe import LAYOUTS
    from bench.profile.rows import ProfileTableError
    from bench.profile.survey import survey
    from simcore.cost.hardware import find_gpu
    from simcore.cost.model_shape import find_shape

    with _one_line_errors():
        rows, fatal = 0, ""
        bad: list[Violation] = []
        try:
            rows, bad = survey(LAYOUTS[layout], table, find_gpu(gpu), find_shape(model), tp)
        except ProfileTableError as error:
            fatal = str(error)
    if as_json:
        click.echo(msgspec.json.encode({"rows": rows, "refused": bad, "error": fatal}))
    elif fatal:
        raise click.ClickException(fatal)
    else:
        for violation in bad[:most]:
            click.echo(str(violation))
        click.echo(f"{table}: {rows} rows, {len(bad)} beyond what {gpu} can do")
    if bad or fatal:
        raise SystemExit(1)


@profile.command(
    short_help="Fit a profile from measured tables.",
    epilog="""\b
Example: make all shipped profiles anew from the public tables.
  astrolabe bench profile fit --shipped all --data ~/data --out-dir simcore/profiles

\b
Example: without any table, from the peaks of the GPU alone (stated as such in the profile).
  astrolabe bench profile fit --gpu l4 --model llama-3.1-8b -o l4.json
""",
)
@click.option("--shipped", default="", metavar="NAME|all", help="Follow the recipe of a shipped profile.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path(),
    envvar="ASTROLABE_DATA",
    help="Folder that files are relative to.",
)
@click.option("--out-dir", type=click.Path(path_type=Path), help="With --shipped: where to write NAME.json.")
@click.option("--gpu", default="", help="GPU, e.g. a100.")
@click.option("--model", default="", help="Model by hub name or short name.")
@click.option("--tp", type=click.IntRange(min=1), default=1, show_default=True, help="Tensor parallel degree.")
@click.option("--table", "tables", multiple=True, metavar="LAYOUT=FILE", help="A measured table; repeat it.")
@click.option(
    "--rule",
    "rules",
    multiple=True,
    type=click.Choice(RULE_NAMES),
    help="Roofline rule for a part that no table holds; repeat it.",
)
@click.option("--host", metavar="FILE:MODEL:GPU", default="", help="Vidur CPU overheads: host work per step.")
@click.option("--drop-bad-rows", is_flag=True, help="Leave out rows that break physics instead of refusing a table.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The profile to write.")
@_as_json
def fit(shipped: str, data: Path, out_dir: Path | None, as_json: bool, out: Path | None, **own: Any) -> None:
    """Fit a step-time profile from measured tables, robustly and without negative costs.

    Every coefficient carries its source, and the profile the error on rows that the fit did not see.
    """
    import msgspec

    from bench.profile.physics import impossible_steps
    from bench.profile.recipe import make_profile, shipped_recipes
    from simcore.cost.profile import encode_profile

    with _one_line_errors():
        if shipped:
            recipes = shipped_recipes()
            if shipped != "all" and shipped not in recipes:
                raise click.UsageError(f"no recipe {shipped!r}; there are: all, {', '.join(recipes)}")
            chosen = list(recipes.values()) if shipped == "all" else [recipes[shipped]]
        else:
            chosen = [_own_recipe(**own)]
        fitted = []
        for recipe in chosen:
            made, dropped = make_profile(recipe, data) if recipe.tables else (_estimate(recipe), [])
            if beyond := impossible_steps(made):
                raise click.ClickException(f"the fit of {made.name} beats the hardware: {beyond[0]}; nothing written")
            target = out_dir / f"{made.name.replace('/', '-')}.json" if shipped and out_dir else out
            if target:
                target.write_bytes(encode_profile(made))
            fitted.append(made)
            if not as_json:
                _print_fit(made, dropped, target)
    if as_json:
        click.echo(msgspec.json.encode(fitted))


def _own_recipe(
    gpu: str,
    model: str,
    tp: int,
    tables: tuple[str, ...],
    rules: tuple[Any, ...],
    host: str,
    drop_bad_rows: bool,
) -> Recipe:
    from bench.profile.recipe import Host, ProfileTable, Recipe
    from simcore.cost.hardware import find_gpu
    from simcore.cost.model_shape import find_shape
    from simcore.cost.roofline import profile_name

    if not gpu or not model:
        raise click.UsageError("give --gpu and --model (and tables), or --shipped NAME")
    parsed = []
    for text in tables:
        layout, separator, file = text.partition("=")
        if not separator or layout not in LAYOUT_NAMES.split():
            raise click.UsageError(f"--table {text!r} is not LAYOUT=FILE; layouts: {LAYOUT_NAMES}")
        parsed.append(ProfileTable(layout=layout, file=file, drop_bad_rows=drop_bad_rows))
    parts = host.split(":") if host else []
    if len(parts) not in (0, 3):
        raise click.UsageError(f"--host {host!r} is not FILE:MODEL:GPU")
    return Recipe(
        name=profile_name(find_gpu(gpu), find_shape(model), tp),
        gpu=gpu,
        model=find_shape(model).name,
        tensor_parallel=tp,
        quality="composed" if rules else "measured",
        tables=tuple(parsed),
        rules=rules,
        host=Host(file=parts[0], model=parts[1], gpu=parts[2], tensor_parallel=tp) if parts else None,
    )


def _estimate(recipe: Recipe) -> Profile:
    from simcore.cost.hardware import find_gpu
    from simcore.cost.model_shape import find_shape
    from simcore.cost.roofline import estimate

    return estimate(find_gpu(recipe.gpu), find_shape(recipe.model), recipe.tensor_parallel)


def _print_fit(made: Profile, dropped: list[Violation], target: Path | None) -> None:
    where = f" -> {target}" if target else ""
    click.echo(f"{made.name} ({made.quality}): {made.fit.rows_fitted} rows, {made.fit.rows_refused} refused{where}")
    for kind, median in made.fit.median_error.items():
        click.echo(f"  error {kind:8} median {median:6.1%}   p90 {made.fit.p90_error[kind]:6.1%}")
    for violation in dropped[:3]:
        click.echo(f"  refused {violation}")
    if len(dropped) > 3:
        click.echo(f"  ... and {len(dropped) - 3} more")


@profile.command(
    short_help="What the device waits for between steps, from a measured run.",
    epilog="""\b
Example: of the engine of one run, for the profile of another model on that host.
  astrolabe bench profile host LLMServingSim/bench/examples/RTXPRO6000/Qwen3-32B
""",
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--profile", "name", default="", help="Profile by name; default: that of the run's GPU, model and TP.")
@click.option("--workload", type=click.Path(path_type=Path), help="The run's prompts, as for `bench validate`.")
@_as_json
def host(run: Path, name: str, workload: Path | None, as_json: bool) -> None:
    """Follow a measured RUN step by step, and tell what its steps took beyond the device's time.

    The run's engine must have scheduled asynchronously, on one replica. A profile that is judged by a run should not
    have its host's part from that run.
    """
    import msgspec

    from bench.profile.host_gap import follow, host_gap
    from bench.profile.measured_run import MeasuredRunError, profile_of, read_run
    from simcore.cost.shipped import load_or_estimate

    with _one_line_errors():
        try:
            measured = read_run(run, workload)
            chosen = load_or_estimate(name) if name else profile_of(run, measured)
            if measured.replicas > 1 or not measured.config.async_scheduling:
                raise click.ClickException(f"{run}: not one engine that schedules asynchronously")
            config = measured.config
            if not measured.num_blocks_known:
                config = msgspec.structs.replace(config, num_blocks=chosen.kv.num_blocks)
            device = msgspec.structs.replace(chosen, async_host=None).step_time_model(async_scheduling=True)
            found = host_gap(follow(measured.requests, config, device), device)
        except MeasuredRunError as error:
            raise click.ClickException(str(error)) from None
        except ValueError as error:
            raise click.ClickException(f"{run}: {error}") from None
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    click.echo(f"{run}: {measured.config.engine} {measured.engine_version}; profile {chosen.name}")
    click.echo(f"  between any two steps        {found.gap_s * 1e3:6.2f} ms  ({found.decode_stretches} stretches)")
    click.echo(
        f"  before one that prefills   + {found.gap_prefill_s * 1e3:6.2f} ms  ({found.prefill_stretches} stretches)"
    )


@profile.command(
    short_help="List the shipped profiles, or show one.",
    epilog="""\b
Example:
  astrolabe bench profile show h100/llama-2-7b
  astrolabe bench profile show ./my-profile.json --json
""",
)
@click.argument("name", default="")
@_as_json
def show(name: str, as_json: bool) -> None:
    """The shipped profiles, or one of them (or a file): coefficients, sources, and what typical steps take."""
    import msgspec

    from simcore.cost.profile import decode_profile
    from simcore.cost.shipped import load_profile, shipped_names

    with _one_line_errors():
        if not name:
            chosen = [load_profile(n) for n in shipped_names()]
        elif name.endswith(".json"):
            try:
                chosen = [decode_profile(Path(name).read_bytes())]
            except (msgspec.ValidationError, msgspec.DecodeError) as error:
                raise click.ClickException(f"{name}: not a step-time profile: {error}") from None
        else:
            chosen = [load_profile(name)]
    if as_json:
        click.echo(msgspec.json.encode(chosen if not name else chosen[0]))
    elif not name:
        _print_list(chosen)
    else:
        _print_profile(chosen[0])


def _print_list(profiles: list[Profile]) -> None:
    width = max(len(made.name) for made in profiles)
    click.echo(f"{'name':{width}} {'quality':9} {'decode':>7} {'prefill':>7} {'error':>6} {'p90':>6} {'blocks':>7}")
    for made in profiles:
        milliseconds = _price(made)
        click.echo(
            f"{made.name:{width}} {made.quality:9} {milliseconds['decode 48 x 350']:7.1f} "
            f"{milliseconds['prefill 512']:7.1f} {made.fit.median_error['all']:6.1%} {made.fit.p90_error['all']:6.1%} "
            f"{made.kv.num_blocks:7,}"
        )
    click.echo(
        "decode: ms of 48 sequences of 350 tokens; prefill: ms of 512 tokens; error: of the fit on held-out rows"
    )


def _price(made: Profile) -> dict[str, float]:
    """Milliseconds of the typical batches."""
    from simcore.trace import StepBatch

    model = made.step_time_model()
    prices = {}
    for name, prefill, context, decodes, kv in BATCHES:
        batch = StepBatch(
            prefill_tokens=prefill,
            prefill_work_tokens2=prefill * (context + prefill / 2),
            prefill_seqs=1 if prefill else 0,
            decode_seqs=decodes,
            decode_kv_tokens=decodes * kv,
        )
        prices[name] = model.seconds(batch) * 1e3
    return prices


def _print_coefficient(name: str, coefficient: Coefficient, said: set[str]) -> None:
    click.echo(f"  {name} = {coefficient.value:.6g}")
    for source in coefficient.source.split("; "):
        if source not in said:
            click.echo(f"      {source}")
            said.add(source)


def _print_profile(made: Profile) -> None:
    click.echo(f"{made.name}: {made.model} on {made.gpu}, TP {made.tensor_parallel} ({made.quality})")
    if made.note:
        click.echo(f"  {made.note}")
    said: set[str] = set()
    for field in (
        "constant_s",
        "prefill_work_s_per_token2",
        "decode_kv_s_per_token",
        "per_seq_s",
        "mixed_decode_kv_s_per_token",
        "mixed_seq_s",
        "host_s",
        "host_seq_s",
        "host_new_s",
    ):
        _print_coefficient(field, getattr(made, field), said)
    if made.async_host is not None:
        for field in made.async_host.__struct_fields__:
            _print_coefficient(f"async_host.{field}", getattr(made.async_host, field), said)
    knots = ", ".join(f"{t}: {s * 1e3:.2f}" for t, s in zip(made.dense.tokens, made.dense.seconds, strict=True))
    click.echo(f"  dense, ms by tokens: {knots}\n      {made.dense.source}")
    click.echo(f"  KV: {made.kv.num_blocks:,} blocks of {made.kv.block_size_tokens} ({made.kv.source})")
    for kind, median in made.fit.median_error.items():
        click.echo(f"  error {kind:8} median {median:6.1%}   p90 {made.fit.p90_error[kind]:6.1%}")
    click.echo("  steps:")
    for name, milliseconds in _price(made).items():
        click.echo(f"    {name:32} {milliseconds:8.2f} ms")
