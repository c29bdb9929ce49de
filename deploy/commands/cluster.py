"""`astrolabe cluster`: from a list of hosts to a fleet that serves, and through its upgrades, over ssh."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deploy.cluster.sources import FORMATS, HostSourceError, read_source
from protos.runtime.config import ConfigError
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from deploy.cluster.kept import Kept
    from deploy.cluster.manifest import Cluster
    from deploy.cluster.release import Release
    from deploy.cluster.rollout import HostReport, HostView, Rollout
    from deploy.cluster.sources import Found

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_FILE = "cluster.toml"


def cluster_file_option(command: F) -> F:
    """Adds --file and --parallel."""
    command = click.option(
        "--parallel", type=click.IntRange(1), default=16, show_default=True, help="Hosts at the same time."
    )(command)
    return click.option(
        "-f",
        "--file",
        "file",
        type=click.Path(path_type=Path),
        default=DEFAULT_FILE,
        show_default=True,
        help="The cluster's file. Its secrets are kept beside it, in a folder of the same name ending in .d",
    )(command)


def wheel_options(command: F) -> F:
    """Adds --wheel and --wheelhouse."""
    command = click.option(
        "--wheelhouse",
        type=click.Path(path_type=Path),
        help="Folder with all wheels, for hosts without a package index: pip wheel --wheel-dir FOLDER .",
    )(command)
    return click.option("--wheel", type=click.Path(path_type=Path), help="Wheel of astrolabe; else built from here.")(
        command
    )


def drain_options(command: F) -> F:
    """Adds --grace and --timeout."""
    command = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=600.0,
        show_default=True,
        metavar="S",
        help="How long a node may take to be empty before it is given up.",
    )(command)
    return click.option(
        "--grace",
        type=click.FloatRange(min=0),
        default=5.0,
        show_default=True,
        metavar="S",
        help="What a node's requests get to end before they go on at other nodes.",
    )(command)


@click.group(
    epilog="""\b
Example: from a list of hosts to a fleet.
  astrolabe cluster init hosts.txt
  astrolabe cluster check
  astrolabe cluster install
"""
)
def cluster() -> None:
    """Install, upgrade and remove Astrolabe on many hosts, over ssh. All keys of the file: deploy/cluster.md."""


@cluster.command(
    epilog="""\b
Example: of a CloudLab experiment; node0 is the gateway.
  astrolabe cluster init manifest.xml --gateway node0

\b
Example: of an Ansible inventory, without GPUs.
  astrolabe cluster init inventory.ini --engine emulated
"""
)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE...")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=DEFAULT_FILE, show_default=True)
@click.option("--format", "format", type=click.Choice(FORMATS), help="Of the sources; else told by content.")
@click.option("--gateway", "gateways", multiple=True, metavar="NAME", help="Host that is a gateway; repeat for more.")
@click.option("--engine", type=click.Choice(["vllm", "emulated", "openai_metrics"]), default="vllm", show_default=True)
@click.option("--profile", default="", metavar="GPU/MODEL", help="Step times, where learning begins.")
@click.option("--user", default="", help="Login name, where the sources name none.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def init(
    sources: tuple[Path, ...],
    output: Path,
    format: str | None,
    gateways: tuple[str, ...],
    engine: str,
    profile: str,
    user: str,
    force: bool,
) -> None:
    """Write a cluster.toml from what you have.

    SOURCE: a CloudLab manifest, host_configs.json and llama_config.json, an Ansible inventory, an ssh_config, or a
    list of hosts. Where nothing says which host is the gateway, it is the first one.
    """
    from deploy.cluster.contradictions import load_cluster
    from deploy.cluster.draft import draft

    if output.exists() and not force:
        raise click.ClickException(f"{output} is there already; name another with -o, or write over it with --force")
    found = []
    for source in sources:
        try:
            found.append((source.name, read_source(_text(source), format=format or "", include=_includes(source))))
        except HostSourceError as bad:
            raise click.ClickException(f"{source}: {bad}") from None
        for note in found[-1][1].notes:
            click.echo(f"{source}: {note}", err=True)
    try:
        text = draft(
            found, gateways=gateways, engine=engine, profile=profile, user=user, ssh_config=_ssh_config(sources, found)
        )
        output.write_text(text, encoding="utf-8")
    except HostSourceError as bad:
        raise click.ClickException(str(bad)) from None
    except OSError as bad:
        raise click.ClickException(f"cannot write {output}: {bad.strerror}") from None
    with _one_line_each():
        made = load_cluster(output)
    formats = ", ".join(dict.fromkeys(f.format for _, f in found))
    names = ", ".join(host.name for host in made.gateways())
    click.echo(f"{output}: {len(made.nodes())} nodes, gateway {names} (read as {formats})")
    click.echo(f"look through it, then: astrolabe cluster check{_again(output)}")


@cluster.command(
    epilog="""\b
