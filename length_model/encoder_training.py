# mypy: disable-error-code="import-not-found,misc,no-any-return"
"""Fine-tunes a BERT-like encoder (MiniLM, RoBERTa, ...) to give hazards. Needs torch and transformers.

Mean-pooled token states joined with the numbers of `features.dense`, one hidden layer, one logit per bucket; the loss
is the negative log-likelihood of discrete-time survival, which takes censored answers as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from length_model.artifact import Artifact
from length_model.baseline import kaplan_meier
from length_model.core.distribution import Floats, Ints, bucket_of, exposure, log_edges, pmf_from_hazards
from length_model.core.encoder_input import InputSizes, SpecialIds, padded, token_ids
from length_model.core.features import DENSE_FEATURES, FEATURES_VERSION, dense
from length_model.core.query import LengthSample
from length_model.core.recalibration import KNOTS, knots_from_pits, pits
from length_model.core.scoring import crps
from length_model.encoder import HASHED, EncoderModel, hashed_part, stored_arrays

LIKE_ROBERTA = ("roberta", "xlm-roberta", "camembert")
"""Architectures whose positions begin behind that of the padding; `bert` counts from 0."""

GELU = ("gelu", "gelu_new", "gelu_pytorch_tanh")
"""Activations that come out as the one which inference knows."""

HASHED_SHARES = tuple(round(0.05 * i, 2) for i in range(13))
"""Shares of the hashed model's say that are tried."""


class EncoderRecipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train."""

    encoder: str
    """Folder with `config.json`, `tokenizer.json` and weights, or a name on the user's hub."""
    epochs: int = 2
    batch: int = 32
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warm_up: float = 0.05
    """Share of all steps."""
    dropout: float = 0.2
    hidden: int = 128
    input: InputSizes = InputSizes()
    frozen_layers: int = 3
    """Lowest layers that stay as they came (the embeddings always do): a third of the time saved."""
    seed: int = 0
    low_precision: bool = True
    """bfloat16 matrix products: twice as fast where the CPU has them."""


class Epoch(msgspec.Struct, frozen=True, kw_only=True):
    """Where training stands."""

    epoch: int
    share: float
    """Share of all epochs that is done, 0 to 1."""
    calibration_crps: float
    """CRPS of the network alone, before it is mixed and recalibrated; tokens."""
    arrays: dict[str, Any]
    meta: dict[str, Any]
    tokenizer_json: str


class UnfitEncoderError(ValueError):
    """An encoder that could be trained, but not be run by inference."""


