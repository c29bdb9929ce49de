"""Step-time profiles by name or from a file of one's own (JSON, as `astrolabe bench profile fit` writes it)."""

from __future__ import annotations

import codecs
from pathlib import Path

import msgspec

from simcore.cost.profile import Profile, decode_profile
from simcore.cost.shipped import load_profile

SUFFIX = ".json"


def load_any_profile(name: str) -> Profile:
    """Raises ValueError: an unknown name, a file that is not there or is no profile."""
    if not name.endswith(SUFFIX):
        return load_profile(name)
    try:
        text = Path(name).read_bytes()
    except OSError as error:
        raise ValueError(f"profile file {name!r} cannot be read ({error.strerror}); check the path") from None
    try:
        # As some editors begin files.
        return decode_profile(text.removeprefix(codecs.BOM_UTF8))
    except msgspec.DecodeError as error:
        raise ValueError(
            f"profile file {name!r} is no step-time profile ({error}); `astrolabe bench profile fit` writes such files"
        ) from None
