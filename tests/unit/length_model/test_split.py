from __future__ import annotations

import pytest

from length_model.core.conversation import Turn
from length_model.core.query import LengthSample, make_query
from length_model.core.split import near_pairs, normalised, samples_of, split_samples
from tests.helpers.length_samples import made_samples

LONG = "Please write me a rather long and quite detailed story about the keeper of a lighthouse and her seven dogs who "
TEXT = LONG + "live on an island in the north where it rains every day of the year except on one"


def sample(group: str, prompt: str) -> LengthSample:
    return LengthSample(sample_id=f"{group}:0", group=group, query=make_query(prompt), output_tokens=10)


def test_a_conversation_stays_on_one_side_and_every_sample_has_one() -> None:
    samples = made_samples(600)
    manifest = split_samples(samples, seed=3)
    sides = {side: samples_of(samples, manifest, side) for side in ("train", "calibration", "test")}
    groups = {side: {s.group for s in found} for side, found in sides.items()}
    assert sum(map(len, sides.values())) == 600
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["calibration"]
    assert not groups["test"] & groups["calibration"]
    assert len(sides["test"]) == pytest.approx(120, abs=6)
    assert manifest.counts == {side: len(found) for side, found in sides.items()}


def test_the_split_depends_on_the_seed_alone() -> None:
    samples = made_samples(200)
    assert split_samples(samples, seed=1) == split_samples(list(reversed(samples)), seed=1)
    assert split_samples(samples, seed=1).side_of_group != split_samples(samples, seed=2).side_of_group


@pytest.mark.parametrize(
    "copy",
    [TEXT, TEXT.upper() + "!!", TEXT.replace("seven", "eight"), TEXT + " day that I forget"],
    ids=["same", "letter case and marks", "one word changed", "longer"],
)
def test_near_copies_are_joined(copy: str) -> None:
    others = [
        sample(f"g{i}", f"another question number {i} on the matter of {i * 17} different things") for i in range(40)
    ]
    for seed in range(8):
        manifest = split_samples([sample("a", TEXT), sample("b", copy), *others], seed=seed)
        assert manifest.side_of_group["a"] == manifest.side_of_group["b"]
        assert manifest.joined_groups == 2


def test_unrelated_texts_are_not_near() -> None:
    assert (
        near_pairs([normalised(TEXT), normalised("What is the capital of the country to the north of here and why")])
        == []
    )


def test_short_follow_ups_do_not_join_conversations() -> None:
    samples = []
    for i in range(50):
        said = [Turn("user", f"question {i}"), Turn("assistant", "well")]
        follow_up = make_query("continue", said)
        samples.append(LengthSample(sample_id=str(i), group=f"g{i}", query=follow_up, output_tokens=10))
    assert split_samples(samples).joined_groups == 0


@pytest.mark.parametrize(("calibration", "test"), [(0.5, 0.5), (0.1, 0.0), (-0.1, 0.2), (0.1, 1.0)])
def test_fractions_that_leave_nothing_are_refused(calibration: float, test: float) -> None:
    with pytest.raises(ValueError, match="fractions"):
        split_samples(made_samples(10), calibration=calibration, test=test)


def test_a_sample_of_an_unknown_conversation_is_refused() -> None:
    manifest = split_samples(made_samples(20))
    with pytest.raises(ValueError, match="'stranger'"):
        samples_of([sample("stranger", "hello")], manifest, "test")