class LengthEncoder(torch.nn.Module):
    def __init__(self, body: torch.nn.Module, *, width: int, numbers: int, recipe: EncoderRecipe, bias: Floats) -> None:
        super().__init__()
        self.body = body
        self.drop = torch.nn.Dropout(recipe.dropout)
        self.hidden = torch.nn.Linear(width + numbers, recipe.hidden)
        self.out = torch.nn.Linear(recipe.hidden, len(bias))
        torch.nn.init.zeros_(self.out.weight)
        self.out.bias.data = torch.tensor(bias, dtype=torch.float32)

    def forward(self, ids: torch.Tensor, real: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        states = self.body(input_ids=ids, attention_mask=real).last_hidden_state.float()
        weight = real[:, :, None].float()
        pooled = (states * weight).sum(1) / weight.sum(1)
        joined = torch.cat([self.drop(pooled), numbers], dim=1)
        logits: torch.Tensor = self.out(self.drop(functional.gelu(self.hidden(joined), approximate="tanh")))
        return logits


def survival_loss(
    logits: torch.Tensor, bucket: torch.Tensor, censored: torch.Tensor, exposure: torch.Tensor
) -> torch.Tensor:
    """Mean negative log-likelihood. logits [n, K], the others [n]; a cut answer survived the buckets before its own
    and the part `exposure` of its own."""
    columns = torch.arange(logits.shape[1])[None, :]
    own = columns == bucket[:, None]
    at_risk = (columns < bucket[:, None]) + own * exposure[:, None]
    per_bucket = functional.softplus(logits) * at_risk - logits * (own & ~censored[:, None])
    return per_bucket.sum(1).mean()


def build(recipe: EncoderRecipe, training: Sequence[LengthSample]) -> tuple[LengthEncoder, Tokenizer, SpecialIds]:
    """The network before training, its lowest layers frozen, its head at everybody's hazards; and its tokenizer.

    Raises ValueError for an encoder that cannot be loaded, or that inference could not run.
    """
    torch.manual_seed(recipe.seed)
    config, tokenizer, body = _loaded(recipe.encoder)
    _freeze(body, recipe.frozen_layers)
    bias = hazard_logits(log_edges(), training)
    width = int(config.hidden_size)
    model = LengthEncoder(body, width=width, numbers=len(DENSE_FEATURES), recipe=recipe, bias=bias)
    return model, tokenizer, special_ids(tokenizer)


def _loaded(encoder: str) -> tuple[Any, Tokenizer, torch.nn.Module]:
    # Its bar and its report of heads that are left out on purpose would tear up the caller's own progress.
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if encoder.startswith((".", "/", "~")) and not Path(encoder).is_dir():
        raise ValueError(f"encoder {encoder}: no such folder")
    try:
        config = AutoConfig.from_pretrained(encoder)
        _check_architecture(encoder, config)
        config.hidden_act = "gelu_pytorch_tanh"  # the form that needs no erf at inference
        tokenizer = AutoTokenizer.from_pretrained(encoder, use_fast=True).backend_tokenizer
        body = AutoModel.from_pretrained(encoder, config=config, add_pooling_layer=False)
    except UnfitEncoderError:
        raise
    except Exception as bad:
        # Of many kinds: no network, no such name, broken JSON, broken weights.
        raise ValueError(
            f"encoder {encoder} cannot be loaded ({type(bad).__name__}: {str(bad).splitlines()[0]}); name a folder "
            "with config.json, tokenizer.json and weights, or a model of your hub"
        ) from None
    if tokenizer.get_vocab_size() < config.vocab_size // 2:
        raise UnfitEncoderError(
            f"encoder {encoder}: its tokenizer knows {tokenizer.get_vocab_size()} of {config.vocab_size} tokens; is "
            "tokenizer.json missing?"
        )
    tokenizer.no_padding()  # files of sentence encoders come with both switched on
    tokenizer.no_truncation()
    return config, tokenizer, body


def _check_architecture(encoder: str, config: Any) -> None:
    known = ("bert", *LIKE_ROBERTA)
    if config.model_type not in known:
        raise UnfitEncoderError(f"encoder {encoder} is a {config.model_type!r} model, usable are {', '.join(known)}")
    if config.hidden_act not in GELU:
        raise UnfitEncoderError(f"encoder {encoder} has activation {config.hidden_act!r}, usable are {', '.join(GELU)}")


def train(
    training: Sequence[LengthSample],
    calibration: Sequence[LengthSample],
    recipe: EncoderRecipe,
    progress: Callable[[int, int, float], None] = lambda step, steps, loss: None,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
) -> Epoch:
    """Calls `progress(step, steps, loss)` per batch and `on_epoch` per epoch; returns the last epoch.

    Raises ValueError when there is nothing to train on or the encoder cannot be used.
    """
    if not training or not calibration:
        raise ValueError("training needs samples on both the train and the calibration side")
    edges = log_edges()
    model, tokenizer, special = build(recipe, training)
    config, body = model.body.config, model.body
    numbers = np.stack([dense(s.query) for s in training])
    mean, spread = numbers.mean(axis=0), numbers.std(axis=0) + 1e-6
    rows = [token_ids(tokenizer, special, s.query, recipe.input) for s in training]
    inputs = _Inputs(rows, (numbers - mean) / spread, training, special.pad, edges)
    held_rows = [token_ids(tokenizer, special, s.query, recipe.input) for s in calibration]
    held_numbers = np.stack([dense(s.query) for s in calibration])
    held = _Inputs(held_rows, (held_numbers - mean) / spread, calibration, special.pad, edges)
    body_parameters = [p for p in body.parameters() if p.requires_grad]
    head_parameters = [*model.hidden.parameters(), *model.out.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": body_parameters, "lr": recipe.learning_rate},
            {"params": head_parameters, "lr": recipe.head_learning_rate},
        ],
        weight_decay=recipe.weight_decay,
    )
    rng = np.random.default_rng(recipe.seed)
    steps = recipe.epochs * -(-len(rows) // recipe.batch)
    warm = max(1, int(steps * recipe.warm_up))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
    )
    step, last = 0, None
    for epoch in range(recipe.epochs):
        model.train()
        for chosen in batches_of_like_length([len(r) for r in rows], recipe.batch, rng):
            ids, real, x, b, c, e = inputs.take(chosen)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.low_precision):
                logits = model(ids, real, x)
            loss = survival_loss(logits.float(), b, c, e)
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            progress(step, steps, float(loss.detach()))
        score = _crps(model, held, edges, np.array([s.output_tokens for s in calibration]), recipe)
        last = Epoch(
            epoch=epoch + 1,
            share=(epoch + 1) / recipe.epochs,
            calibration_crps=score,
            arrays=_arrays(model, mean, spread),
            meta=_meta(config, special, recipe),
            tokenizer_json=tokenizer.to_str(),
        )
        on_epoch(last)
    assert last is not None
    return last


class _Inputs:
    """Samples ready to be batched."""

    def __init__(
        self, rows: list[list[int]], numbers: Any, samples: Sequence[LengthSample], pad: int, edges: Ints
    ) -> None:
        tokens, censored = [s.output_tokens for s in samples], [s.censored for s in samples]
        self.rows = rows
        self.numbers = torch.tensor(numbers, dtype=torch.float32)
        self.bucket = torch.tensor(bucket_of(edges, tokens))
        self.censored = torch.tensor(censored)
        self.exposure = torch.tensor(exposure(edges, tokens, censored), dtype=torch.float32)
        self.pad = pad

    def take(self, chosen: Ints) -> tuple[torch.Tensor, ...]:
        """ids, real, numbers, bucket, censored, exposure."""
        ids, real = padded([self.rows[i] for i in chosen], self.pad)
        at = torch.tensor(chosen)
        of_samples = (self.numbers[at], self.bucket[at], self.censored[at], self.exposure[at])
        return torch.tensor(ids), torch.tensor(real), *of_samples


