"""`astrolabe key`: API keys of a gateway. A key is shown once, when it is made; the file keeps its hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, read_keys, write_keys
from protos.runtime.config import ConfigError
from protos.runtime.options import given_tables, options

FILE = click.option(
    "--file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Key file of `astrolabe gateway --keys`.",
)


@click.group(
    epilog="""\b
Example: a key for a team, at most 20 requests/s with bursts of 40, 64 at a time.
  astrolabe key create team-a --file keys.toml --requests-per-s 20 --burst 40 --max-concurrent 64
"""
)
def key() -> None:
    """API keys of a gateway. A running one takes changes over on SIGHUP."""


@key.command(
    short_help="Make a key and print it, once.",
    epilog="""\b
Example: a key for operators (nodes, drain, explain, policies), put into the environment.
  export ASTROLABE_API_KEY=$(astrolabe key create ops --file keys.toml --role admin)
""",
)
@click.argument("name")
@FILE
@options(KeyEntry, only=("role", "requests_per_s", "burst", "max_concurrent", "best_priority"))
def create(name: str, file: Path, **limits: Any) -> None:
    """Make a key, keep its hash in the file and print it: once, and never again."""
    key = new_key()
    fields = {"name": name, "sha256": digest(key).hex(), **given_tables(KeyEntry, limits)}
    try:
        before = read_keys(file).keys if file.exists() else ()
        entry = msgspec.convert(fields, KeyEntry)
        if any(e.name == name for e in before):
            raise click.ClickException(f"{file} has a key {name!r} already; revoke it first or choose another name")
        write_keys(file, KeyFile(keys=(*before, entry)))
    except (ConfigError, msgspec.ValidationError) as bad:
        raise click.ClickException(str(bad)) from None
    click.echo(key)


@key.command(
    name="list",
    epilog="""\b
Example: who may call.
  astrolabe key list --file keys.toml
""",
)
@FILE
def list_keys(file: Path) -> None:
    """Names, roles and limits of the keys in a file."""
    try:
        entries = read_keys(file).keys
    except ConfigError as bad:
        raise click.ClickException(str(bad)) from None
    for entry in entries:
        limits = [f"{entry.requests_per_s:g} requests/s, bursts of {entry.burst}"] if entry.requests_per_s else []
        limits += [f"{entry.max_concurrent} at a time"] if entry.max_concurrent else []
        limits += [f"priority {entry.best_priority} or larger"] if entry.best_priority else []
        click.echo(f"{entry.name:24} {entry.role:8} {'; '.join(limits) or 'no limits'}")


@key.command(
    epilog="""\b
Example: take a key away and tell the running gateway.
  astrolabe key revoke team-a --file keys.toml && systemctl reload astrolabe-gateway
"""
)
@click.argument("name")
@FILE
def revoke(name: str, file: Path) -> None:
    """Take a key out of the file. Requests that run go on; new ones are refused after the gateway's next reload."""
    try:
        before = read_keys(file).keys
        after = tuple(e for e in before if e.name != name)
        if len(after) == len(before):
            raise click.ClickException(f"{file} has no key {name!r}; see: astrolabe key list --file {file}")
        write_keys(file, KeyFile(keys=after))
    except ConfigError as bad:
        raise click.ClickException(str(bad)) from None
