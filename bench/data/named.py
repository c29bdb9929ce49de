"""Words for workloads that stand for more than a format: files of the data folder, and published distributions.

The data folder is `ASTROLABE_DATA`, else the user's cache. A file that is not there has a stand-in where one exists;
the notes say which was used.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np

from bench.data.datasets import DatasetName, DatasetSpec, cache_folder
from bench.data.own_file import check_workload_file, is_workload_file
from bench.data.public_data import path_of
from bench.workload.compose import fitting
from bench.workload.dataset_error import DatasetError
from bench.workload.drawn import (
    AZURE_LIKE,
    LAB_STEPS,
    LLMD_HOT_SET,
    LLMD_PRIVATE_DOCUMENTS,
    LLMD_SHARED_PREFIX,
    LLMD_UNIFORM_POOL,
    LONG_AMONG_SHORT,
    SHAREGPT_CONVERSATIONS,
    DrawnRows,
    IndependentLengths,
    TimedRows,
)
from bench.workload.item import DataRow
from bench.workload.normal_lengths import NormalLengths
from bench.workload.power_law import LLUMNIX, PowerLawName
from bench.workload.quantile_lengths import LLUMNIX_PRINTED
from engine_adapters.tokenizer import default_tokenizer


class NamedFile(msgspec.Struct, frozen=True, kw_only=True):
    """Rows in a file of the data folder."""

    kind: DatasetName
    path: str
    """Under the data folder."""
    about: str
    distinct: bool = False
    """Whether equal rows count once."""
    stand_in: str | TimedRows = ""
    """What is taken when the file is not there: the packaged rows of `sharegpt`, a drawn workload, or a drawn trace."""
    public: str = ""
    """Its name among the public data sets, of which a fetched one will do too."""


class NamedDraws(msgspec.Struct, frozen=True, kw_only=True):
    """Rows drawn anew for each seed."""

    rows: DrawnRows
    about: str


def _llumnix(prompt: PowerLawName, output: PowerLawName) -> NamedDraws:
    return NamedDraws(
        rows=IndependentLengths(prompt=LLUMNIX[prompt], answer=LLUMNIX[output]),
        about=f"{prompt} prompts, {output} answers: power laws of Llumnix, Table 1",
    )


def _llumnix_printed(name: str, title: str) -> NamedDraws:
    prompt, answer = LLUMNIX_PRINTED[name]
    return NamedDraws(
        rows=IndependentLengths(prompt=prompt, answer=answer),
        about=f"{title} lengths by the mean, P50 and P99 of Llumnix, Table 1",
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
    "azure-conversation": NamedFile(
        kind="azure",
        path="azure2023/AzureLLMInferenceTrace_conv.csv.gz",
        about="19,366 conversations of Azure, 2023, in 58 minutes",
        stand_in=AZURE_LIKE,
    ),
    "vidur-lab": NamedFile(
        kind="lengths",
        path="vidur_autoscaling_lab/Synthetic_Trace1_1hr.csv.gz",
        about="126,000 requests of 256 + 1 tokens in an hour, 20, 30, 50, 40 a second, of the Vidur autoscaling lab",
        stand_in=LAB_STEPS,
    ),
    "mooncake-arxiv": NamedFile(
        kind="mooncake",
        path="mooncake/mooncake_arxiv_trace_first1000.jsonl.gz",
        about="first 1,000 requests of Mooncake's arXiv trace: conversations",
        public="mooncake-arxiv",
    ),
    "mooncake-synthetic": NamedFile(
        kind="mooncake",
        path="mooncake/synthetic_trace.jsonl.gz",
        about="3,993 requests of Mooncake's synthetic trace, 64 % of their prompt blocks shared",
        public="mooncake-synthetic",
    ),
    "llumnix-sharegpt": _llumnix_printed("sharegpt", "ShareGPT"),
    "llumnix-burstgpt": _llumnix_printed("burstgpt", "BurstGPT"),
    "llumnix-s-s": _llumnix("short", "short"),
    "llumnix-m-m": _llumnix("medium", "medium"),
    "llumnix-l-l": _llumnix("long", "long"),
    "llumnix-s-l": _llumnix("short", "long"),
    "llumnix-l-s": _llumnix("long", "short"),
    "llmd-shared-prefix": NamedDraws(
        rows=LLMD_SHARED_PREFIX,
        about="llm-d's shared prefixes: 150 of 6,000 tokens with 5 questions of 1,200 each, answers of 1,000",
    ),
    "llmd-uniform-pool": NamedDraws(
        rows=LLMD_UNIFORM_POOL,
        about="llm-d's uniform pool: 128 prefixes of 48,000 tokens, drawn alike; 256 more in, 64 out",
    ),
    "llmd-hot-set": NamedDraws(
        rows=LLMD_HOT_SET, about="llm-d's hot set: 8 prefixes of 48,000 tokens, drawn alike; 256 more in, 512 out"
    ),
    "llmd-private-documents": NamedDraws(
        rows=LLMD_PRIVATE_DOCUMENTS,
        about="llm-d's private documents: 192 of 48,000 tokens, one question of each in turn; 256 more in, 64 out",
    ),
    "llmd-slo": NamedDraws(
        rows=IndependentLengths(
            prompt=NormalLengths(mean_tokens=4000, deviation_tokens=300, shortest_tokens=3500, longest_tokens=4500),
            answer=NormalLengths(mean_tokens=1000, deviation_tokens=80, shortest_tokens=900, longest_tokens=1100),
        ),
        about="llm-d's SLO-aware autoscaling: prompts of 3,500 to 4,500 tokens, answers of 900 to 1,100",
    ),
    "conversations": NamedFile(
        kind="turns",
        path="sharegpt/turns.csv.gz",
        about="9,435 conversations of ShareGPT, 61,105 turns, each after the answer before it and about 5 s; all begin "
        "with the same 1,024 tokens",
        stand_in="drawn-conversations",
    ),
    "drawn-conversations": NamedDraws(
        rows=SHAREGPT_CONVERSATIONS,
        about="conversations by ShareGPT's quantiles: each turn after the answer before it and about 5 s; all begin "
        "with the same 1,024 tokens",
    ),
    "long-among-short": NamedDraws(
        rows=LONG_AMONG_SHORT,
        about="ShareGPT lengths by the mean, P50 and P99 of Llumnix, Table 1; 5 % of the prompts have 8k to 16k tokens",
    ),
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
        if file_of(named) is not None:
            return named.about
        stand_in = named.stand_in.about if isinstance(named.stand_in, TimedRows) else named.stand_in
        return f"{named.about}: not on this machine, {stand_in} in its place" if stand_in else named.about
    return f"{dataset} {path}".strip()


def file_of(named: NamedFile) -> Path | None:
    """Where the file lies on this machine; None when it does not."""
    places = [data_folder() / named.path, *([path_of(named.public)] if named.public else [])]
    return next((place for place in places if place.is_file()), None)


def check_there(word: str) -> None:
    """Raises DatasetError, which says how to get it, when the word's file and its stand-in are not on this machine."""
    if word in NAMED:
        found_for(word)


