"""A ShareGPT file cut at any byte, fed in pieces of any size, yields exactly the conversations that are complete."""

from __future__ import annotations

import codecs
import json

from hypothesis import given
from hypothesis import strategies as st

from bench.workload.dataset_error import DatasetError
from bench.workload.sharegpt import Pair, ShareGptReader, ShareGptReport

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "user", "chatgpt", "system"]), "value": TEXT})
CONVERSATION = st.fixed_dictionaries({"id": TEXT, "conversations": st.lists(TURN, max_size=4)})
FILE = st.tuples(st.lists(CONVERSATION, min_size=1, max_size=5), st.sampled_from([None, 2]), st.booleans())


def read(data: bytes, piece_bytes: int) -> tuple[list[Pair], ShareGptReport]:
    reader = ShareGptReader("s.json")
    pairs: list[Pair] = []
    decoder = codecs.getincrementaldecoder("utf-8")()
    for at in range(0, len(data), piece_bytes):
        pairs += reader.feed(decoder.decode(data[at : at + piece_bytes]))
    rest, report = reader.finish()
    return pairs + rest, report


def complete_within(conversations: list[object], data: bytes, cut: int, encode: json.JSONEncoder) -> int:
    """How many conversations end at or before byte `cut`, found by looking for each one's own text."""
    at = complete = 0
    for conversation in conversations:
        piece = encode.encode([conversation])[1:-1].strip().encode()
        at = data.index(piece, at) + len(piece)
        complete += at <= cut
    return complete


@given(FILE, st.data())
def test_every_complete_conversation_before_the_cut_is_kept(
    file: tuple[list[object], int | None, bool], data: st.DataObject
) -> None:
    conversations, indent, ascii_only = file
    encode = json.JSONEncoder(indent=None, ensure_ascii=ascii_only)
    inner = (",\n" if indent else ", ").join(encode.encode(c) for c in conversations)
    whole = f"[{inner}]".encode()
    cut = data.draw(st.integers(0, len(whole)), label="cut")
    piece_bytes = data.draw(st.integers(1, 64), label="piece")
    complete = complete_within(conversations, whole, cut, encode)
    if complete == 0:
        try:
            read(whole[:cut], piece_bytes)
        except DatasetError:
            return
        raise AssertionError("nothing complete was there, and no error came")
    pairs, report = read(whole[:cut], piece_bytes)
    assert report.conversations == complete
    assert report.cut_off == (cut < len(whole))
    uncut, _ = read(whole, len(whole))
    assert pairs == uncut[: len(pairs)]
    assert len(pairs) == complete - report.empty - report.without_pair


@given(FILE, st.integers(1, 50))
def test_the_size_of_the_pieces_does_not_matter(file: tuple[list[object], int | None, bool], piece_bytes: int) -> None:
    conversations, indent, ascii_only = file
    whole = json.dumps(conversations, indent=indent, ensure_ascii=ascii_only).encode()
    assert read(whole, piece_bytes) == read(whole, len(whole))
