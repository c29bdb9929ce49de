"""Step-time profiles by name, from a file of one's own, or one that comes with the experiments."""

from __future__ import annotations

import predictor.profile_file
from bench.run.packaged import packaged_path
from simcore.cost.profile import Profile


def blocks_of(profile: str, block_size_tokens: int) -> int:
    """KV blocks of an engine of this profile when nobody says otherwise. Raises ValueError as `load_any_profile`."""
    kv = load_any_profile(profile).kv
    return max(1, kv.num_blocks * kv.block_size_tokens // block_size_tokens)


def load_any_profile(name: str) -> Profile:
    """Raises ValueError: an unknown name, a file that is not there or is no profile."""
    return predictor.profile_file.load_any_profile(packaged_path(name))
