"""`astrolabe bench report`: finished runs as one page, and in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from protos.runtime.options import json_option


@click.command(
    epilog="""\b
Example: a sweep, or all experiments at once.
  astrolabe bench report results/sweep
  astrolabe bench report results/experiments --output reproduction.html
"""
)
@click.argument("folder", default="results/experiments", type=click.Path(path_type=Path))
@click.option("--output", default="", metavar="FILE", help="The page. [default: report.html in the folder]")
@json_option
def report(folder: Path, output: str, as_json: bool) -> None:
    """Turn the result lines in FOLDER and below into one HTML page with plots and tables, all inside the one file."""
    from rich import box
    from rich.table import Table

    from bench.commands.run_errors import run_errors
    from bench.show.html_report import as_html, sections_of
    from bench.show.tables import out_console, print_table

    with run_errors():
        sections = sections_of(folder)
        page = Path(output) if output else folder / "report.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(as_html(sections, title=f"Astrolabe: {folder.name}"), encoding="utf-8")
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"page": str(page), "sections": sections}))
        return
    out = out_console()
    for section in sections:
        out.print(f"[bold]{section.title}[/]", highlight=False)
        out.print(f"[dim]{section.note}[/]", highlight=False)
        for caption, head, rows in section.tables:
            table = Table(title=caption, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
            for position, cell in enumerate(head):
                table.add_column(
                    cell, justify="left" if position == 0 else "right", no_wrap=position == 0, overflow="fold"
                )
            for row in rows:
                table.add_row(*row)
            print_table(out, table)
    out.print(f"page: {page}", highlight=False)