Example: what has to be mended before an installation.
  astrolabe cluster check

\b
Example: for a machine.
  astrolabe cluster check --json | jq '.hosts[].findings[] | select(.level == "fail")'
"""
)
@cluster_file_option
@json_option
def check(file: Path, parallel: int, as_json: bool) -> None:
    """Look at all hosts, change nothing, and say what stands in the way."""
    with _opened(file, parallel, writes=False) as (_, _, rollout):
        views = rollout.look()
    failed = any(view.failures for view in views)
    if as_json:
        _print_json({"ok": not failed, "hosts": [_view_document(view) for view in views]})
    else:
        _print_checks(views)
    if failed:
        raise SystemExit(1)


@cluster.command(
    epilog="""\b
Example: what would be done, host by host.
  astrolabe cluster install --dry-run

\b
Example: hosts that reach no package index.
  pip wheel --wheel-dir wheels .
  astrolabe cluster install --wheelhouse wheels
"""
)
@cluster_file_option
@wheel_options
@drain_options
@click.option("--dry-run", is_flag=True, help="Change nothing, here neither: say what would be done.")
@json_option
def install(
    file: Path,
    parallel: int,
    wheel: Path | None,
    wheelhouse: Path | None,
    grace: float,
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring all hosts to what the file says: a second time changes nothing.

    Also after an edit of the file or of its keys (FILE.d/keys.toml), and after an installation that was cut off. What
    runs is reloaded where that will do, else restarted host by host. One host's failure does not stop the others.
    """
    settings = {"grace_s": grace, "drain_s": timeout}
    with _opened(file, parallel, **settings, quiet=as_json, writes=not dry_run) as (made, kept, rollout):
        release = kept.release()
        if release is None or wheel is not None or wheelhouse is not None:
            release = _taken(made, kept, wheel, wheelhouse)
        if made.tls and (key := kept.new_operator_key()):
            click.echo(f"admin key, shown once (these commands have it from {kept.operator_key}): {key}", err=True)
        if not dry_run:
            kept.choose(release)
        reports = rollout.converge(release, dry_run=dry_run)
    _finish(file, reports, as_json=as_json, dry_run=dry_run, release=release)