def found_for(word: str) -> tuple[DatasetSpec, bool] | NamedDraws | TimedRows:
    """What a word of `NAMED` stands for here: a file, or its stand-in, and whether equal rows count once; or
    draws.

    Raises DatasetError.
    """
    named = NAMED[word]
    if isinstance(named, NamedDraws):
        return named
    file = file_of(named)
    if file is not None:
        return DatasetSpec(name=named.kind, path=str(file)), named.distinct
    if isinstance(named.stand_in, TimedRows):
        return named.stand_in
    if named.stand_in in NAMED:
        return found_for(named.stand_in)
    if not named.stand_in:
        if named.public:
            raise DatasetError(
                word,
                f"{path_of(named.public)} is not there",
                mend=f"Fetch it with `astrolabe bench data fetch {named.public}`.",
            )
        raise DatasetError(
            word,
            f"{data_folder() / named.path} is not there",
            mend="Put the file there, or name its folder with ASTROLABE_DATA.",
        )
    return DatasetSpec(name="sharegpt", tokenizer=default_tokenizer()), False


def drawn_rows(word: str, named: NamedDraws, *, seed: int, count: int, longest_tokens: int) -> list[DataRow]:
    """So many rows that fit. Raises DatasetError when no length does."""
    rng = np.random.default_rng((seed, 3))
    rows: list[DataRow] = []
    while len(rows) < count:
        kept = fitting(named.rows.draw(rng, count), longest_tokens)
        if not kept:
            raise DatasetError(word, f"no length fits {longest_tokens} tokens", mend="Allow more tokens.")
        rows += kept
    return rows[:count]
