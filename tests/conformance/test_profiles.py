"""Every shipped profile keeps the same promises; adding a file adds its tests."""

from __future__ import annotations

import importlib.resources
import math

import msgspec
import numpy as np
import pytest

from bench.profile.physics import impossible_steps
from bench.profile.recipe import shipped_recipes
from simcore.cost.model_shape import find_shape
from simcore.cost.profile import Coefficient, Profile, decode_profile, encode_profile
from simcore.cost.shipped import UnknownProfileError, load_profile, load_shipped, shipped_names
from simcore.trace import StepBatch

NAMES = shipped_names()
WORST_MEDIAN_ERROR = 0.055
WORST_P90_ERROR = 0.27
"""The tables of mixed batches reach contexts of 16k tokens in chunks of 16, whose KV reads the features do not see; and
one decoding sequence is never of uneven context, several are."""


def decode(seqs: int, context: int) -> StepBatch:
    return StepBatch(decode_seqs=seqs, decode_kv_tokens=seqs * context)


def prefill(tokens: int, context: int = 0) -> StepBatch:
    return StepBatch(prefill_tokens=tokens, prefill_work_tokens2=tokens * (context + tokens / 2), prefill_seqs=1)


@pytest.fixture(params=NAMES)
def profile(request: pytest.FixtureRequest) -> Profile:
    return load_profile(request.param)


def test_the_pairs_that_are_promised_are_there() -> None:
    models = ("llama-2-7b", "llama-3.1-8b", "qwen2-7b")
    assert {f"{gpu}/{model}" for gpu in ("a30", "a100", "h100", "h200", "l40s") for model in models} <= set(NAMES)
    # 70 billion parameters do not fit four A30.
    assert {f"{gpu}/llama-2-70b-tp4" for gpu in ("a100", "h100", "h200", "l40s")} <= set(NAMES)
    assert {name.partition("/")[0] for name in NAMES if "qwen3-32b" in name} >= {"a30", "a100", "h100", "h200", "l40s"}


def test_every_profile_has_a_recipe_and_the_reverse() -> None:
    assert sorted(shipped_recipes()) == NAMES


def test_every_coefficient_is_finite_and_says_where_it_comes_from(profile: Profile) -> None:
    for field in msgspec.structs.fields(profile):
        value = getattr(profile, field.name)
        if hasattr(value, "source"):
            assert len(value.source) > 10, field.name
        if hasattr(value, "value"):
            assert math.isfinite(value.value)
            assert value.value >= 0
    assert profile.decode_kv_s_per_token.value > 0
    assert profile.prefill_work_s_per_token2.value > 0
    assert profile.dense.tokens[-1] >= 2048


def test_steps_take_longer_with_more_work(profile: Profile) -> None:
    model = profile.step_time_model()
    for batches in (
        [decode(n, 500) for n in (1, 2, 8, 48, 128, 256)],
        [decode(32, n) for n in (1, 100, 1000, 10_000)],
        [prefill(n) for n in (1, 16, 64, 65, 128, 129, 512, 513, 2048, 8192)],
        [prefill(512, n) for n in (0, 512, 2048, 8192)],
    ):
        seconds = [model.seconds(b) for b in batches]
        assert seconds == sorted(seconds)


def test_no_step_beats_the_hardware(profile: Profile) -> None:
    assert impossible_steps(profile) == []


def test_the_profile_is_not_absurdly_slow(profile: Profile) -> None:
    """Were it five times faster, some step would beat the hardware."""
    if profile.expert_parallel > 1:
        pytest.skip("the roofline knows the GPU alone, this profile is bound by what replicas exchange")
    fifth = profile.step_time_model().scaled(0.2)
    assert impossible_steps(msgspec.structs.replace(profile, **_coefficients(profile, fifth))) != []


def _coefficients(profile: Profile, model: object) -> dict[str, object]:
    names = (
        "constant_s",
        "prefill_work_s_per_token2",
        "decode_kv_s_per_token",
        "per_seq_s",
        "mixed_decode_kv_s_per_token",
        "mixed_seq_s",
    )
    changed: dict[str, object] = {
        name: msgspec.structs.replace(getattr(profile, name), value=getattr(model, name)) for name in names
    }
    changed["dense"] = msgspec.structs.replace(profile.dense, seconds=getattr(model, "dense_knots_s"))  # noqa: B009
    return changed


def test_the_fit_states_its_error_and_it_is_small(profile: Profile) -> None:
    assert profile.fit.rows_fitted >= 100
    assert profile.fit.rows_held_out >= 20
    assert {"dense", "decode", "prefill", "mixed", "all"} <= set(profile.fit.median_error)
    assert profile.fit.median_error["all"] <= WORST_MEDIAN_ERROR
    assert profile.fit.p90_error["all"] <= WORST_P90_ERROR


def test_the_kv_hint_fits_the_gpu(profile: Profile) -> None:
    from simcore.cost.hardware import find_gpu

    shape, gpu = find_shape(profile.model), find_gpu(profile.gpu)
    tokens = profile.kv.num_blocks * profile.kv.block_size_tokens
    kv = tokens * shape.layers * shape.kv_bytes_per_token(profile.tensor_parallel)
    assert kv + shape.weight_bytes(profile.tensor_parallel) < gpu.capacity_bytes
    assert profile.kv.source


