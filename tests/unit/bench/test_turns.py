"""Tables of turns: every answer is a request, its prompt is all that was said, and its beginning is shared."""

from __future__ import annotations

import itertools

import pytest

from bench.workload.dataset_error import DatasetError
from bench.workload.turns import BLOCK_TOKENS, SYSTEM_TOKENS, conversation_rows, parse_turns

PARTS = """conv,id,turn,role,chars,qwen_tokens,mistral_v1_tokens
0,abc_0,0,system,9,7,99
0,abc_0,1,human,9,100,99
0,abc_0,2,gpt,9,200,99
1,xyz_0,0,human,9,30,99
1,xyz_0,1,human,9,31,99
1,xyz_0,2,gpt,9,32,99
1,xyz_0,3,human,9,33,99
2,abc_3,1,gpt,9,50,99
2,abc_3,0,human,9,40,99
2,abc_3,2,gpt,9,60,99
2,abc_3,3,user,9,70,99
2,abc_3,4,assistant,9,80,99
"""


def test_prompts_hold_all_that_was_said_and_parts_are_put_together() -> None:
    parsed = parse_turns(PARTS.splitlines(), "t.csv")
    first, second, third, other = parsed.rows
    assert [row.session for row in parsed.rows] == ["abc", "abc", "abc", "xyz"]
    said = [row.prompt_tokens - SYSTEM_TOKENS for row in parsed.rows]
    assert said == [107, 107 + 200 + 40, 347 + 50 + 60 + 70, 61]
    assert [row.output_tokens for row in parsed.rows] == [200, 50, 80, 32]
    assert (first.think_s, other.think_s) == (None, None)
    assert (second.think_s or 0) > 0 < (third.think_s or 0)
    assert parsed.counts == {"rows": 12, "conversations": 2, "kept": 4}
    assert parse_turns(PARTS.splitlines(), "t.csv") == parsed


def test_names_are_shared_by_who_shares_the_text() -> None:
    first, second, third, other = parse_turns(PARTS.splitlines(), "t.csv").rows
    for before, row in itertools.pairwise((first, second, third)):
        assert row.prefix_ids[: len(before.prefix_ids)] == before.prefix_ids
        assert row.prompt_tokens // BLOCK_TOKENS == len(row.prefix_ids)
    system = tuple(range(SYSTEM_TOKENS // BLOCK_TOKENS))
    long = conversation_rows("long", [500], [9], [0.0], first_name=third.prefix_ids[-1] + 1)[0]
    for row in (first, other, long):
        assert row.prefix_ids[: len(system)] == system
    assert set(third.prefix_ids) & set(long.prefix_ids) == set(system)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("conv,turn,role\n0,0,human\n", "no column `tokens`"),
        ("conv,turn,role,tokens\n", "there are no rows"),
        ("conv,turn,role,tokens\n0,0,gpt,5\n0,1,human,5\n0,2,gpt,0\n", "no turn of a person is answered"),
        ("conv,turn,role,tokens\n0,0,human,many\n", "row 2: column `tokens`"),
        ("conv,turn,role,tokens\n0,first,human,1\n", "row 2: column `turn`"),
    ],
)
def test_what_cannot_be_used_is_one_clear_error(text: str, said: str) -> None:
    with pytest.raises(DatasetError, match=said):
        parse_turns(text.splitlines(), "t.csv")


def test_rows_that_cannot_be_read_are_counted() -> None:
    lines = ["conv,turn,role,tokens", "0,0,human,5", "0,1,gpt,many", "0,2,human,6", "0,3,gpt,7"]
    parsed = parse_turns(lines, "t.csv", skip_bad=True)
    assert [(row.prompt_tokens - SYSTEM_TOKENS, row.output_tokens) for row in parsed.rows] == [(11, 7)]
    assert any("1 row that cannot be read left out" in note for note in parsed.notes)
