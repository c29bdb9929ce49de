"""What `astrolabe bench chaos` says before it breaks anything."""

from __future__ import annotations

from click.testing import CliRunner

from bench.commands.chaos import chaos


def test_the_list_has_whole_sentences_and_fits_a_terminal() -> None:
    shown = CliRunner().invoke(chaos, ["--list"], catch_exceptions=False).output
    assert "draws no more of them than others, and it is believed again. lying_pace" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80
