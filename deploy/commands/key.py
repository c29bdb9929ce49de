"""`astrolabe key`: API keys of a gateway. A key is shown once, when it is made; the file keeps its hash."""

from __future__ import annotations

from pathlib import Path

import click

from protos.runtime.config import ConfigError

FILE = click.option("--file", "file", required=True, metavar="FILE", help="Key file of `astrolabe gateway --keys`.")


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
@click.option(
    "--role",
    type=click.Choice(["client", "metrics", "admin"]),
    default="client",
    show_default=True,
    help="client: requests; metrics: /metrics; admin: everything.",
)
@click.option("--requests-per-s", type=float, default=0.0, metavar="R", help="0: no limit. [default: 0]")
@click.option("--burst", type=int, default=1, metavar="N", help="Requests that may come at once. [default: 1]")
@click.option(
    "--max-concurrent", type=int, default=0, metavar="N", help="Requests under way; 0: no limit. [default: 0]"
)
def create(name: str, file: str, role: str, requests_per_s: float, burst: int, max_concurrent: int) -> None:
    """Make a key, keep its hash in the file and print it: once, and never again."""
    import msgspec

    from gateway.intake.callers import KeyEntry, KeyFile, digest, new_key, read_keys, write_keys

    path = Path(file)
    made = new_key()
    fields = {
        "name": name,
        "sha256": digest(made).hex(),
        "role": role,
        "requests_per_s": requests_per_s,
        "burst": burst,
        "max_concurrent": max_concurrent,
    }
    try:
        before = read_keys(path).keys if path.exists() else ()
        entry = msgspec.convert(fields, KeyEntry)
        if any(e.name == name for e in before):
            raise click.ClickException(f"{file} has a key {name!r} already; revoke it first or choose another name")
        write_keys(path, KeyFile(keys=(*before, entry)))
    except (ConfigError, msgspec.ValidationError) as bad:
        raise click.ClickException(str(bad)) from None
    click.echo(made)


@key.command(
    name="list",
    epilog="""\b
Example: who may call.
  astrolabe key list --file keys.toml
""",
)
@FILE
def list_keys(file: str) -> None:
    """Names, roles and limits of the keys in a file."""
    from gateway.intake.callers import read_keys

    try:
        entries = read_keys(file).keys
    except ConfigError as bad:
        raise click.ClickException(str(bad)) from None
    for entry in entries:
        limits = [f"{entry.requests_per_s:g} requests/s, bursts of {entry.burst}"] if entry.requests_per_s else []
        limits += [f"{entry.max_concurrent} at a time"] if entry.max_concurrent else []
        click.echo(f"{entry.name:24} {entry.role:8} {'; '.join(limits) or 'no limits'}")


@key.command(
    epilog="""\b
Example: take a key away and tell the running gateway.
  astrolabe key revoke team-a --file keys.toml && systemctl reload astrolabe-gateway
"""
)
@click.argument("name")
@FILE
def revoke(name: str, file: str) -> None:
    """Take a key out of the file. Requests that run go on; new ones are refused after the gateway's next reload."""
    from gateway.intake.callers import KeyFile, read_keys, write_keys

    try:
        before = read_keys(file).keys
        after = tuple(e for e in before if e.name != name)
        if len(after) == len(before):
            raise click.ClickException(f"{file} has no key {name!r}; see: astrolabe key list --file {file}")
        write_keys(Path(file), KeyFile(keys=after))
    except ConfigError as bad:
        raise click.ClickException(str(bad)) from None
