"""The encoder at inference says what the trained network says. What needs torch and transformers (the `length` extra)
is skipped without them; what torch said of a tiny network is on record, so that inference is held to it everywhere.

To write the record anew, with the extra installed: `python -m tests.conformance.test_length_encoder`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from length_model import artifact
from length_model.core.distribution import Floats, pmf_from_hazards
from length_model.core.encoder_input import InputSizes, SpecialIds, padded, token_ids
from length_model.core.features import dense
from length_model.core.split import split_samples
from length_model.encoder import EncoderModel, hashed_part
from length_model.training import TrainingError, train_to_file
from tests.helpers.length_samples import made_samples
from tests.helpers.tiny_encoder import LetterTokenizer, tiny_encoder_artifact, tiny_hashed_arrays

SAMPLES = made_samples(150, seed=2, censored_share=0.1)
RECORD = Path(__file__).with_name("tiny_encoder_by_torch.json")
RECORDED = [s.query for s in SAMPLES[:6]]


def tiny_of(kind: str) -> artifact.Artifact:
    """The made-up network; RoBERTa's differs in where its positions begin."""
    tiny = tiny_encoder_artifact()
    meta = {**tiny.meta, "architecture": kind, "pad_position": -1 if kind == "bert" else 0}
    return artifact.Artifact(kind="encoder", meta=meta, arrays=tiny.arrays)


def said_by_torch(kind: str) -> Floats:
    """[n, K]: the same network, run by torch and transformers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tiny = tiny_of(kind)
    sizes: dict[str, Any] = {
        "vocab_size": len(tiny.arrays["body.embeddings.word_embeddings.weight"]),
        "hidden_size": tiny.meta["width"],
        "num_hidden_layers": tiny.meta["layers"],
        "num_attention_heads": tiny.meta["heads"],
        "intermediate_size": len(tiny.arrays["body.encoder.layer.0.intermediate.dense.bias"]),
        "max_position_embeddings": len(tiny.arrays["body.embeddings.position_embeddings.weight"]),
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": tiny.meta["layer_norm_eps"],
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    if kind == "bert":
        body = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False)
    else:
        body = transformers.RobertaModel(transformers.RobertaConfig(**sizes), add_pooling_layer=False)
    w = {name: torch.tensor(array) for name, array in tiny.arrays.items()}
    own = {name.removeprefix("body."): array for name, array in w.items() if name.startswith("body.")}
    missing, unexpected = body.load_state_dict(own, strict=False)
    assert not unexpected
    assert all("position_ids" in name or "token_type_ids" in name for name in missing)
    body.eval()
    special = SpecialIds(**tiny.meta["special"])
    ids, real = padded([token_ids(LetterTokenizer(), special, q) for q in RECORDED], special.pad)
    with torch.no_grad():
        states = body(input_ids=torch.tensor(ids), attention_mask=torch.tensor(real)).last_hidden_state
        weight = torch.tensor(real)[:, :, None].float()
        pooled = (states * weight).sum(1) / weight.sum(1)
        joined = torch.cat([pooled, torch.tensor(np.stack([dense(q) for q in RECORDED]))], dim=1)
        hidden = torch.nn.functional.gelu(joined @ w["hidden.weight"].T + w["hidden.bias"], approximate="tanh")
        logits = hidden @ w["out.weight"].T + w["out.bias"]
    return pmf_from_hazards(torch.sigmoid(logits).double().numpy())


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_numpy_says_what_torch_said_when_it_was_asked(kind: str) -> None:
    ours = EncoderModel(tiny_of(kind), LetterTokenizer()).own_pmf(RECORDED)
    assert ours == pytest.approx(np.array(json.loads(RECORD.read_text())[kind]), abs=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_torch_still_says_what_is_on_record(kind: str) -> None:
    assert said_by_torch(kind) == pytest.approx(np.array(json.loads(RECORD.read_text())[kind]), abs=2e-6)


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
def test_training_writes_a_file_that_loads_after_every_epoch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tiny_folder(tmp_path / "encoder", "bert")
    path = tmp_path / "encoder.alm"
    recipe = {"epochs": 2, "frozen_layers": 0}
    told: list[str] = []
    found: dict[str, bool] = {}

    def tell(what: str, share: float) -> None:
        told.append(what)
        found[what] = path.exists()

    done = train_to_file(
        "encoder", SAMPLES, split_samples(SAMPLES), path, encoder=str(folder), recipe=recipe, progress=tell
    )
    model = EncoderModel.from_artifact(artifact.load(path))
    assert model.sha256 == done.sha256
    epochs = [what for what in told if what.startswith("epoch")]
    assert [what.split(":")[0] for what in epochs] == ["epoch 1", "epoch 2"]
    assert found[epochs[1]], "what the first epoch gave is on disk while the second is under way"
    assert model.pmf([s.query for s in SAMPLES]).sum(axis=1) == pytest.approx(1.0)


def spoilt(folder: Path, how: str) -> Path:
    """The tiny encoder's folder with one thing wrong."""
    if how == "no such folder":
        return folder / "absent"
    tiny_folder(folder, "bert")
    config = json.loads((folder / "config.json").read_text())
    if how == "another architecture":
        config["model_type"] = "distilbert"
    elif how == "another activation":
        config["hidden_act"] = "relu"
    elif how == "broken weights":
        (folder / "model.safetensors").write_bytes(b"rubbish")
    elif how == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    (folder / "config.json").write_text("{" if how == "broken config" else json.dumps(config))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ("no such folder", "no such folder"),
        ("broken config", "cannot be loaded"),
        ("broken weights", "cannot be loaded"),
        ("no tokenizer", "tokenizer"),
        ("another architecture", "'distilbert' model, usable are bert, roberta"),
        ("another activation", "activation 'relu'"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_one_clear_line(how: str, complaint: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = spoilt(tmp_path / "encoder", how)
    path = tmp_path / "encoder.alm"
    with pytest.raises(TrainingError, match=complaint) as caught:
        train_to_file("encoder", SAMPLES, split_samples(SAMPLES), path, encoder=str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.exists()


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


if __name__ == "__main__":
    RECORD.write_text(json.dumps({k: said_by_torch(k).round(7).tolist() for k in ("bert", "roberta")}) + "\n")
