"""Shapes of the models that are served: all that the cost of a step depends on.

Numbers are those of each model's `config.json` on the model hub. Weights and KV are 16 bit.
"""

from __future__ import annotations

import difflib

import msgspec

from simcore.cost.hardware import UnknownHardwareError

BYTES = 2
"""Bytes of one weight, activation or KV element."""


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder-only transformer with gated MLP and (grouped-query) attention."""

    name: str
    """As on the model hub."""
    hidden: int
    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    """Width of the MLP; of one expert in a mixture of experts."""
    vocab: int
    experts: int = 1
    experts_per_token: int = 1

    @property
    def short_name(self) -> str:
        """`llama-2-7b`: the second half of a profile's name."""
        return self.name.rpartition("/")[2].lower().removesuffix("-hf")

    def kv_heads_on_gpu(self, tp: int) -> float:
        """KV heads per GPU; never under one, since they are replicated when there are fewer than GPUs."""
        return max(self.kv_heads / tp, 1)

    def kv_bytes_per_token(self, tp: int = 1) -> float:
        """Keys and values of one token in one layer, on one GPU."""
        return 2 * self.kv_heads_on_gpu(tp) * self.head_dim * BYTES

    def gemms(self, tp: int = 1) -> dict[str, tuple[int, int]]:
        """Matrix products of one layer on one GPU as (inputs k, outputs n): C[m, n] = A[m, k] B[k, n].

        Names are Vidur's. The MLP of a mixture of experts is not among them.
        """
        q = self.q_heads * self.head_dim // tp
        kv = int(self.kv_heads_on_gpu(tp)) * self.head_dim
        own = {"attn_pre_proj": (self.hidden, q + 2 * kv), "attn_post_proj": (q, self.hidden)}
        if self.experts == 1:
            inner = self.intermediate // tp
            own |= {"mlp_up_proj": (self.hidden, 2 * inner), "mlp_down_proj": (inner, self.hidden)}
        return own

    def lm_head(self, tp: int = 1) -> tuple[int, int]:
        """(inputs, outputs) of the last projection on one GPU."""
        return self.hidden, -(-self.vocab // tp)

    def weight_bytes(self, tp: int = 1) -> float:
        """Bytes of the weights on one GPU, with embedding and head."""
        in_layer = sum(k * n for k, n in self.gemms(tp).values())
        if self.experts > 1:
            in_layer += self.experts * 3 * self.hidden * self.intermediate // tp
        return BYTES * (self.layers * in_layer + 2 * self.hidden * self.vocab / tp)


def _shape(
    name: str, hidden: int, layers: int, heads: tuple[int, int, int], intermediate: int, vocab: int, experts: int = 1
) -> ModelShape:
    q_heads, kv_heads, head_dim = heads
    return ModelShape(
        name=name,
        hidden=hidden,
        layers=layers,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=intermediate,
        vocab=vocab,
        experts=experts,
        experts_per_token=8 if experts > 1 else 1,
    )


MODELS: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        _shape("meta-llama/Llama-2-7b-hf", 4096, 32, (32, 32, 128), 11008, 32000),
        _shape("meta-llama/Llama-2-70b-hf", 8192, 80, (64, 8, 128), 28672, 32000),
        _shape("meta-llama/Llama-3.1-8B", 4096, 32, (32, 8, 128), 14336, 128256),
        _shape("meta-llama/Llama-3.1-70B", 8192, 80, (64, 8, 128), 28672, 128256),
        _shape("Qwen/Qwen2-7B", 3584, 28, (28, 4, 128), 18944, 152064),
        _shape("Qwen/Qwen3-32B", 5120, 64, (64, 8, 128), 25600, 151936),
        _shape("Qwen/Qwen3-30B-A3B-Instruct-2507", 2048, 48, (32, 4, 128), 768, 151936, experts=128),
    )
}
"""By hub name."""


def find_shape(name: str) -> ModelShape:
    """The shape of a model by hub name, bare name or short name. Raises `UnknownHardwareError`."""
    wanted = name.strip().lower()
    for shape in MODELS.values():
        if wanted in (shape.name.lower(), shape.name.rpartition("/")[2].lower(), shape.short_name):
            return shape
    close = difflib.get_close_matches(wanted, [s.short_name for s in MODELS.values()], n=2)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    raise UnknownHardwareError(f"no shape for model {name!r}; {hint}known: {', '.join(MODELS)}")
