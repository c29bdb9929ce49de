"""What a user can cause in commands that run many simulations becomes one line."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import click


class _Stopped(click.ClickException):
    """The user wished it so."""

    exit_code = 130


@contextlib.contextmanager
def run_errors() -> Iterator[None]:
    """Raises click.UsageError for what was asked wrongly, click.ClickException for what went wrong."""
    from bench.experiments.catalogue import ExperimentError
    from bench.run.executor import Interrupted
    from bench.run.files import ResultFileError
    from bench.run.spec import SpecError
    from bench.run.workers import ExecutorError
    from bench.workload.dataset_error import DatasetError
    from gateway.core.decision.policies.registry import PolicyError

    try:
        yield
    except (SpecError, PolicyError) as error:
        raise click.UsageError(str(error)) from None
    except Interrupted as stop:
        raise _Stopped(str(stop)) from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}the disk is full; make room and give the same command again") from None
        raise click.ClickException(str(error)) from None
    except (ExperimentError, ExecutorError, ResultFileError, DatasetError, ValueError) as error:
        raise click.ClickException(str(error)) from None