def batches_of_like_length(lengths: Sequence[int], batch: int, rng: np.random.Generator) -> list[Ints]:
    """All positions once, in batches of similar length (little padding), batches in random order."""
    noisy = np.asarray(lengths) + rng.uniform(0, 4, size=len(lengths))
    order = np.argsort(noisy)
    parts = [order[i : i + batch] for i in range(0, len(order), batch)]
    rng.shuffle(parts)
    return parts


def hazard_logits(edges: Ints, samples: Sequence[LengthSample]) -> Floats:
    """Log-odds of the hazards of everybody; where the head begins."""
    hazards = np.clip(kaplan_meier(edges, samples, np.full(len(edges) - 1, 0.02)), 1e-4, 1 - 1e-4)
    return np.asarray(np.log(hazards / (1 - hazards)))


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Raises ValueError for a tokenizer that is neither of BERT's nor of RoBERTa's kind."""
    for begin, separator, pad in (("[CLS]", "[SEP]", "[PAD]"), ("<s>", "</s>", "<pad>")):
        ids = [i for t in (begin, separator, pad) if (i := tokenizer.token_to_id(t)) is not None]
        if len(ids) == 3:
            return SpecialIds(*ids)
    raise ValueError("the encoder's tokenizer has neither [CLS] [SEP] [PAD] nor <s> </s> <pad>")


def _freeze(body: Any, layers: int) -> None:
    for part in (body.embeddings, *body.encoder.layer[:layers]):
        for parameter in part.parameters():
            parameter.requires_grad = False


def _crps(model: LengthEncoder, held: _Inputs, edges: Ints, tokens: Ints, recipe: EncoderRecipe) -> float:
    model.eval()
    order = np.argsort([len(r) for r in held.rows], kind="stable")
    hazards = np.zeros((len(order), len(edges) - 1))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=recipe.low_precision):
        for i in range(0, len(order), 64):
            chosen = order[i : i + 64]
            ids, real, x, *_ = held.take(chosen)
            hazards[chosen] = torch.sigmoid(model(ids, real, x).float()).numpy()
    return float(crps(edges, pmf_from_hazards(hazards), tokens).mean())


def _arrays(model: LengthEncoder, mean: Any, spread: Any) -> dict[str, Any]:
    arrays = {
        f"body.{k}": v.detach().float().numpy().copy()
        for k, v in model.body.state_dict().items()
        if v.is_floating_point()
    }
    for name in ("hidden", "out"):
        layer = getattr(model, name)
        arrays[f"{name}.weight"] = layer.weight.detach().numpy().copy()
        arrays[f"{name}.bias"] = layer.bias.detach().numpy().copy()
    arrays["dense.mean"], arrays["dense.spread"] = mean.astype(np.float32), spread.astype(np.float32)
    return arrays


def _meta(config: Any, special: SpecialIds, recipe: EncoderRecipe) -> dict[str, Any]:
    return {
        "architecture": config.model_type,
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "width": config.hidden_size,
        "layer_norm_eps": config.layer_norm_eps,
        "activation": config.hidden_act,
        "pad_position": config.pad_token_id if config.model_type in LIKE_ROBERTA else -1,
        "special": msgspec.to_builtins(special),
        "input": msgspec.to_builtins(recipe.input),
        "recipe": {**msgspec.to_builtins(recipe), "encoder": Path(recipe.encoder).name},
    }


def finished(
    epoch: Epoch, calibration: Sequence[LengthSample], hashed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Meta and arrays of the artefact: what inference will really run, mixed with the `hashed` model (its arrays) and
    recalibrated, both on the calibration side."""
    edges = log_edges()
    arrays = {
        **stored_arrays(epoch.arrays, epoch.tokenizer_json),
        **{f"{HASHED}{name}": array for name, array in hashed.items()},
        "edges": edges,
        "knots": np.linspace(0.0, 1.0, KNOTS + 1),
    }
    meta = {**epoch.meta, "features_version": FEATURES_VERSION, "hashed_share": 0.0}
    queries = [s.query for s in calibration]
    censored = np.array([s.censored for s in calibration])
    tokens = np.array([s.output_tokens for s in calibration])
    alone = EncoderModel.from_artifact(Artifact(kind="encoder", meta=meta, arrays=arrays)).own_pmf(queries)
    other = hashed_part(arrays).pmf(queries)
    ended = ~censored if (~censored).any() else np.ones(len(censored), dtype=np.bool_)

    def loss(share: float) -> float:
        mixed = (1 - share) * alone + share * other
        return float(crps(edges, mixed[ended], tokens[ended]).mean())

    meta["hashed_share"] = share = min(HASHED_SHARES, key=loss)
    mixed = (1 - share) * alone + share * other
    return meta, {**arrays, "knots": knots_from_pits(pits(edges, mixed, tokens, censored), censored)}
