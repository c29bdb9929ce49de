"""Words for workloads that stand for more than a format: files of the data folder, and published distributions.

The data folder is `ASTROLABE_DATA`, else the user's cache. A file that is not there has a stand-in where one exists;
the notes say which was used.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from bench.data.datasets import DatasetName, DatasetSpec, cache_folder
from bench.data.own_file import check_workload_file, is_workload_file
from bench.workload.compose import fitting
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow
from bench.workload.power_law import LLUMNIX
from bench.workload.quantile_lengths import LLUMNIX_PRINTED
from engine_adapters.tokenizer import default_tokenizer

Draw = Callable[[np.random.Generator, int], "np.typing.NDArray[np.int64]"]


class NamedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in a file of the data folder."""

    kind: DatasetName
    path: str
    """Under the data folder."""
    about: str
    distinct: bool = False
    """Whether equal rows count once."""
    stand_in: DatasetName | None = None
    """What is taken when the file is not there."""


class NamedDraws(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths drawn anew for each seed."""

    prompt: Draw
    output: Draw
    about: str


def _llumnix(prompt: str, output: str) -> NamedDraws:
    return NamedDraws(
        prompt=LLUMNIX[prompt].draw_tokens,  # type: ignore[index]
        output=LLUMNIX[output].draw_tokens,  # type: ignore[index]
        about=f"{prompt} prompts, {output} answers: power laws of Llumnix, Table 1",
    )


NAMED: dict[str, NamedFile | NamedDraws] = {
    "block-sharegpt": NamedFile(
        kind="lengths",
        path="block_a30/sharegpt_val_10k_llama2.csv.gz",
        about="10,000 ShareGPT rows of Block, Llama-2 tokens",
        stand_in="sharegpt",
    ),
    "block-sharegpt-predicted": NamedFile(
        kind="lengths",
        path="block_a30/sharegpt-val-10k-predicted-len.csv.gz",
        about="ShareGPT rows of Block with the lengths that its RoBERTa tagger predicted",
        distinct=True,
    ),
    "burstgpt-like": NamedFile(
        kind="burstgpt",
        path="burstgpt_derived/SYNTHETIC_burstgpt_like_day20.csv.gz",
        about="lengths by published quantiles of BurstGPT, not its rows",
    ),
    "llumnix-sharegpt": NamedDraws(
        prompt=LLUMNIX_PRINTED["sharegpt"][0].draw_tokens,
        output=LLUMNIX_PRINTED["sharegpt"][1].draw_tokens,
        about="ShareGPT lengths by the mean, P50 and P99 of Llumnix, Table 1",
    ),
    "llumnix-burstgpt": NamedDraws(
        prompt=LLUMNIX_PRINTED["burstgpt"][0].draw_tokens,
        output=LLUMNIX_PRINTED["burstgpt"][1].draw_tokens,
        about="BurstGPT lengths by the mean, P50 and P99 of Llumnix, Table 1",
    ),
    "llumnix-s-s": _llumnix("short", "short"),
    "llumnix-m-m": _llumnix("medium", "medium"),
    "llumnix-l-l": _llumnix("long", "long"),
    "llumnix-s-l": _llumnix("short", "long"),
    "llumnix-l-s": _llumnix("long", "short"),
}


def dataset_names() -> list[str]:
    """All words that a workload can be asked for by, besides a path to a Python file."""
    return [*NAMED, *get_args(DatasetName)]


def check_name(name: str) -> None:
    """Raises DatasetError for an unknown word, with the one that was perhaps meant."""
    if is_workload_file(name):
        check_workload_file(name)
    elif name not in dataset_names():
        near = difflib.get_close_matches(name, dataset_names(), n=1)
        hint = f"Did you mean {near[0]!r}?" if near else ""
        raise DatasetError(
            "workload",
            f"unknown workload {name!r}",
            mend=f"{hint} There are: {', '.join(dataset_names())}, or a path to a .py file.".strip(),
        )


def data_folder() -> Path:
    """Where data files lie on this machine."""
    named = os.environ.get("ASTROLABE_DATA")
    return Path(named) if named else cache_folder() / "data"


def note_on(dataset: str, path: str = "") -> str:
    """What stands behind the word on this machine, in a line."""
    named = NAMED.get(dataset)
    if isinstance(named, NamedDraws):
        return named.about
    if isinstance(named, NamedFile):
        if (data_folder() / named.path).is_file():
            return named.about
        return f"{named.about}: not on this machine, {named.stand_in} in its place" if named.stand_in else named.about
    return f"{dataset} {path}".strip()


def dataset_of(word: str, named: NamedFile) -> tuple[DatasetSpec, bool]:
    """The file that the word stands for, or its stand-in, and whether equal rows count once. Raises DatasetError."""
    file = data_folder() / named.path
    if file.is_file():
        return DatasetSpec(name=named.kind, path=str(file)), named.distinct
    if named.stand_in is None:
        raise DatasetError(
            word, f"{file} is not there", mend="Put the file there, or name its folder with ASTROLABE_DATA."
        )
    return DatasetSpec(name=named.stand_in, tokenizer=default_tokenizer()), False


def drawn_rows(word: str, named: NamedDraws, *, seed: int, count: int, longest_tokens: int) -> list[DataRow]:
    """So many rows that fit. Raises DatasetError when no length does."""
    rng = np.random.default_rng((seed, 3))
    rows: list[DataRow] = []
    while len(rows) < count:
        prompts, outputs = named.prompt(rng, count), named.output(rng, count)
        drawn = [DataRow(prompt_tokens=int(p), output_tokens=int(o)) for p, o in zip(prompts, outputs, strict=True)]
        kept = fitting(drawn, longest_tokens)
        if not kept:
            raise DatasetError(word, f"no length fits {longest_tokens} tokens", mend="Allow more tokens.")
        rows += kept
    return rows[:count]
