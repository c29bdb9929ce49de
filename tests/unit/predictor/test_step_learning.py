"""Step times learned from a trace: from wrong priors, through pauses, changes of speed and rubbish."""

from __future__ import annotations

import functools
import math
import random

import msgspec
import numpy as np
import pytest

from bench.profile.calibration import Hardware, Trace, learn, record, relative_errors
from bench.workload.item import WorkloadItem
from predictor.core.step_learning import RECENT_STEPS, StepLearner
from simcore.cost.shipped import load_profile
from simcore.cost.step_time import StepTimeModel
from simcore.trace import StepBatch
from simcore.types import EngineConfig

CONFIG = EngineConfig(model="m", max_num_seqs=48, max_num_batched_tokens=512, num_blocks=1052)
QUIET = Hardware(host_overhead_s=0.0, noise=0.0, pause_share=0.0)
SEED = 20


def shipped(name: str) -> StepTimeModel:
    return load_profile(name).step_time_model()


A30 = shipped("a30/llama-2-7b")
WRONG = {
    "three times slower": A30.scaled(3.0),
    "three times faster": A30.scaled(1 / 3),
    "another GPU": shipped("h100/llama-2-7b"),
    "another GPU and model": shipped("l40s/qwen2-7b"),
}


def workload(requests: int, seed: int) -> list[WorkloadItem]:
    """Lengths about as in conversations."""
    rng = random.Random(seed)
    items, arrival_s = [], 0.0
    for i in range(requests):
        arrival_s += rng.expovariate(2.2)
        items.append(
            WorkloadItem(
                request_id=str(i),
                arrival_s=arrival_s,
                prompt_tokens=min(2500, 1 + int(rng.lognormvariate(4.5, 1.3))),
                output_tokens=min(900, 1 + int(rng.lognormvariate(5.0, 1.0))),
            )
        )
    return items


