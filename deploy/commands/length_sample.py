"""`astrolabe length sample`: samples and their split, from conversations, JSON lines or a gateway's decision log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from length_model.sample_options import DEFAULT_SAMPLES, one_line_errors
from protos.runtime.options import json_option

_file = click.Path(path_type=Path, dir_okay=False)


@click.command(short_help="Samples of prompts and answer lengths, with their split.")
@click.option(
    "--dataset",
    type=click.Choice(["sharegpt", "jsonl", "decisions"]),
    default="sharegpt",
    show_default=True,
    help="decisions: a gateway's decision log (no prompts in it: teaches a histogram per model).",
)
@click.option("--dataset-path", type=_file, help="The data set's file. [default for sharegpt: the installed package]")
@click.option(
    "--turns",
    type=click.Choice(["first", "all"]),
    default="all",
    show_default=True,
    help="sharegpt: the first question of each conversation, or all with what came before them.",
)
@click.option("--per-conversation", type=click.IntRange(min=1), default=16, show_default=True, metavar="N",
              help="sharegpt: questions sampled of one conversation at most.")  # fmt: skip
@click.option("--max-output-tokens", type=click.IntRange(min=1), default=2048, show_default=True, metavar="N",
              help="sharegpt: longer answers are left out.")  # fmt: skip
@click.option("--model", default="sharegpt", show_default=True, help="sharegpt: name of the model that answered.")
@click.option("--tokenizer", default="qwen2", show_default=True, help="Counts tokens of texts.")
@click.option("--test", "test_share", type=float, default=0.2, show_default=True, help="Share kept for judging.")
@click.option("--calibration", type=float, default=0.1, show_default=True, help="Share kept for recalibration.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the split and of what is sampled.")
@click.option("--output", type=_file, default=DEFAULT_SAMPLES, show_default=True, help="Sample file to write.")
@json_option
def sample(output: Path, as_json: bool, **options: Any) -> None:
    """Make (model, prompt, answer tokens) samples and a split by conversation, near-copies on one side."""
    import msgspec
    from rich.console import Console

    from deploy.length_decisions import samples_from_decisions
    from engine_adapters.tokenizer import load_tokenizer
    from length_model.core.query import samples_from_conversations
    from length_model.core.split import split_samples
    from length_model.sample_files import manifest_path, read_samples, write_manifest, write_samples
    from length_model.sharegpt import package_file, read_conversations

    with one_line_errors(), Console(stderr=True).status("sampling"):
        tokenizer = load_tokenizer(options["tokenizer"])

        def count(text: str) -> int:
            return len(tokenizer.encode(text))

        skipped = 0
        if options["dataset"] == "sharegpt":
            samples = list(
                samples_from_conversations(
                    read_conversations(options["dataset_path"] or package_file()),
                    count,
                    scope=options["turns"],
                    model=options["model"],
                    max_output_tokens=options["max_output_tokens"],
                    per_conversation=options["per_conversation"],
                    seed=options["seed"],
                )
            )
        elif options["dataset_path"] is None:
            raise click.UsageError(f"--dataset {options['dataset']} needs --dataset-path FILE")
        elif options["dataset"] == "decisions":
            with options["dataset_path"].open("rb") as lines:
                samples = list(samples_from_decisions(lines))
        else:
            found = read_samples(options["dataset_path"], count)
            samples, skipped = found.samples, found.skipped
        if not samples:
            raise click.ClickException("no usable rows: no question in it has an answer")
        manifest = split_samples(
            samples, seed=options["seed"], calibration=options["calibration"], test=options["test_share"]
        )
        output.parent.mkdir(parents=True, exist_ok=True)
        manifest = msgspec.structs.replace(manifest, samples_sha256=write_samples(output, samples))
        write_manifest(manifest_path(output), manifest)
    if as_json:
        document = msgspec.to_builtins(manifest)
        del document["side_of_group"]
        click.echo(msgspec.json.encode({**document, "skipped": skipped, "output": str(output)}))
        return
    counts = ", ".join(f"{manifest.counts[s]:,} {s}" for s in manifest.counts)
    click.echo(f"{len(samples):,} samples ({counts}), {skipped:,} rows skipped: {output}")
    click.echo(f"split by conversation, {manifest.joined_groups:,} joined as near-copies: {manifest_path(output)}")
