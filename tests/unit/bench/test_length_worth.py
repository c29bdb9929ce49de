"""The study of what length beliefs are worth: equal requests for all, errors as told, shares that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.experiments import length_worth as lw
from bench.experiments import length_worth_report as report
from bench.measure.measures import GoodputSlo
from bench.run.spec import RunSpec
from length_model.baseline import ConstantModel
from tests.helpers.length_samples import made_samples

SAMPLES = made_samples(80, seed=3, censored_share=0.2)
BASE = RunSpec(nodes=1, max_num_seqs=8, num_blocks=300)


def test_runs_draw_finished_answers_only_and_the_same_for_one_seed() -> None:
    chosen = lw.drawn(SAMPLES, 50, 7)
    assert [s.sample_id for s in chosen] == [s.sample_id for s in lw.drawn(SAMPLES, 50, 7)]
    assert not any(s.censored for s in chosen)
    assert len({s.sample_id for s in chosen}) == 50
    assert len(lw.drawn(SAMPLES, 200, 7)) == 200, "a small file is gone through again"
    with pytest.raises(ValueError, match="no finished answers"):
        lw.drawn([s for s in SAMPLES if s.censored], 5, 0)


def test_predictions_are_the_models_or_the_truth_with_an_error_of_the_told_size() -> None:
    chosen = lw.drawn(SAMPLES, 2000, 0)
    truth = np.array([s.output_tokens for s in chosen])
    by_name = {k.name: k for k in lw.knowledges({"constant": ConstantModel()})}
    assert list(by_name) == [
        "oracle",
        "oracle, 25% error",
        "oracle, 50% error",
        "oracle, 100% error",
        "constant",
        "none",
    ]
    off = np.array([atoms[0] for atoms in lw.predictions(chosen, by_name["oracle, 25% error"], 0)])
    long = truth > 100
    assert np.std(off[long] / truth[long]) == pytest.approx(0.25, abs=0.03)
    wild = np.array([atoms[0] for atoms in lw.predictions(chosen, by_name["oracle, 100% error"], 0)])
    assert (wild[long] / truth[long]).min() == pytest.approx(0.1, abs=0.01)
    assert set(lw.predictions(chosen, by_name["constant"], 0)) == {lw.predictions(chosen, by_name["constant"], 1)[0]}
    assert set(lw.predictions(chosen, by_name["none"], 0)) == {()}


def test_a_study_runs_every_scheme_with_every_knowledge_on_the_same_requests(tmp_path: Path) -> None:
    seen: list[lw.Cell] = []
    found = lw.study(
        SAMPLES,
        {"constant": ConstantModel()},
        loads=(1.0, 1.5),
        seeds=(4,),
        requests=40,
        base=BASE,
        slo=GoodputSlo(ttft_s=2.0),
        on_cell=seen.append,
    )
    assert found.cells == seen
    assert len(seen) == len(lw.SCHEMES) * 6 * 2
    assert {round(c.rate_per_s / found.capacity_per_s, 6) for c in seen} == {1.0, 1.5}
    for scheme in lw.SCHEMES:
        assert report.share_of_oracle(found, scheme, "none", "e2e_mean_s") in (0.0, None)
        assert report.share_of_oracle(found, scheme, "oracle", "e2e_mean_s") in (1.0, None)
    text = report.markdown(found)
    assert text.count("| oracle |") == len(lw.SCHEMES)
    assert "1 simulated nodes, 40 requests a run" in text
    report.write_plot(tmp_path / "worth.png", found)
    assert (tmp_path / "worth.png").stat().st_size > 10_000
