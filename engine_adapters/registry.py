"""Engine dialects by name; a module is imported when its name is asked for."""

from __future__ import annotations

import difflib
import importlib
from typing import cast

from engine_adapters.base import EngineClient, EngineError, EngineOptions, EngineProbe

_ADAPTERS: dict[str, str] = {
    "emulated": "engine_adapters.emulated:EmulatedEngine",
    "vllm": "engine_adapters.vllm.adapter:VllmEngine",
    "openai_metrics": "engine_adapters.openai_metrics:OpenAiEngine",
}


class UnknownEngineError(EngineError):
    """No adapter has that name; the message lists those that exist."""


def check_name(name: str) -> None:
    """Raises UnknownEngineError unless there is such an adapter."""
    if name not in _ADAPTERS:
        close = difflib.get_close_matches(name, _ADAPTERS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise UnknownEngineError(f"unknown engine {name!r}{hint}: choose one of {', '.join(_ADAPTERS)}")


def client_and_probe(name: str, options: EngineOptions) -> tuple[EngineClient, EngineProbe]:
    """The client and the probe of one engine, not yet started.

    Raises UnknownEngineError, or EngineError if the options do not suit the adapter.
    """
    check_name(name)
    module, _, attribute = _ADAPTERS[name].partition(":")
    adapter = getattr(importlib.import_module(module), attribute)(options)
    return cast(EngineClient, adapter), cast(EngineProbe, adapter)