def test_names_say_what_they_are(profile: Profile) -> None:
    assert profile.name == f"{profile.gpu}/{find_shape(profile.model).short_name}{profile.suffix}"


def test_host_work_hides_behind_the_gpu_when_scheduling_is_asynchronous(profile: Profile) -> None:
    batch = decode(48, 350)
    exposed = profile.step_time_model().seconds(batch)
    hidden = profile.step_time_model(async_scheduling=True).seconds(batch)
    gap_s = profile.async_host.gap_s.value if profile.async_host else 0.0
    assert exposed - hidden == pytest.approx(profile.host_s.value + 48 * profile.host_seq_s.value - gap_s)
    assert load_shipped(profile.name, async_scheduling=True).seconds(batch) == hidden


def test_what_is_known_of_an_asynchronous_host_has_its_sources(profile: Profile) -> None:
    if profile.async_host is None:
        assert profile.step_time_model(async_scheduling=True).prefill_step_s == 0.0
        return
    for name in profile.async_host.__struct_fields__:
        coefficient = getattr(profile.async_host, name)
        assert coefficient.value >= 0.0
        assert len(coefficient.source) > 10
    model = profile.step_time_model(async_scheduling=True)
    assert model.constant_s == pytest.approx(profile.constant_s.value + profile.async_host.gap_s.value)
    assert model.prefill_step_s == profile.async_host.gap_prefill_s.value
    assert model.host_seq_s == profile.async_host.beside_seq_s.value
    assert profile.step_time_model().host_seq_s == 0.0, "where a step waits for the host all of it adds up"


def test_a_file_without_the_later_parts_is_read_as_before() -> None:
    with_host = load_profile("rtxpro6000/qwen3-32b-tp2")
    assert with_host.async_host is not None
    fields = msgspec.json.decode(encode_profile(with_host))
    del fields["async_host"]
    old = decode_profile(msgspec.json.encode(fields))
    assert old == msgspec.structs.replace(with_host, async_host=None)
    assert old.step_time_model() == with_host.step_time_model()
    assert old.step_time_model(async_scheduling=True).seconds(prefill(512)) == pytest.approx(
        with_host.step_time_model(async_scheduling=True).seconds(prefill(512))
        - with_host.async_host.gap_s.value
        - with_host.async_host.gap_prefill_s.value
    )


def test_sequences_taken_up_anew_have_a_price_where_the_device_waits_for_the_host() -> None:
    made = msgspec.structs.replace(load_profile(NAMES[0]), host_new_s=Coefficient(0.002, "made up for a test"))
    assert decode_profile(encode_profile(made)) == made
    plain = load_profile(NAMES[0])
    for asynchronous, price_s in ((False, 0.002), (True, 0.0)):
        seconds = [p.step_time_model(async_scheduling=asynchronous).seconds(prefill(512)) for p in (made, plain)]
        assert seconds[0] - seconds[1] == pytest.approx(price_s)


def test_what_replicas_share_is_part_of_the_dense_curve(profile: Profile) -> None:
    assert (profile.shared is not None) == (profile.expert_parallel > 1)
    if profile.shared is not None:
        for tokens in (1, 64, 512, 2048):
            shared = np.interp(tokens, profile.shared.tokens, profile.shared.seconds)
            assert 0.0 < shared < np.interp(tokens, profile.dense.tokens, profile.dense.seconds)


def test_a_profile_answers_to_the_hub_name_of_its_model(profile: Profile) -> None:
    suffix = profile.suffix
    for spelling in (profile.model, profile.model.rpartition("/")[2], profile.model.upper()):
        assert load_profile(f"{profile.gpu}/{spelling}{suffix}") is load_profile(profile.name)
    assert load_shipped(profile.name) == profile.step_time_model()


def test_files_are_written_as_the_fitting_command_writes_them() -> None:
    for entry in (importlib.resources.files("simcore") / "profiles").iterdir():
        raw = entry.read_bytes()
        found = decode_profile(raw)
        assert encode_profile(found) == raw, entry.name
        assert entry.name == found.name.replace("/", "-") + ".json"


def test_a_model_without_a_degree_is_that_on_the_fewest_gpus() -> None:
    assert load_profile("rtxpro6000/Qwen/Qwen3-32B").name == "rtxpro6000/qwen3-32b"
    assert load_profile("a100/llama-2-70b-hf").name == "a100/llama-2-70b-tp4"


def test_an_unknown_name_says_what_comes_close() -> None:
    with pytest.raises(UnknownProfileError, match=r"did you mean .*'a30/llama-2-7b'.* shipped: .*bench profile fit"):
        load_shipped("a30/lama-2-7b")


def test_a_model_alone_is_not_enough_when_several_gpus_have_it() -> None:
    with pytest.raises(UnknownProfileError, match=r"more than one GPU; say which: a100/llama-2-7b, a30/llama-2-7b"):
        load_shipped("meta-llama/Llama-2-7b-hf")


def test_a_profile_with_an_unknown_or_missing_field_is_refused() -> None:
    raw = msgspec.json.decode(encode_profile(load_profile(NAMES[0])))
    with pytest.raises(msgspec.ValidationError, match="unknown field `speed`"):
        decode_profile(msgspec.json.encode(raw | {"speed": 1}))
    raw.pop("per_seq_s")
    with pytest.raises(msgspec.ValidationError, match="missing required field `per_seq_s`"):
        decode_profile(msgspec.json.encode(raw))
