"""Step-time profiles in files of one's own."""

from __future__ import annotations

import codecs
from pathlib import Path

from engine_adapters.profile_file import load_any_profile
from simcore.cost.profile import encode_profile
from simcore.cost.shipped import load_profile


def test_a_profile_is_read_however_an_editor_begins_its_file(tmp_path: Path) -> None:
    profile = load_profile("a30/llama-2-7b")
    path = tmp_path / "mine.json"
    for mark in (b"", codecs.BOM_UTF8):
        path.write_bytes(mark + encode_profile(profile))
        assert load_any_profile(str(path)) == profile
