"""The step-time profiles that come with the distribution, under `simcore/profiles/*.json`.

This module is the one exception to "simcore opens no file": it reads package data through `importlib.resources`, and
nothing else of simcore does.
"""

from __future__ import annotations

import difflib
import functools
import importlib.resources
import re

from simcore.cost.hardware import UnknownHardwareError, find_gpu
from simcore.cost.model_shape import find_shape
from simcore.cost.profile import Profile, decode_profile
from simcore.cost.roofline import estimate
from simcore.cost.step_time import StepTimeModel


class UnknownProfileError(ValueError):
    """No shipped profile answers to that name; the message says which come close."""


@functools.cache
def _catalogue() -> dict[str, Profile]:
    """Profiles by name, sorted."""
    folder = importlib.resources.files("simcore") / "profiles"
    profiles = [decode_profile(entry.read_bytes()) for entry in folder.iterdir() if entry.name.endswith(".json")]
    return {p.name: p for p in sorted(profiles, key=lambda p: p.name)}


@functools.cache
def _aliases() -> dict[str, tuple[str, ...]]:
    """Every accepted spelling in lower case, and the profiles it may mean."""
    spellings: dict[str, list[str]] = {}
    for profile in _catalogue().values():
        suffix = profile.suffix
        hub, short = profile.model, profile.model.rpartition("/")[2]
        tail = profile.name.partition("/")[2]
        models = {hub + suffix, short + suffix}
        if profile.expert_parallel == 1:
            models |= {hub, short}
        own = {profile.name, *profile.aliases, tail, *models, *(f"{profile.gpu}/{x}" for x in models)}
        for spelling in own:
            spellings.setdefault(spelling.lower(), []).append(profile.name)
    return {spelling: tuple(names) for spelling, names in spellings.items()}


def shipped_names() -> list[str]:
    """Names of all shipped profiles, sorted: `a30/llama-2-7b`, ..."""
    return list(_catalogue())


def load_profile(name: str) -> Profile:
    """The shipped profile of that name, with sources and fit error.

    `name` is one of `shipped_names()`, or the same with the model's hub name (`a30/meta-llama/Llama-2-7b-hf`), or a
    model name alone if only one GPU has it; without a tensor parallel degree it is that of the fewest GPUs. Case does
    not matter. Raises `UnknownProfileError` (a ValueError).
    """
    wanted = name.strip().lower()
    catalogue = _catalogue()
    if wanted in catalogue:
        return catalogue[wanted]
    meant = _aliases().get(wanted, ())
    if len({catalogue[name].gpu for name in meant}) == 1:
        # Without a degree: on as few GPUs as it is shipped for.
        return min((catalogue[name] for name in meant), key=lambda p: p.tensor_parallel)
    if meant:
        raise UnknownProfileError(f"profile {name!r} fits more than one GPU; say which: {', '.join(meant)}")
    close = difflib.get_close_matches(wanted, {*catalogue, *_aliases()}, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    raise UnknownProfileError(
        f"no shipped step-time profile {name!r}; {hint}shipped: {', '.join(catalogue)}. "
        "Another pair can be fitted with `astrolabe bench profile fit`"
    )


def load_shipped(name: str, *, async_scheduling: bool = False) -> StepTimeModel:
    """The step-time model of a shipped profile. Names and errors as for `load_profile`."""
    return load_profile(name).step_time_model(async_scheduling=async_scheduling)


def load_or_estimate(name: str) -> Profile:
    """The shipped profile of that name or, for a known GPU and model that nobody has measured (`l4/llama-3.1-8b`,
    `a40/qwen3-32b-tp4`), a roofline estimate that is marked as such and states its expected error.

    Raises ValueError (`UnknownProfileError`, `UnknownHardwareError`) for names of neither.
    """
    try:
        return load_profile(name)
    except UnknownProfileError as unknown:
        pair = re.fullmatch(r"([^/]+)/(.+?)(?:-tp([1-9]\d?))?", name.strip().lower())
        if pair is None:
            raise
        try:
            gpu, shape = find_gpu(pair[1]), find_shape(pair[2])
        except UnknownHardwareError:
            raise unknown from None
        return estimate(gpu, shape, int(pair[3] or 1))