@functools.cache
def trace(hardware: Hardware, steps: int = 4000, seed: int = SEED) -> Trace:
    return record(workload(steps // 2, seed), CONFIG, A30, hardware, steps=steps, seed=seed)


def fed(prior: StepTimeModel, what: Trace, steps: int | None = None) -> StepLearner:
    learner = StepLearner(prior)
    for batch, seconds in zip(what.batches[:steps], what.seconds[:steps], strict=True):
        learner.add(batch, seconds)
    return learner


def median_error(model: StepTimeModel, what: Trace, begin: int, end: int) -> float:
    return float(np.median(relative_errors(what, model, begin, end)))


def reached(steps: int | None) -> float:
    return math.inf if steps is None else steps


@pytest.mark.parametrize("seed", [20, 21, 22])
@pytest.mark.parametrize("prior", list(WRONG))
def test_a_wrong_prior_is_mended_within_the_bars(prior: str, seed: int) -> None:
    course = learn(trace(Hardware(), seed=seed), WRONG[prior], name=prior)
    ten, five = course.steps_to["10%"], course.steps_to["5%"]
    assert course.before > 0.1, "the prior is not wrong"
    assert reached(ten) <= 500
    assert reached(five) <= 3000
    assert course.final_prefill is not None
    assert course.final_prefill < 0.10


def test_bars_hold_under_heavy_noise_and_many_pauses() -> None:
    hard = Hardware(host_overhead_s=0.005, noise=0.05, pause_share=0.03)
    course = learn(trace(hard), WRONG["another GPU"], name="h100")
    ten, five = course.steps_to["10%"], course.steps_to["5%"]
    assert reached(ten) <= 500
    assert reached(five) <= 3000
    assert course.speed_changes_seen == 0, "a pause is no change of speed"


def test_a_known_model_is_recovered() -> None:
    what = trace(QUIET)
    learner = fed(A30.scaled(3.0), what, 3000)
    errors = relative_errors(what, learner.model, 3000, 4000)
    assert np.median(errors) < 0.001
    assert errors.max() < 0.02
    assert learner.learned().error < 0.001


def test_overhead_of_the_engine_is_learned() -> None:
    overhead_s = 0.006
    learner = fed(A30, trace(Hardware(host_overhead_s=overhead_s, noise=0.0, pause_share=0.0)))
    model = learner.model
    base_s = model.constant_s + model.dense_knots_s[0]
    told_s = A30.constant_s + A30.dense_knots_s[0]
    assert base_s - told_s == pytest.approx(overhead_s, rel=0.15)


def test_what_a_host_adds_to_steps_that_prefill_is_learned() -> None:
    true = msgspec.structs.replace(A30, prefill_step_s=0.008, prefill_seq_s=0.003)
    what = record(workload(2000, SEED), CONFIG, true, QUIET, steps=4000, seed=SEED)
    learner = fed(A30.scaled(2.0), what, 3000)
    errors = relative_errors(what, learner.model, 3000, 4000)
    prefills = np.array([batch.prefill_seqs for batch in what.batches[3000:]]) > 0
    told = relative_errors(what, A30, 3000, 4000)
    assert np.median(told[prefills]) > 0.1
    # A model that would change steps by less than 1 % in the mean is not put to use.
    assert np.median(errors[prefills]) < 0.03
    assert np.median(errors[~prefills]) < 0.01


def test_what_the_trace_does_not_show_follows_the_prior_at_the_learned_speed() -> None:
    what = trace(QUIET)
    learner = StepLearner(A30.scaled(3.0))
    for batch, seconds in zip(what.batches, what.seconds, strict=True):
        if not batch.prefill_tokens:
            learner.add(batch, seconds)
    long_prompt = StepBatch(512, 512.0 * 1500, 1, 0, 0)
    assert learner.model.seconds(long_prompt) == pytest.approx(A30.seconds(long_prompt), rel=0.05)


@pytest.mark.parametrize("factor", [0.4, 0.7, 1.5, 3.0])
@pytest.mark.parametrize("prior", ["three times slower", "another GPU"])
def test_a_change_of_speed_is_learned_again(prior: str, factor: float) -> None:
    hardware = Hardware(change_at_step=2000, change_factor=factor)
    course = learn(trace(hardware), WRONG[prior], name=prior, change_at_step=2000)
    assert reached(course.steps_to_again["10%"]) <= 300
    assert course.final < 0.05
    assert course.speed_changes_seen == 1


@pytest.mark.parametrize("duration_s", [0.0, -0.01, math.nan, math.inf, -math.inf, 1e-9, 1e6])
def test_what_is_no_duration_is_ignored(duration_s: float) -> None:
    learner = StepLearner(A30)
    for batch in trace(QUIET).batches[:200]:
        learner.add(batch, duration_s)
    assert (learner.steps, learner.ignored, learner.version) == (0, 200, 0)
    assert learner.model is A30
    assert math.isnan(learner.learned().error)


@pytest.mark.parametrize(
    "batch",
    [
        StepBatch(),
        StepBatch(prefill_tokens=10, prefill_work_tokens2=math.nan, prefill_seqs=1),
        StepBatch(prefill_tokens=10, prefill_work_tokens2=math.inf, prefill_seqs=1),
        StepBatch(prefill_tokens=10, prefill_work_tokens2=-1.0, prefill_seqs=1),
        StepBatch(decode_seqs=3, decode_kv_tokens=-5),
    ],
)
def test_what_is_no_batch_is_ignored(batch: StepBatch) -> None:
    learner = StepLearner(A30)
    for _ in range(100):
        learner.add(batch, 0.02)
    assert (learner.steps, learner.ignored, learner.model) == (0, 100, A30)


def test_ignored_steps_among_good_ones_change_nothing() -> None:
    what = trace(Hardware())
    clean, littered = StepLearner(A30.scaled(3.0)), StepLearner(A30.scaled(3.0))
    for i in range(500):
        clean.add(what.batches[i], what.seconds[i])
        littered.add(what.batches[i], what.seconds[i])
        littered.add(what.batches[i], math.nan)
    assert littered.model == clean.model


def test_rubbish_leaves_the_prior_in_use() -> None:
    rng = random.Random(SEED)
    what = trace(Hardware())
    learner = StepLearner(A30)
    for batch in what.batches[:2000]:
        learner.add(batch, 10 ** rng.uniform(-5, 3))
        assert learner.model is A30
    for batch, seconds in zip(what.batches[2000:], what.seconds[2000:], strict=True):
        learner.add(batch, seconds)
    learned = learner.learned()
    assert learned.is_learned
    assert learned.error < 0.05


def test_rubbish_after_learning_leaves_what_was_learned() -> None:
    rng = random.Random(SEED)
    what = trace(QUIET)
    learner = fed(A30.scaled(3.0), what, 2000)
    good = median_error(learner.model, what, 3000, 4000)
    assert good < 0.01
    for batch in what.batches[2000:3000]:
        learner.add(batch, 10 ** rng.uniform(-5, 3))
    assert median_error(learner.model, what, 3000, 4000) <= median_error(A30.scaled(3.0), what, 3000, 4000)


def test_a_right_prior_is_never_replaced() -> None:
    learner = fed(A30, trace(QUIET))
    assert learner.model is A30
    assert learner.version == 0
    assert not learner.learned().is_learned


def test_the_version_changes_with_the_model_and_seldom() -> None:
    what = trace(Hardware())
    learner = StepLearner(WRONG["another GPU"])
    seen: dict[int, StepTimeModel] = {}
    late = 0
    for step, (batch, seconds) in enumerate(zip(what.batches, what.seconds, strict=True)):
        before = learner.version
        learner.add(batch, seconds)
        assert learner.version in (before, before + 1)
        assert seen.setdefault(learner.version, learner.model) is learner.model
        late += step >= 1000 and learner.version != before
    assert 1 <= learner.version <= 40
    assert late <= 20, "forecasts would be thrown away for nothing"


def test_the_error_told_is_that_of_the_next_steps() -> None:
    what = trace(Hardware())
    learner = fed(WRONG["another GPU"], what, 3000)
    learned = learner.learned()
    assert learned.is_learned
    assert learned.error == pytest.approx(median_error(learner.model, what, 3000, 3000 + RECENT_STEPS), abs=0.02)
    assert learned.prior_error == pytest.approx(median_error(learner.prior, what, 2936, 3000), abs=0.05)
