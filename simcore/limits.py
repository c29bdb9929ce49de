"""What an engine can never run."""

from __future__ import annotations

from typing import Protocol

from simcore.types import EngineConfig


class Lengths(Protocol):
    """Anything with an id and its lengths."""

    @property
    def request_id(self) -> str: ...

    @property
    def prompt_tokens(self) -> int: ...

    @property
    def output_tokens(self) -> int: ...


def check_fits(config: EngineConfig, request: Lengths) -> None:
    """Raises ValueError if the engine can never run this request to its end."""
    who = f"request {request.request_id!r}"
    if request.prompt_tokens < 1 or request.output_tokens < 1:
        raise ValueError(
            f"{who}: prompt and output must be >= 1 token, got {request.prompt_tokens} and {request.output_tokens}"
        )
    total = request.prompt_tokens + request.output_tokens
    if total > config.max_model_len_tokens:
        raise ValueError(f"{who}: {total} tokens exceed max_model_len_tokens {config.max_model_len_tokens}")
    # The last token produced is never computed, so it needs no slot.
    blocks = -(-(total - 1) // config.block_size_tokens)
    if blocks > config.num_blocks:
        raise ValueError(f"{who}: needs {blocks} KV blocks, the engine has {config.num_blocks}")
