"""Fleets from files, by name and in their short form; what cannot be a fleet is one clear error."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.fleet import FleetError, NodeGroup, read_fleet, shipped_fleets
from engine_adapters.profile_file import load_any_profile

GROUP = """
[[group]]
count = 2
profile = "a30/llama-2-7b"
"""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_file_says_all_of_a_group(tmp_path: Path) -> None:
    text = """
    currency = "EUR"
    note = "what we pay"
    [[group]]
    name = "old"
    count = 2
    profile = "a30/llama-2-7b"
    model = "ours"
    max_num_seqs = 24
    max_num_batched_tokens = 256
    block_size_tokens = 32
    num_blocks = 500
    max_model_len_tokens = 2048
    prefix_caching = false
    price_per_hour = 0.5
    labels = {zone = "a"}
    [[group]]
    count = 1
    profile = "h100/llama-2-7b"
    model = "ours"
    price_per_hour = 3
    """
    fleet = read_fleet(written(tmp_path, text))
    old, new = fleet.group
    assert (fleet.size, fleet.models, fleet.currency, fleet.price_per_hour) == (3, ["ours"], "EUR", 4.0)
    assert old.labels == {"zone": "a"}
    assert old.node_options() == {
        "profile": "a30/llama-2-7b",
        "model": "ours",
        "max_num_seqs": 24,
        "max_num_batched_tokens": 256,
        "block_size_tokens": 32,
        "num_blocks": 500,
        "max_model_len_tokens": 2048,
        "no_prefix_caching": True,
    }
    assert new.node_options() == {"profile": "h100/llama-2-7b", "model": "ours"}
    assert old.node_ids() + new.node_ids() == ["old-0", "old-1", "h100-0"]


def test_the_short_form_is_the_same_record(tmp_path: Path) -> None:
    assert read_fleet("2*a30/llama-2-7b") == read_fleet(written(tmp_path, GROUP))


def test_a_gpu_that_is_there_twice_names_no_group() -> None:
    fleet = read_fleet("1*a30/llama-2-7b,1*a30/qwen2-7b,1*h100/qwen2-7b")
    assert [group.name for group in fleet.group] == ["a30-llama-2-7b", "a30-qwen2-7b", "h100"]
    assert fleet.models == ["llama-2-7b", "qwen2-7b"]
    assert fleet.price_per_hour is None


def test_a_model_on_several_gpus_is_the_same_model() -> None:
    assert read_fleet("1*h200/qwen3-32b,1*a30/qwen3-32b-tp4").models == ["qwen3-32b"]


def test_a_profile_file_lies_beside_the_fleet(tmp_path: Path) -> None:
    import msgspec

    (tmp_path / "mine.json").write_bytes(msgspec.json.encode(load_any_profile("a30/llama-2-7b")))
    fleet = read_fleet(written(tmp_path, GROUP.replace("a30/llama-2-7b", "mine.json")))
    assert fleet.profile_files == [str(tmp_path / "mine.json")]


def test_the_shipped_fleets_can_be_read() -> None:
    assert shipped_fleets() == ["a30x12", "h100-l40s", "mixed"]
    sizes = {name: read_fleet(name).size for name in shipped_fleets()}
    assert sizes == {"a30x12": 12, "h100-l40s": 4, "mixed": 12}
    for name in shipped_fleets():
        fleet = read_fleet(name)
        assert len(fleet.models) == 1
        assert fleet.price_per_hour is not None
        assert "examples" in fleet.note, "nobody may take the prices for a quotation"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no groups; write at least one [[group]]"),
        ("group = []\n", "no groups"),
        (GROUP.replace("count", "cuont"), "unknown key 'cuont' in [group 1]; did you mean 'count' in [group 1]?"),
        (GROUP + GROUP.replace("profile", "profil"), "unknown key 'profil' in [group 2]; did you mean 'profile'"),
        ("currancy = 'EUR'\n" + GROUP, "unknown key 'currancy'; did you mean 'currency'?"),
        (GROUP.replace("a30/", "a31/"), "[group 1]: no shipped step-time profile 'a31/llama-2-7b'; did you mean"),
        (GROUP.replace("a30/llama-2-7b", "none.json"), "cannot be read"),
        (GROUP.replace("2", "0", 1), "key 'count' in [group 1]: expected 'int' >= 1"),
        (GROUP.replace("count = 2", ""), "[group 1]: Object missing required field 'count'"),
        (GROUP + "num_blocks = 0\n", "key 'num_blocks' in [group 1]: expected"),
        (
            GROUP + "num_blocks = 1\nblock_size_tokens = 1\n",
            "1 KV blocks of 1 tokens hold no request; raise num_blocks",
        ),
        (GROUP + "name = 'x'\n" + GROUP + "name = 'x'\n", "[group 1]: the name 'x' is there 2 times"),
        (GROUP + GROUP, "the name 'a30-llama-2-7b' is there 2 times; give each group a name of its own"),
        (GROUP + "name = 'a b'\n", "key 'name' in [group 1]"),
        (GROUP + "price_per_hour = -1\n", "key 'price_per_hour' in [group 1]: expected 'float' >= 0"),
        (GROUP + "labels = {a = 1}\n", "labels"),
        (GROUP + "min = 3\nmax = 2\n", "[group 1]: min 3 is above max 2; lower it"),
        (GROUP + "min = 3\n", "[group 1]: min 3 is above count 2; lower it"),
        ("group = 3\n", "key 'group': expected"),
        ("[[group]\n", "is not valid TOML"),
    ],
)
def test_a_bad_file_is_one_error_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(FleetError) as refused:
        read_fleet(path)
    assert str(refused.value).startswith(path)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mixd", "did you mean 'mixed'? shipped fleets are a30x12, h100-l40s, mixed"),
        ("no-such.toml", "no-such.toml: no such file"),
        ("0*a30/llama-2-7b", "write COUNT*PROFILE,..."),
        ("2*a31/llama-2-7b", "[group 1]: no shipped step-time profile"),
    ],
)
def test_what_names_no_fleet_is_one_error(text: str, says: str) -> None:
    with pytest.raises(FleetError) as refused:
        read_fleet(text)
    assert says in str(refused.value)


def test_what_is_not_said_stays_open() -> None:
    group = NodeGroup(count=1, profile="a30/llama-2-7b")
    assert group.node_options() == {"profile": "a30/llama-2-7b"}
