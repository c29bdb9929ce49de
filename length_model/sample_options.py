"""What the commands of `astrolabe length` share: where samples lie, how they are read, errors in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

DEFAULT_SAMPLES = "results/length/samples.jsonl"


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Errors of artefacts, samples, training, tokenizers and data sets (each a ValueError) as one line."""
    try:
        yield
    except (ValueError, ModuleNotFoundError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def can_plot(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuses a plot that could not be drawn before minutes of work, not after them."""
    if value is not None and find_spec("matplotlib") is None:
        raise click.BadParameter("plots need matplotlib: pip install 'astrolabe[bench]'", context, parameter)
    return value


def read_split(samples: Path) -> tuple[list[Any], Any]:
    from length_model.sample_files import SampleError, manifest_path, read_manifest, read_samples

    data, manifest = read_samples(samples), read_manifest(manifest_path(samples))
    if manifest.samples_sha256 != data.sha256:
        raise SampleError(
            f"{manifest_path(samples)} belongs to another sample file; run `astrolabe length sample` again"
        )
    return data.samples, manifest