@cluster.command(
    epilog="""\b
Example: to the wheel of a new release.
  astrolabe cluster upgrade --wheel astrolabe-0.2.0-py3-none-any.whl
"""
)
@cluster_file_option
@wheel_options
@drain_options
@click.option("--dry-run", is_flag=True, help="Change nothing, here neither: say what would be done.")
@json_option
def upgrade(
    file: Path,
    parallel: int,
    wheel: Path | None,
    wheelhouse: Path | None,
    grace: float,
    timeout: float,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bring a new release to all hosts, one after the other: nodes are emptied first, requests go on elsewhere.

    It stops at the first host that does not come back. With two gateways and clients that know both no request fails.
    """
    settings = {"grace_s": grace, "drain_s": timeout}
    with _opened(file, parallel, **settings, quiet=as_json, writes=not dry_run) as (made, kept, rollout):
        release = _taken(made, kept, wheel, wheelhouse)
        if not dry_run:
            kept.choose(release)
        reports = rollout.converge(release, dry_run=dry_run)
    _finish(file, reports, as_json=as_json, dry_run=dry_run, release=release, upgrade=True)


@cluster.command(
    epilog="""\b
Example: the new release was none.
  astrolabe cluster rollback
"""
)
@cluster_file_option
@drain_options
@json_option
def rollback(file: Path, parallel: int, grace: float, timeout: float, as_json: bool) -> None:
    """Go back to the release before, as gently as upgrade goes forward."""
    with _opened(file, parallel, grace_s=grace, drain_s=timeout, quiet=as_json) as (_, kept, rollout):
        release = kept.before()
        if release is None:
            raise click.ClickException(f"{kept.folder}: knows no release before this one; nothing was upgraded yet")
        kept.choose(release)
        reports = rollout.converge(release)
    _finish(file, reports, as_json=as_json, release=release)


@cluster.command(
    epilog="""\b
Example: new certificates for all hosts, of the same authority.
  astrolabe cluster rotate
"""
)
@cluster_file_option
@drain_options
@json_option
def rotate(file: Path, parallel: int, grace: float, timeout: float, as_json: bool) -> None:
    """New certificates for all hosts. They are taken over without a restart: connections that stand go on."""
    with _opened(file, parallel, grace_s=grace, drain_s=timeout, quiet=as_json) as (made, kept, rollout):
        if not made.tls:
            raise click.ClickException(f"{file}: has tls = false; there are no certificates")
        release = _installed(kept)
        for host in made.hosts:
            kept.renew(made, host)
        reports = rollout.converge(release)
    _finish(file, reports, as_json=as_json, release=release)


@cluster.command(
    epilog="""\b
Example: what runs where, and what is not as the file says.
  astrolabe cluster status
"""
)
@cluster_file_option
@json_option
def status(file: Path, parallel: int, as_json: bool) -> None:
    """Services, releases, health, days left of certificates, and what differs from the file."""
    from deploy.cluster.overview import host_status

    with _opened(file, parallel, writes=False) as (made, kept, rollout):
        release = _installed(kept)
        views = rollout.look()
        drift = {report.name: report for report in rollout.converge(release, dry_run=True)}
        nodes = rollout.nodes_by_gateway()
    rows = [host_status(made, view, drift[view.host.name], nodes, release) for view in views]
    healthy = all(row.is_well for row in rows)
    if as_json:
        import msgspec

        _print_json({"ok": healthy, "release": release.name, "hosts": msgspec.to_builtins(rows)})
    else:
        from deploy.cluster.overview import print_status

        print_status(rows, release)
    if not healthy:
        raise SystemExit(1)


@cluster.command(
    epilog="""\b
Example: without a question.
  astrolabe cluster remove --yes
"""
)
@cluster_file_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def remove(file: Path, parallel: int, yes: bool, as_json: bool) -> None:
    """Take services, files and the user astrolabe off all hosts. The file and its folder of secrets stay here."""
    with _opened(file, parallel, quiet=as_json) as (made, _, rollout):
        if not yes:
            click.confirm(f"Remove Astrolabe from {len(made.hosts)} hosts, requests under way included?", abort=True)
        reports = rollout.remove()
    _finish(file, reports, as_json=as_json)


@contextlib.contextmanager
def _opened(
    file: Path,
    parallel: int,
    *,
    grace_s: float = 5.0,
    drain_s: float = 600.0,
    quiet: bool = True,
    writes: bool = True,
) -> Iterator[tuple[Cluster, Kept, Rollout]]:
    """The cluster, the operator's folder, and what acts on hosts. Errors inside end the command, a line each. `writes`:
    whether the folder may change."""
    try:
        from deploy.cluster.contradictions import load_cluster
        from deploy.cluster.kept import Kept
        from deploy.cluster.rollout import Rollout
        from deploy.cluster.shell import SshShell
    except ModuleNotFoundError as missing:
        raise click.ClickException(f"needs {missing.name}; run: pip install 'astrolabe[cluster]'") from None

    def tell(host: str, title: str, seconds: float) -> None:
        if not quiet:
            click.echo(f"{host:16} {title}{f'  {seconds:.0f} s' if seconds >= 1 else ''}", err=True)

    with _one_line_each(), tempfile.TemporaryDirectory(prefix="astro-") as sockets:
        made, kept = load_cluster(file), Kept(file, writes=writes)
        folder = file.resolve().parent
        shells = {h.name: SshShell(h, made.ssh, folder=folder, sockets=Path(sockets)) for h in made.hosts}
        try:
            yield (
                made,
                kept,
                Rollout(made, kept, shells, parallel=parallel, grace_s=grace_s, drain_s=drain_s, tell=tell),
            )
        finally:
            kept.close()
            for shell in shells.values():
                shell.close()


@contextlib.contextmanager
def _one_line_each() -> Iterator[None]:
    try:
        yield
    except ConfigError as bad:
        first, *more = str(bad).splitlines()
        for line in (first, *more)[:-1]:
            click.echo(f"error: {line}", err=True)
        raise click.ClickException((first, *more)[-1]) from None


def _taken(made: Cluster, kept: Kept, wheel: Path | None, wheelhouse: Path | None) -> Release:
    release = kept.take(wheel=wheel, wheelhouse=wheelhouse)
    if made.version and made.version != release.version:
        raise ConfigError(f"cluster.toml wants version {made.version}, the wheel is {release.version}; change either")
    return release


def _installed(kept: Kept) -> Release:
    release = kept.release()
    if release is None:
        raise ConfigError(f"{kept.folder}: nothing has been installed yet; run: astrolabe cluster install")
    return release


def _finish(
    file: Path,
    reports: list[HostReport],
    *,
    as_json: bool,
    dry_run: bool = False,
    release: Release | None = None,
    upgrade: bool = False,
) -> None:
    from deploy.cluster.overview import print_reports

    failed = [report for report in reports if report.outcome in ("failed", "left")]
    if as_json:
        import msgspec

        name = release.name if release else None
        _print_json({"ok": not failed, "release": name, "hosts": msgspec.to_builtins(reports)})
    else:
        print_reports(reports, dry_run=dry_run)
    if failed:
        way = f"; or go back: astrolabe cluster rollback{_again(file)}" if upgrade else ""
        command = "upgrade" if upgrade else "install"
        if not as_json and not dry_run and release is not None:
            click.echo(f"when that is mended, go on: astrolabe cluster {command}{_again(file)}{way}", err=True)
        raise SystemExit(1)


def _again(file: Path) -> str:
    return "" if str(file) == DEFAULT_FILE else f" -f {file}"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise HostSourceError("is no text in UTF-8; is it the right file?") from None
    except OSError as bad:
        raise HostSourceError(f"cannot be read: {bad.strerror}") from None


def _includes(source: Path) -> Callable[[str], Iterator[str]]:
    """Texts of an ssh_config's `Include`: relative ones lie in ~/.ssh, as ssh has it, or beside the file."""

    def texts(pattern: str) -> Iterator[str]:
        path = Path(pattern).expanduser()
        folders = [Path("/")] if path.is_absolute() else [source.resolve().parent, Path.home() / ".ssh"]
        for folder in dict.fromkeys(folders):
            for file in sorted(folder.glob(str(path).lstrip("/"))):
                yield _text(file)

    return texts


def _ssh_config(sources: tuple[Path, ...], found: list[tuple[str, Found]]) -> str:
    """The ssh_config among the sources that ssh would not read by itself; empty: there is none."""
    own = {Path.home() / ".ssh/config", Path("/etc/ssh/ssh_config")}
    configs = [s.resolve() for s, (_, f) in zip(sources, found, strict=True) if f.format == "ssh-config"]
    return next((str(config) for config in configs if config not in own), "")


def _view_document(view: HostView) -> dict[str, Any]:
    import msgspec

    return {"name": view.host.name, "findings": msgspec.to_builtins(view.findings)}


def _print_json(document: Any) -> None:
    import orjson

    click.echo(orjson.dumps(document))


def _print_checks(views: list[HostView]) -> None:
    from deploy.cluster.overview import print_checks

    print_checks(views)
