from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest

from simcore.prefix import block_hashes


def test_one_hash_per_full_block() -> None:
    assert len(block_hashes(range(47), 16)) == 2
    assert len(block_hashes(range(48), 16)) == 3
    assert block_hashes([], 16) == ()
    assert block_hashes([1, 2, 3], 16) == ()


def test_a_hash_stands_for_everything_before_it() -> None:
    a = block_hashes([1, 2, 3, 4, 5, 6], 2)
    assert block_hashes([1, 2, 3, 4, 9, 9], 2)[:2] == a[:2]
    changed = block_hashes([0, 2, 3, 4, 5, 6], 2)
    assert not set(changed) & set(a)


def test_a_chain_goes_on_from_the_name_of_any_block() -> None:
    ids = list(range(100, 180))
    whole = block_hashes(ids, 16)
    assert whole[:2] + block_hashes(ids[32:], 16, whole[1]) == whole
    assert block_hashes(ids[32:], 16)[0] != whole[2]


def test_all_blocks_of_many_prompts_have_their_own_hash() -> None:
    rng = random.Random(1)
    prompts = {tuple(rng.randrange(32_000) for _ in range(64)) for _ in range(500)}
    hashes = [h for p in prompts for h in block_hashes(p, 4)]
    assert len(set(hashes)) == len(hashes) == 16 * len(prompts)
    assert all(0 <= h < 2**64 for h in hashes)


def test_arrays_and_lists_are_alike() -> None:
    ids = [5, 70_000, 2**32 - 1, 0]
    assert block_hashes(np.array(ids, dtype=np.int64), 2) == block_hashes(ids, 2) == block_hashes(tuple(ids), 2)


def test_the_same_in_another_process() -> None:
    code = "from simcore.prefix import block_hashes; print(block_hashes(range(64), 16))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(block_hashes(range(64), 16))


def test_known_value() -> None:
    """Daemons of two versions must agree, so this never changes."""
    assert block_hashes(range(32), 16) == (10251598853290956434, 14413796365232270483)


@pytest.mark.parametrize("ids", [[-1, 2], [2**32, 1], [0.5, 1.0], [[1, 2], [3, 4]]])
def test_refuses_what_is_no_token_id(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="token ids"):
        block_hashes(ids, 2)


def test_refuses_a_block_without_tokens() -> None:
    with pytest.raises(ValueError, match="block_size_tokens"):
        block_hashes([1], 0)
