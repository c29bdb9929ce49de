"""`astrolabe length train|eval|tag|serve`. `sample` is an operator's command (`deploy`), `worth` is bench's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from length_model.sample_options import DEFAULT_SAMPLES, can_plot, one_line_errors, read_split
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_samples = click.option(
    "--samples",
    type=click.Path(path_type=Path),
    default=DEFAULT_SAMPLES,
    show_default=True,
    help="Sample file; its split lies beside it.",
)
_file = click.Path(path_type=Path, dir_okay=False)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn(),
        console=console, transient=True,
    )  # fmt: skip


@click.command(short_help="Train a model and recalibrate it.")
@click.argument("kind", type=click.Choice(["histogram", "hashed", "encoder"]), required=False)
@_samples
@click.option(
    "--encoder",
    default="",
    metavar="FOLDER|NAME",
    help="encoder: folder with config.json, tokenizer.json and weights, or a hub name. [default: installed MiniLM]",
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another value for one of the recipe's.")
@click.option("--output", type=_file, help="Artefact to write. [default: results/length/KIND.alm]")
@json_option
def train(
    kind: Any, samples: Path, encoder: str, settings: tuple[str, ...], output: Path | None, as_json: bool
) -> None:
    """Train a model on the train side of a split and recalibrate it on the calibration side.

    KIND is `encoder` when --encoder names one, else `hashed`. An encoder is written after every epoch.
    """
    import msgspec

    from length_model.training import minilm_folder, train_to_file

    kind = kind or ("encoder" if encoder else "hashed")
    if encoder and kind != "encoder":
        raise click.UsageError(f"--encoder is for encoders, not for {kind}")
    output = output or Path(DEFAULT_SAMPLES).with_name(f"{kind}.alm")
    console = _console()
    with one_line_errors():
        data, manifest = read_split(samples)
        if kind == "encoder" and not encoder:
            encoder = str(minilm_folder())
        output.parent.mkdir(parents=True, exist_ok=True)
        with _progress(console) as bar:
            task = bar.add_task(f"training {kind}", total=1.0)
            printed = 0

            def show_progress(what: str, share: float) -> None:
                nonlocal printed
                bar.update(task, description=what, completed=share)
                # Where no bar can be drawn: a line for every twentieth.
                if not console.is_terminal and (int(20 * share) > printed or what.startswith("epoch")):
                    printed = int(20 * share)
                    console.print(f"{share:.0%} {what}", highlight=False)

            done = train_to_file(
                kind,
                data,
                manifest,
                output,
                encoder=encoder,
                recipe=_recipe(settings),
                progress=show_progress,
            )
    if as_json:
        click.echo(msgspec.json.encode(done, enc_hook=str))
        return
    click.echo(
        f"{kind}: {done.trained_on:,} samples, recalibrated on {done.calibrated_on:,}; "
        f"{done.size_bytes:,} bytes, sha256 {done.sha256[:16]}: {output}"
    )


def _recipe(settings: tuple[str, ...]) -> dict[str, Any]:
    import msgspec

    recipe = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise click.BadParameter(f"{setting!r} is not NAME=VALUE", param_hint="--set")
        try:
            recipe[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            recipe[name] = value
    return recipe


@click.command("eval", short_help="Judge models on held-out conversations.")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@_samples
@click.option("--side", type=click.Choice(["test", "calibration", "train"]), default="test", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--plot", type=_file, callback=can_plot, help="Write the reliability plot (.png).")
@click.option("--card", type=_file, help="Write the last model's card (.md).")
@json_option
def evaluate(
    models: tuple[str, ...], samples: Path, side: Any, seed: int, plot: Path | None, card: Path | None, as_json: bool
) -> None:
    """Judge models (names or .alm files; the shipped one by default) on held-out conversations.

    The baseline is a histogram of the train and calibration sides, per model and class.
    """
    import msgspec

    from length_model import report
    from length_model.baseline import train_histogram
    from length_model.core import evaluation as ev
    from length_model.core.split import samples_of
    from length_model.models import DEFAULT_MODEL, load_model
    from protos.runtime.terminal import out_console, print_table

    console = _console()
    with one_line_errors():
        data, manifest = read_split(samples)
        known = [s for s in data if manifest.side_of_group.get(s.group) != "test"]
        chosen = samples_of(data, manifest, side)
        judged_on = ev.finished(chosen)
        with console.status("judging") as status:
            everyone = [ev.judge(train_histogram(known), judged_on)]
            for name in models or (DEFAULT_MODEL,):
                status.update(f"judging {name}")
                model = load_model(name)
                everyone.append(ev.judge(model, judged_on, name=report.short_name(name), sha256=model.sha256))
            cut = len(chosen) - len(judged_on)
            evaluations = [
                ev.evaluate(j, judged_on, others=everyone[:i], left_out_censored=cut, seed=seed)
                for i, j in enumerate(everyone)
            ]
        if plot is not None:
            report.write_plot(plot, evaluations)
        if card is not None:
            report.write_card(
                card,
                evaluations,
                manifest,
                side,
                models=", ".join(sorted({s.query.model or "unnamed" for s in known})),
                longest_tokens=max(s.output_tokens for s in known),
            )
    if as_json:
        click.echo(msgspec.json.encode(evaluations))
        return
    for table in report.tables(evaluations, side):
        print_table(out_console(), table)


@click.command(short_help="Write predicted lengths into a workload.")
@click.option("--model", "name", default="hashed", show_default=True, help="Model by name or .alm file.")
@click.option("--workload", type=_file, help='JSON lines for bench ({"workload": text, ...}).')
@click.option("--samples", type=_file, help="Sample file instead: only its held-out side is tagged.")
@click.option("--side", type=click.Choice(["test", "calibration", "train"]), default="test", show_default=True)
@click.option("--statistic", type=click.Choice(["median", "mean", "p90"]), default="median", show_default=True)
@click.option("--belief", is_flag=True, help="Write the whole belief too (`predicted_atoms_tokens`); bench prefers it.")
@click.option("--output", type=_file, required=True, help="JSON lines to write.")
def tag(
    name: str, workload: Path | None, samples: Path | None, side: Any, statistic: Any, belief: bool, output: Path
) -> None:
    """Write predicted answer lengths into a workload for `bench` (`predicted_output_tokens`)."""
    from length_model.core.split import samples_of
    from length_model.models import load_model
    from length_model.tagging import tag_samples, tag_workload

    if (workload is None) == (samples is None):
        raise click.UsageError("name either --workload FILE or --samples FILE")
    with one_line_errors():
        model = load_model(name)
        if samples is not None:
            data, manifest = read_split(samples)
            count = tag_samples(model, samples_of(data, manifest, side), output, statistic, belief=belief)
        else:
            assert workload is not None
            count = tag_workload(model, workload, output, statistic, belief=belief)
    click.echo(f"{count:,} requests tagged with the {statistic} of {name}: {output}")


@click.command(short_help="Offer beliefs over gRPC.")
@click.option("--model", "name", default="hashed", show_default=True, help="Model by name or .alm file.")
@click.option("--listen", default="127.0.0.1:8300", show_default=True, metavar="HOST:PORT")
@click.option("--ready-file", type=_file, help="Written with the bound address once it serves.")
def serve(name: str, listen: str, ready_file: Path | None) -> None:
    """Offer beliefs over gRPC (service astrolabe.v1.Length), with reflection and health."""
    import asyncio

    from length_model.models import load_model
    from length_model.server import serve as run

    with one_line_errors():
        model = load_model(name)
        asyncio.run(run(model, listen=listen, ready_file=ready_file))
