"""Workloads by one word: files under the data folder, generators, one's own Python file. Reads and caches rows.

The data folder is `ASTROLABE_DATA`, else `../shared/data` beside the checkout, else the user's cache. A file that is
not there has a stand-in where one exists; the notes say which was used.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from bench.data.datasets import DatasetName, DatasetSpec, cache_folder, load_dataset
from bench.data.own_file import check_workload_file, fitting_items, is_workload_file, items_of_file
from bench.workload.arrivals import ArrivalKind
from bench.workload.compose import fitting, generated, recorded
from bench.workload.dataset_error import DatasetError
from bench.workload.item import DataRow, WorkloadItem
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
    stand_in: str = ""
    """Named data taken when the file is not there; empty: none."""


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


class WorkloadWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs of a workload."""

    dataset: str
    path: str
    seed: int
    rate_per_s: float | None
    rate_scale: float
    requests: int
    arrivals: ArrivalKind
    burstiness: float
    in_order: bool
    longest_tokens: int
    """Rows longer than this, prompt and answer, are left out."""


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
    if named:
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return beside if beside.is_dir() else cache_folder() / "data"


def make_workload(wish: WorkloadWish) -> list[WorkloadItem]:
    """The requests of one run. Raises DatasetError, ValueError."""
    if is_workload_file(wish.dataset):
        made = items_of_file(wish.dataset, rate_per_s=wish.rate_per_s, requests=wish.requests, seed=wish.seed)
        items = fitting_items(made, wish.longest_tokens, wish.dataset)
    else:
        rows = rows_of(wish)
        if wish.rate_per_s is None:
            items = recorded(rows, rate_scale=wish.rate_scale, count=wish.requests)
        else:
            items = generated(
                rows,
                seed=wish.seed,
                kind=wish.arrivals,
                rate_per_s=wish.rate_per_s,
                burstiness=wish.burstiness,
                count=wish.requests,
                shuffle=not wish.in_order,
            )
    # Simulated nodes read lengths only.
    return [msgspec.structs.replace(item, prompt="") if item.prompt else item for item in items]


def rows_of(wish: WorkloadWish) -> list[DataRow]:
    """Rows that fit, from a file (kept in memory) or drawn."""
    check_name(wish.dataset)
    named = NAMED.get(wish.dataset)
    if isinstance(named, NamedDraws):
        return _drawn(named, wish)
    rows = list(_file_rows(wish.dataset, wish.path, wish.longest_tokens))
    if not rows:
        raise DatasetError(
            wish.dataset,
            f"every row is longer than {wish.longest_tokens:,} tokens, prompt and answer together",
            mend="Use an engine with a longer context or another workload.",
        )
    return rows


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


@functools.lru_cache(maxsize=8)
def _file_rows(dataset: str, path: str, longest_tokens: int) -> tuple[DataRow, ...]:
    named = NAMED.get(dataset)
    if isinstance(named, NamedFile):
        file = data_folder() / named.path
        if not file.is_file():
            if named.stand_in:
                return _file_rows(named.stand_in, "", longest_tokens)
            raise DatasetError(
                dataset, f"{file} is not there", mend="Put the file there, or name its folder with ASTROLABE_DATA."
            )
        parsed = load_dataset(DatasetSpec(name=named.kind, path=str(file)))
        rows = list(dict.fromkeys(parsed.rows)) if named.distinct else parsed.rows
    else:
        spec = DatasetSpec(name=dataset, path=path, tokenizer=default_tokenizer())  # type: ignore[arg-type]
        rows = load_dataset(spec).rows
    return tuple(fitting(rows, longest_tokens))


def _drawn(named: NamedDraws, wish: WorkloadWish) -> list[DataRow]:
    rng = np.random.default_rng((wish.seed, 3))
    rows: list[DataRow] = []
    while len(rows) < wish.requests:
        prompts, outputs = named.prompt(rng, wish.requests), named.output(rng, wish.requests)
        drawn = [DataRow(prompt_tokens=int(p), output_tokens=int(o)) for p, o in zip(prompts, outputs, strict=True)]
        kept = fitting(drawn, wish.longest_tokens)
        if not kept:
            raise DatasetError(wish.dataset, f"no length fits {wish.longest_tokens} tokens", mend="Allow more tokens.")
        rows += kept
    return rows[: wish.requests]
