"""Options of `astrolabe bench replay` against plain servers, and what they do. Light to import."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.commands.workload_options import check_positive, one_line_errors
from protos.runtime.addresses import parse_url

if TYPE_CHECKING:
    from rich.console import Console

    from bench.client.outputs import OutputPlaces
    from bench.data.source import WorkloadSource

RESULTS_FOLDER = "results/endpoints"
F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = (
    click.option(
        "--endpoint",
        multiple=True,
        metavar="URL",
        help="A plain OpenAI-compatible server instead of a gateway; may be repeated. Its /metrics is read as well.",
    ),
    click.option(
        "--num-nodes", type=click.IntRange(min=1), metavar="N", help="N servers on this host, see --base-port."
    ),
    click.option(
        "--base-port",
        type=click.IntRange(1, 65_535),
        default=8000,
        show_default=True,
        metavar="P",
        help="Port of the first of --num-nodes servers; the others follow.",
    ),
    click.option(
        "--dispatch",
        type=click.Choice(["rr", "lb"]),
        default="rr",
        show_default=True,
        help="Among endpoints: round robin, or PlanetServe's cache-aware balance.",
    ),
    click.option("--average-interval", type=float, metavar="S", help="Mean gap of arrivals: --rate 1/S."),
    click.option("--maxq", type=click.IntRange(min=1), metavar="N", help="The same as --requests."),
    click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="The same as --output-tokens."),
    click.option("--dataset-file", default="", metavar="FILE", help="The same as --dataset jsonl --dataset-path FILE."),
    click.option(
        "--results-folder",
        default="",
        metavar="DIR",
        help="Where a run against endpoints puts its files. [default: results/endpoints; with --average-interval or "
        "--dataset-file log_DATASET_S and fig_DATASET_S]",
    ),
)


def endpoint_options(command: F) -> F:
    """Adds what only runs against plain servers have, the flags of PlanetServe's measurer among them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def with_aliases(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with PlanetServe's flags under our names. Raises click.UsageError where both are given."""
    found = dict(options)
    interval_s = found["average_interval"]
    if interval_s is not None:
        check_positive("--average-interval", interval_s, "seconds")
        _same_as(found, "rate", 1.0 / interval_s, "--average-interval")
    if found["maxq"] is not None:
        _same_as(found, "requests", found["maxq"], "--maxq")
    if found["max_new_tokens"] is not None:
        found["output_tokens"] = found["max_new_tokens"]
    if found["dataset_file"]:
        if found["dataset_path"]:
            raise click.UsageError("--dataset-file and --dataset-path name the same thing: give one of them")
        found["dataset"], found["dataset_path"] = "jsonl", found["dataset_file"]
    return found


def output_places(options: Mapping[str, Any]) -> OutputPlaces:
    """Where the run's files go: a folder that was named, the measurer's two where its flags are used, or our own."""
    from bench.client.outputs import OutputPlaces, measurers_places

    if options["results_folder"]:
        folder = Path(options["results_folder"])
    elif options["rate"] is not None and (options["dataset_file"] or options["average_interval"] is not None):
        interval_s = options["average_interval"] or round(1.0 / options["rate"], 6)
        return measurers_places(options["dataset_path"] or options["dataset"], interval_s)
    else:
        folder = Path(RESULTS_FOLDER)
    return OutputPlaces(files=folder, figures=folder)


def urls_of(options: Mapping[str, Any]) -> list[str]:
    """Roots of the servers; empty when the run is against a gateway. Raises click.BadParameter, click.UsageError."""
    if options["num_nodes"] is not None:
        if options["endpoint"]:
            raise click.UsageError("--num-nodes and --endpoint both name servers: give one of them")
        last_port = options["base_port"] + options["num_nodes"] - 1
        if last_port > 65_535:
            raise click.BadParameter(f"the last port would be {last_port}", param_hint="--num-nodes")
        return [f"http://127.0.0.1:{port}" for port in range(options["base_port"], last_port + 1)]
    urls: list[str] = []
    for given in options["endpoint"]:
        try:
            url = parse_url(given)
        except ValueError as bad:
            raise click.BadParameter(str(bad), param_hint="--endpoint") from None
        if url in urls:
            raise click.BadParameter(f"{url} is named twice", param_hint="--endpoint")
        urls.append(url)
    return urls


def replay_endpoints(
    console: Console, urls: list[str], source: WorkloadSource, *, rate: float | None, options: Mapping[str, Any]
) -> None:
    """The run, its files and what is printed."""
    import msgspec

    from bench.client.endpoints import EndpointPlan, run_endpoints, served_models
    from bench.client.open_loop import Progress
    from bench.client.outputs import server_line, write_outputs
    from bench.client.server_metrics import rates
    from bench.run.live import complaints, run_async, shown
    from bench.run.provenance import header
    from bench.show.tables import out_console, print_table, summary_lines, summary_table
    from bench.workload.item import check_sent_by_the_clock

    if options["policy"]:
        raise click.UsageError("--policy is a gateway's; among endpoints --dispatch decides")
    with one_line_errors():
        try:
            models = run_async(served_models(urls, options["model"]))
            limits = [model.max_model_len for model in models if model.max_model_len]
            if limits:
                source.keep_fitting(min(limits))
            items = source.workload(rate_per_s=rate, seed=options["seed"])
            check_sent_by_the_clock(items)
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        plan = EndpointPlan(
            urls=urls,
            items=items,
            model=models[0].id,
            dispatch=options["dispatch"],
            natural_length=options["natural_length"],
            seed=options["seed"],
            timeout_s=options["timeout"],
        )
        head = header({**options, "endpoints": urls, "model": plan.model}, seed=options["seed"])

        async def run() -> Any:
            counts = Progress()
            async with shown(console, f"{options['dispatch']} over {len(urls)}", len(items), counts):
                return await run_endpoints(plan, progress=counts)

        done = run_async(run())
        places = output_places(options)
        summary, paths = write_outputs(places.files, head, done, places=places)
    if options["as_json"]:
        click.echo(msgspec.json.encode({"header": head, "summary": summary}))
    else:
        out = out_console()
        for note in source.notes:
            out.print(f"[dim]{note}[/]", highlight=False)
        print_table(out, summary_table(summary, title=f"{options['dispatch']} over {len(urls)} endpoints"))
        for line in summary_lines(summary):
            out.print(line, highlight=False)
        for url, samples in done.samples.items():
            rows = rates(samples)
            out.print(server_line(url, rows[-1] if rows else None), highlight=False)
        folders = " and ".join(f"{folder}/" for folder in dict.fromkeys((places.files, places.figures)))
        out.print(f"{len(paths)} files in {folders}", highlight=False)
    if done.polls_failed:
        console.print(f"[yellow]warning:[/] {done.polls_failed} reads of /metrics failed", highlight=False)
    for complaint in complaints(summary):
        console.print(f"[yellow]warning:[/] {complaint}", highlight=False)


def _same_as(options: dict[str, Any], name: str, value: Any, alias: str) -> None:
    if options[name] is not None:
        raise click.UsageError(f"{alias} and --{name} say the same thing: give one of them")
    options[name] = value
