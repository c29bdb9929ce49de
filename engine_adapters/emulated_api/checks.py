"""Checks of bodies and of whole answers by vLLM's own protocol models, for processes that have its package."""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import Any, Protocol

from engine_adapters.emulated_api.errors import ApiError, invalid

_ENTRY = "vllm.entrypoints."
_CHAT, _PLAIN = f"{_ENTRY}openai.chat_completion.protocol", f"{_ENTRY}openai.completion.protocol"
_POOLING = f"{_ENTRY}pooling."
MODELS = {
    "ChatCall": (_CHAT, "ChatCompletionRequest"),
    "CompletionCall": (_PLAIN, "CompletionRequest"),
    "ResponsesCall": (f"{_ENTRY}openai.responses.protocol", "ResponsesRequest"),
    "MessagesCall": (f"{_ENTRY}anthropic.protocol", "AnthropicMessagesRequest"),
    "MessagesCount": (f"{_ENTRY}anthropic.protocol", "AnthropicCountTokensRequest"),
    "ScoreCall": (f"{_POOLING}scoring.protocol", "ScoreRequest"),
    "RerankCall": (f"{_POOLING}scoring.protocol", "RerankRequest"),
    "TokenizeCall": (f"{_ENTRY}serve.tokenize.protocol", "TokenizeRequest"),
    "DetokenizeCall": (f"{_ENTRY}serve.tokenize.protocol", "DetokenizeRequest"),
    "chat": (_CHAT, "ChatCompletionResponse"),
    "chat chunk": (_CHAT, "ChatCompletionStreamResponse"),
    "completion": (_PLAIN, "CompletionResponse"),
    "completion chunk": (_PLAIN, "CompletionStreamResponse"),
    "response": (f"{_ENTRY}openai.responses.protocol", "ResponsesResponse"),
    "response event": ("openai.types.responses", "ResponseStreamEvent"),
    "message": (f"{_ENTRY}anthropic.protocol", "AnthropicMessagesResponse"),
    "message event": (f"{_ENTRY}anthropic.protocol", "AnthropicStreamEvent"),
    "message count": (f"{_ENTRY}anthropic.protocol", "AnthropicCountTokensResponse"),
    "embeddings": (f"{_POOLING}embed.protocol", "EmbeddingResponse"),
    "pooling": (f"{_POOLING}pooling.protocol", "PoolingResponse"),
    "classes": (f"{_POOLING}classify.protocol", "ClassificationResponse"),
    "scores": (f"{_POOLING}scoring.protocol", "ScoreResponse"),
    "ranks": (f"{_POOLING}scoring.protocol", "RerankResponse"),
    "tokens": (f"{_ENTRY}serve.tokenize.protocol", "TokenizeResponse"),
    "detokenized": (f"{_ENTRY}serve.tokenize.protocol", "DetokenizeResponse"),
    "models": (f"{_ENTRY}serve.engine.protocol", "ModelList"),
    "error": (f"{_ENTRY}serve.engine.protocol", "ErrorResponse"),
    "message error": (f"{_ENTRY}anthropic.protocol", "AnthropicErrorResponse"),
    "transcription": (f"{_ENTRY}speech_to_text.transcription.protocol", "TranscriptionResponse"),
    "transcription chunk": (f"{_ENTRY}speech_to_text.transcription.protocol", "TranscriptionStreamResponse"),
}
"""Our names of bodies and answers, and where vLLM has its models of them."""
_WHOLE = frozenset(
    ("chat", "completion", "embeddings", "pooling", "classes", "scores", "ranks", "tokens", "detokenized", "models")
)
"""Answers that vLLM writes with all fields of their models."""


class BodyChecks(Protocol):
    """Looks at what comes in and goes out."""

    def check_body(self, kind: str, body: bytes) -> None:
        """Raises ApiError for a body that vLLM would not take."""

    def completed(self, kind: str, tree: dict[str, Any]) -> dict[str, Any]:
        """A whole answer with all that vLLM's model adds."""


class NoChecks:
    """Where vLLM is absent: our own records are what there is."""

    def check_body(self, kind: str, body: bytes) -> None:
        pass

    def completed(self, kind: str, tree: dict[str, Any]) -> dict[str, Any]:
        return tree


class VllmChecks:
    """By vLLM's models. Making one imports vLLM, which takes many seconds: not on an event loop."""

    def __init__(self) -> None:
        from pydantic import TypeAdapter

        self._adapters: dict[str, Any] = {}
        for kind, (module, name) in MODELS.items():
            try:
                self._adapters[kind] = TypeAdapter(getattr(importlib.import_module(module), name))
            except (ImportError, AttributeError):
                # Other releases keep some of them elsewhere; what is not found is not checked.
                continue

    def kinds(self) -> set[str]:
        """What can be checked."""
        return set(self._adapters)

    def check_body(self, kind: str, body: bytes) -> None:
        from pydantic import ValidationError

        adapter = self._adapters.get(kind)
        if adapter is None:
            return
        try:
            tree = json.loads(body)
        except ValueError as bad:
            raise invalid(f"JSON decode error: {bad}", "body", kind="json_invalid") from None
        try:
            adapter.validate_python(tree)
        except ValidationError as bad:
            errors = bad.errors(include_url=False)
            first = errors[0]
            cause = first.get("ctx", {}).get("error")
            param = getattr(cause, "parameter", None)
            path = ".".join(["body", *(str(p) for p in first["loc"] if not set("[](){}") & set(str(p)))])
            entry = {"type": first["type"], "loc": path, "msg": first["msg"]}
            noun = "error" if len(errors) == 1 else "errors"
            message = f"{len(errors)} validation {noun}:\n  {entry}"
            raise ApiError(message, kind="Bad Request", param=param or path) from None
        except Exception as bad:
            # vLLM's own refusals are of no type that all its releases have. Its validators run before types are known
            # and trip over wrong ones; its server answers with what they say.
            raise ApiError(str(bad), param=getattr(bad, "parameter", None)) from None

    def completed(self, kind: str, tree: dict[str, Any]) -> dict[str, Any]:
        return self.written(kind, tree, whole=True) if kind in _WHOLE and kind in self._adapters else tree

    def written(self, kind: str, tree: Any, *, whole: bool) -> Any:
        """An answer as vLLM's model writes it, with all of its fields (`whole`) or those given. Raises ValueError for
        one that the model does not take."""
        adapter = self._adapters[kind]
        return adapter.dump_python(adapter.validate_python(tree), mode="json", by_alias=True, exclude_unset=not whole)


def load_checks() -> BodyChecks:
    """By vLLM's models if its package is here. May take many seconds."""
    return VllmChecks() if importlib.util.find_spec("vllm") is not None else NoChecks()
