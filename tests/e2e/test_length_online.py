"""How soon answers of another kind are learned, on recorded lengths."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.experiments.length_populations import BeliefWorth
from deploy.cli import LENGTH

pytestmark = pytest.mark.e2e


def test_within_500_answers_nine_tenths_of_the_way_are_gone(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", str(data_dir))
    said = CliRunner().invoke(LENGTH, ["online", "constant", "--seed", "0", "--judged", "1000", "--json"])
    assert said.exit_code == 0, said.output
    found = msgspec.json.decode(said.stdout, type=list[BeliefWorth])
    learned = {worth.population: worth for worth in found if worth.belief == "500 answers"}
    assert all(share is not None and share > 0.9 for share in learned["deepseek-r1"].closed)
    # The prior is nearly right there already: what is left is little, and its tenth no more than luck.
    own = next(worth for worth in found if (worth.population, worth.belief) == ("turns", "own distribution"))
    assert learned["turns"].crps_tokens == pytest.approx(own.crps_tokens, rel=0.01)
    assert all(0.85 < worth.under_p90 < 0.95 for worth in learned.values())
    tagged = {worth.belief: worth.crps_tokens for worth in found if worth.model == "client"}
    assert all(now < 0.75 * said for now, said in zip(tagged["500 answers"], tagged["as said"], strict=True))


def test_without_its_files_it_says_where_they_belong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASTROLABE_DATA", str(tmp_path))
    said = CliRunner().invoke(LENGTH, ["online"])
    assert said.exit_code == 1
    assert "deepseek-r1_arrivals.csv.gz" in said.output
