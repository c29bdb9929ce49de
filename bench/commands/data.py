"""`astrolabe bench data`: public data sets to list, fetch and check."""

from __future__ import annotations

import click

from protos.runtime.options import json_option


@click.group(
    epilog="""\b
Example: a trace whose prompts share beginnings, and a simulation of it.
  astrolabe bench data fetch mooncake-synthetic
  astrolabe bench simulate --dataset mooncake \\
      --dataset-path $(astrolabe bench data path mooncake-synthetic) --requests 500
"""
)
def data() -> None:
    """Public traces and length sets: what there is, fetching it, checking it."""


@data.command("list", short_help="All data sets, and which of them lie here.")
@json_option
def list_sets(as_json: bool) -> None:
    """All data sets of the catalogue, and whether they lie on this machine."""
    import msgspec
    from rich.table import Table

    from bench.data.public_data import catalogue, path_of
    from bench.show.tables import out_console, print_table

    if as_json:
        rows = {
            name: {**msgspec.to_builtins(entry), "path": str(path_of(name)), "here": path_of(name).is_file()}
            for name, entry in catalogue().items()
        }
        click.echo(msgspec.json.encode(rows))
        return
    table = Table(header_style="bold")
    for column in ("name", "--dataset", "here", "licence", "what it is"):
        table.add_column(column, no_wrap=column != "what it is")
    for name, entry in catalogue().items():
        table.add_row(name, entry.kind, "yes" if path_of(name).is_file() else "no", entry.licence, entry.about)
    out = out_console()
    print_table(out, table, prose=True)
    out.print("fetch one: astrolabe bench data fetch NAME", highlight=False)
    out.print("use it:    astrolabe bench simulate --dataset KIND --dataset-path $(astrolabe bench data path NAME) ...")


@data.command()
@click.argument("name")
def path(name: str) -> None:
    """Where a fetched data set lies."""
    from bench.data.public_data import FetchError, path_of

    try:
        found = path_of(name)
    except FetchError as error:
        raise click.ClickException(str(error)) from None
    if not found.is_file():
        raise click.ClickException(f"{found} is not there: astrolabe bench data fetch {name}")
    click.echo(found)


@data.command(short_help="Download data sets and compare checksums.")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--url", default="", metavar="URL", help="Fetch from here instead; for one NAME only.")
def fetch(names: tuple[str, ...], url: str) -> None:
    """Download data sets into the user's cache and compare their checksums. Needs a network."""
    from rich.console import Console
    from rich.progress import Progress

    from bench.data.public_data import FetchError, entry, path_of
    from bench.data.public_data import fetch as fetch_one

    if url and len(names) > 1:
        raise click.UsageError("--url goes with one NAME")
    console = Console(stderr=True)
    failed = []
    for name in names:
        try:
            here = path_of(name).is_file()
            with Progress(console=console, disable=not console.is_terminal) as bar:
                task = bar.add_task(name, total=None)
                found = fetch_one(
                    name,
                    url=url,
                    progress=lambda came, total, task=task, bar=bar: bar.update(task, completed=came, total=total),  # type: ignore[misc]
                )
        except FetchError as error:
            failed.append(f"{name}: {error}" if len(names) > 1 else str(error))
            continue
        checked = (
            "was here already"
            if here
            else "fetched"
            + (", its checksum is right" if entry(name).sha256 else "; its publisher gives no checksum to compare")
        )
        click.echo(f"{name}: {checked}: {found}")
    if failed:
        raise click.ClickException("\n".join(failed))


@data.command(short_help="Read data sets to their end, compare checksums.")
@click.argument("names", nargs=-1, metavar="[NAME...]")
@json_option
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Read data sets that lie here to their end and compare their checksums. All of them without NAME."""
    import msgspec

    from bench.data.public_data import FetchError, catalogue
    from bench.data.public_data import check as check_one

    try:
        found = [check_one(name) for name in names or catalogue()]
    except FetchError as error:
        raise click.ClickException(str(error)) from None
    bad = [entry for entry in found if entry.problem or (names and not entry.present)]
    if as_json:
        click.echo(msgspec.json.encode(found))
    for entry in found if not as_json else ():
        if entry.fine:
            click.echo(f"{entry.name}: fine, {entry.rows:,} rows")
        elif entry.problem:
            click.echo(f"{entry.name}: {entry.problem}")
        elif names:
            click.echo(f"{entry.name}: not here; astrolabe bench data fetch {entry.name}")
    if not any(entry.present for entry in found) and not names and not as_json:
        click.echo("none of the catalogue's data sets is on this machine: astrolabe bench data list")
    if bad:
        raise SystemExit(1)
