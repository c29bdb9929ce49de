"""`astrolabe length online`: what beliefs are worth for answers of another kind, and how soon they are learned."""

from __future__ import annotations

from pathlib import Path

import click

from length_model.sample_options import DEFAULT_SAMPLES, one_line_errors, read_split
from protos.runtime.options import json_option

_file = click.Path(path_type=Path, dir_okay=False)


@click.command(
    short_help="How soon answers of another kind are learned online.",
    epilog="""\b
Example: the shipped model and the prior, on reasoning, later turns and chat.
  astrolabe length sample
  ASTROLABE_DATA=DATA astrolabe length online hashed constant --samples results/length/samples.jsonl
""",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--samples", type=_file,
              help=f"Sample file ({DEFAULT_SAMPLES}) whose held-out side, with prompts, is judged too.")  # fmt: skip
@click.option("--judged", type=click.IntRange(min=10), default=3000, show_default=True, help="Answers judged.")
@click.option("--seed", "seeds", type=int, multiple=True, default=(0, 1, 2), show_default=True,
              help="Of the order of the answers.")  # fmt: skip
@click.option("--markdown", "markdown_file", type=_file, help="Write the table (.md).")
@json_option
def online(
    models: tuple[str, ...],
    samples: Path | None,
    judged: int,
    seeds: tuple[int, ...],
    markdown_file: Path | None,
    as_json: bool,
) -> None:
    """Judge what MODELs (default: hashed) believe of a reasoning model's answers (ServeGen, deepseek-r1) and of all
    turns of conversations (ShareGPT), as shipped and after 100, 500 and 2,000 answers learned online, against the
    distribution of the judged answers themselves; then what the single numbers of a client (Block's tagger) are worth.
    Their files lie in ASTROLABE_DATA; they hold lengths, no prompts."""
    import msgspec
    from rich.console import Console

    from bench.data.datasets import DatasetSpec, load_dataset
    from bench.data.named import data_folder
    from bench.experiments import length_populations_report as report
    from bench.experiments.length_hints import study_hints
    from bench.experiments.length_populations import population_of_rows, population_of_samples, study
    from length_model.core.split import samples_of
    from length_model.models import load_model
    from length_model.report import short_name
    from protos.runtime.terminal import out_console, print_table

    with one_line_errors(), Console(stderr=True).status("reading") as status:
        loaded = {short_name(name): load_model(name) for name in models or ("hashed",)}
        folder = data_folder()
        reasoning = DatasetSpec(name="servegen", path=str(folder / "servegen/deepseek-r1_arrivals.csv.gz"))
        tagged = DatasetSpec(name="lengths", path=str(folder / "block_a30/sharegpt-val-10k-predicted-len.csv.gz"))
        turns = DatasetSpec(name="turns", path=str(folder / "sharegpt/turns.csv.gz"))
        populations = [
            population_of_rows("deepseek-r1", load_dataset(reasoning).rows, in_conversations=False),
            population_of_rows("turns", load_dataset(turns).rows, in_conversations=True),
        ]
        if samples is not None:
            populations.append(population_of_samples("chat", samples_of(*read_split(samples), "test")))
        found = study(populations, loaded, seeds=seeds, judged=judged, on_done=status.update)
        found += study_hints("Block's tagger", load_dataset(tagged).rows, seeds=seeds, judged=judged)
        if markdown_file is not None:
            markdown_file.write_text(report.markdown(found))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for table in report.tables(found):
        print_table(out_console(), table)
