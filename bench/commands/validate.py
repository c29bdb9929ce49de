"""`astrolabe bench validate`: measured vLLM runs replayed through the simulator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from bench.profile.measured_run import MeasuredRun
    from bench.profile.validate import Validation

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example: a run in LLMServingSim's layout (RUN/vllm/requests.jsonl.gz, RUN/vllm/meta.json).
  astrolabe bench validate data/llmservingsim/bench/examples/RTX4090/Llama-3.1-8B

\b
Example: with a profile of your own, as JSON.
  astrolabe bench validate RUN --profile my-profile.json --json

\b
Example: a run whose prompts lie elsewhere than where its settings say.
  astrolabe bench validate RUN --workload workloads/sharegpt-llama-3.1-8b-300-sps10.jsonl
""",
)
@click.argument("run", type=click.Path(path_type=Path), metavar="RUN")
@click.option(
    "--profile",
    default="",
    help="Profile by name or JSON file; default: that of the run's GPU (its settings or folder name it), model and TP.",
)
@click.option("--num-blocks", type=click.IntRange(min=1), help="KV blocks; default: the run's, else the profile's.")
@click.option(
    "--workload",
    type=click.Path(path_type=Path),
    help="The prompts (JSON lines with input_tok_ids); default: the file that the run's settings name, where it lies "
    "below a folder above. Without it no prompt finds another's KV in the prefix cache.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
def validate(run: Path, profile: str, num_blocks: int | None, workload: Path | None, as_json: bool) -> None:
    """Replay a measured RUN through simulated nodes and compare TTFT, TPOT and E2E.

    The step times come from the profile alone: nothing is fitted to the run. Times count from when a request comes to
    the engine, which takes it in between two steps. Data parallel replicas get each request where the fewest are.
    """
    import msgspec

    from bench.profile.measured_run import MeasuredRunError, profile_of, read_run
    from bench.profile.validate import validate as replay
    from simcore.cost.profile import decode_profile
    from simcore.cost.shipped import load_or_estimate

    try:
        measured = read_run(run, workload)
        if profile.endswith(".json"):
            chosen = decode_profile(Path(profile).read_bytes())
        else:
            chosen = load_or_estimate(profile) if profile else profile_of(run, measured)
        config = measured.config
        if num_blocks or not measured.num_blocks_known:
            config = msgspec.structs.replace(config, num_blocks=num_blocks or chosen.kv.num_blocks)
        step_time = chosen.step_time_model(async_scheduling=config.async_scheduling)
        result = replay(
            measured.requests,
            config,
            step_time,
            replicas=measured.replicas,
            in_step=measured.shares_experts,
            shared=chosen.shared,
        )
    except (MeasuredRunError, msgspec.DecodeError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    if as_json:
        document = {"run": str(run), "profile": chosen.name, "replicas": measured.replicas, "config": config}
        click.echo(msgspec.json.encode(document | {"validation": result}))
        return
    click.echo(
        f"{run}: {result.requests} requests on {config.engine} {measured.engine_version} x {measured.replicas}, "
        f"{config.num_blocks:,} blocks; profile {chosen.name}"
    )
    if chosen.quality == "roofline":
        click.echo(chosen.note)
    if config.enable_prefix_caching and not measured.prompts_known:
        click.echo("prompts not at hand (--workload): taken to begin alike nowhere")
    _print(result, measured)


def _print(result: Validation, measured: MeasuredRun) -> None:
    authors = measured.authors_error
    click.echo(f"{'':10} {'measured':>10} {'simulated':>10} {'error':>7}" + ("  authors' simulator" if authors else ""))
    for metric, errors in result.error.items():
        unit, factor = ("ms", 1e3) if metric == "tpot_s" else ("s", 1.0)
        for statistic, error in errors.items():
            theirs = getattr(result.measured[metric], statistic) * factor
            ours = getattr(result.simulated[metric], statistic) * factor
            known = authors.get((metric, statistic))
            click.echo(
                f"{NAMES[metric]} {statistic:5} {theirs:8.2f} {unit:2} {ours:7.2f} {unit:2} {error:+7.1%}"
                + (f"  {known:+.1%}" if known is not None else "")
            )
    click.echo(f"preemptions simulated: {result.preemptions}")
