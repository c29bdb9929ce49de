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
    prompt, output = request.prompt_tokens, request.output_tokens
    if prompt < 1 or output < 1:
        raise ValueError(f"{_who(request)}: prompt and output must be >= 1 token, got {prompt} and {output}")
    total = prompt + output
    if total > config.max_model_len_tokens:
        raise ValueError(f"{_who(request)}: {total} tokens exceed max_model_len_tokens {config.max_model_len_tokens}")
    # The last token produced is never computed, so it needs no slot; drafts behind it may.
    blocks = config.blocks_for(min(total - 1 + config.unsure_tokens, config.max_model_len_tokens))
    if blocks > config.num_blocks:
        raise ValueError(f"{_who(request)}: needs {blocks} KV blocks, the engine has {config.num_blocks}")


def _who(request: Lengths) -> str:
    return f"request {request.request_id!r}"
