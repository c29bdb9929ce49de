"""The encoder at inference says what the trained network says. Needs torch and transformers (the `length` extra)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from length_model import artifact
from length_model.distribution import pmf_from_hazards
from length_model.encoder import EncoderModel, hashed_part
from length_model.encoder_input import InputSizes, SpecialIds, padded, token_ids
from length_model.features import dense
from length_model.split import split_samples
from length_model.training import train_to_file
from tests.helpers.length_samples import made_samples
from tests.helpers.tiny_encoder import LetterTokenizer, tiny_encoder_artifact, tiny_hashed_arrays

SAMPLES = made_samples(150, seed=2, censored_share=0.1)


def tiny_folder(folder: Path, kind: str) -> Path:
    """A two-layer encoder with random weights and a word tokenizer, as a hub would hand it out."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] if kind == "bert" else ["<pad>", "<unk>", "<s>", "</s>"]
    words = sorted({w for s in SAMPLES for w in s.query.prompt.lower().split()})
    vocabulary = {w: i for i, w in enumerate([*marks, *words])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=marks[1]))
    raw.normalizer = tokenizers.normalizers.Lowercase()
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    raw.enable_padding(length=64)  # as sentence encoders come: must be switched off
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=marks[0], unk_token=marks[1], cls_token=marks[2], sep_token=marks[3]
    )
    sizes = {
        "vocab_size": len(vocabulary),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 130,
    }
    if kind == "bert":
        body = transformers.BertModel(transformers.BertConfig(**sizes))
    else:
        body = transformers.RobertaModel(transformers.RobertaConfig(**sizes, pad_token_id=0))
    body.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_numpy_says_what_torch_says(kind: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tiny_folder(tmp_path / "encoder", kind)
    from length_model import encoder_training as et

    recipe = et.EncoderRecipe(encoder=str(folder), epochs=1, batch=16, frozen_layers=1, low_precision=False)
    training, calibration = SAMPLES[:120], SAMPLES[120:]
    last = et.train(training, calibration, recipe)
    meta, arrays = et.finished(last, calibration, tiny_hashed_arrays())
    assert 0 <= meta["hashed_share"] <= 0.6
    identity = {**arrays, "knots": np.linspace(0.0, 1.0, 21)}
    read = artifact.from_bytes(artifact.to_bytes("encoder", meta, identity))
    ours = EncoderModel.from_artifact(read).own_pmf([s.query for s in calibration])

    network, tokenizer, special = et.build(recipe, training)
    state = {k: torch.tensor(np.asarray(v, dtype=np.float32)) for k, v in last.arrays.items() if k[:5] != "dense"}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("position_ids" in m or "token_type_ids" in m for m in missing)
    network.eval()
    ids, real = padded([token_ids(tokenizer, special, s.query) for s in calibration], special.pad)
    numbers = np.stack([dense(s.query) for s in calibration])
    x = (numbers - last.arrays["dense.mean"]) / last.arrays["dense.spread"]
    with torch.no_grad():
        logits = network(torch.tensor(ids), torch.tensor(real), torch.tensor(x, dtype=torch.float32))
    theirs = pmf_from_hazards(torch.sigmoid(logits).double().numpy())
    assert ours == pytest.approx(theirs, abs=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_training_writes_a_file_that_loads(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tiny_folder(tmp_path / "encoder", "bert")
    path = tmp_path / "encoder.alm"
    recipe = {"epochs": 1, "frozen_layers": 0}
    done = train_to_file("encoder", SAMPLES, split_samples(SAMPLES), path, encoder=str(folder), recipe=recipe)
    model = EncoderModel.from_artifact(artifact.load(path))
    assert model.sha256 == done.sha256
    assert model.pmf([s.query for s in SAMPLES]).sum(axis=1) == pytest.approx(1.0)


def test_rows_of_one_batch_do_not_see_each_other() -> None:
    model = EncoderModel(tiny_encoder_artifact(), LetterTokenizer())
    queries = [s.query for s in SAMPLES]
    assert model.pmf(queries) == pytest.approx(np.concatenate([model.pmf([q]) for q in queries]), abs=1e-6)
    assert np.ptp(model.pmf(queries), axis=0).max() > 1e-3


def test_the_hashed_model_has_its_share_of_the_say() -> None:
    queries = [s.query for s in SAMPLES[:20]]
    artifact_of = {share: tiny_encoder_artifact(hashed_share=share) for share in (0.0, 0.25, 1.0)}
    found = {share: EncoderModel(a, LetterTokenizer()).pmf(queries) for share, a in artifact_of.items()}
    assert found[1.0] == pytest.approx(hashed_part(artifact_of[1.0].arrays).pmf(queries), abs=1e-9)
    assert found[0.25] == pytest.approx(0.75 * found[0.0] + 0.25 * found[1.0], abs=1e-9)
    assert found[0.25].sum(axis=1) == pytest.approx(1.0)


def test_long_prompts_keep_their_beginning_and_their_end() -> None:
    special = SpecialIds(begin=1, separator=2, pad=0)
    query = SAMPLES[0].query
    short = token_ids(LetterTokenizer(), special, query)
    assert short[0] == 1
    assert short[-1] == 2
    sizes = InputSizes(prompt_head=48, prompt_tail=24)
    whole = type(query)(prompt="a" * 40 + "b" * 100_000 + "c" * 20)
    long = token_ids(LetterTokenizer(), special, whole, sizes)
    assert len(long) == 1 + 48 + 24 + 1
    letters = LetterTokenizer().encode("abc").ids
    assert long[1] == letters[0]
    assert long[-2] == letters[2]
