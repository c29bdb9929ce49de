"""The paths of engines' own APIs: what a call to each asks for, and what is never handed on.

One table for every front. A path that is not in it is handed on too: the node's own 404 is the answer then.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

CallKind = Literal["chat", "completions", "responses", "messages", "tokens", "pooled", "audio", "light", "other"]
"""What an engine makes of the call: an answer of tokens (`tokens`: to tokens, vLLM's own API); one step's result
(`pooled`: embeddings, scores, classes); the text of a recording (`audio`); something that its server answers by itself
(`light`); `other`: judged by the body."""

CALL_PATHS: dict[str, CallKind] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
    "/v1/messages/count_tokens": "light",
    "/inference/v1/generate": "tokens",
    "/v1/embeddings": "pooled",
    "/v2/embed": "pooled",
    "/pooling": "pooled",
    "/classify": "pooled",
    "/score": "pooled",
    "/v1/score": "pooled",
    "/rerank": "pooled",
    "/v1/rerank": "pooled",
    "/v2/rerank": "pooled",
    "/v1/systemone": "pooled",
    "/generative_scoring": "pooled",
    "/tokenize": "light",
    "/detokenize": "light",
    "/v1/chat/completions/render": "light",
    "/v1/chat/completions/derender": "light",
    "/v1/completions/render": "light",
    "/v1/completions/derender": "light",
    "/v1/responses/render": "light",
    "/v1/messages/render": "light",
    "/cohere/v2/chat/render": "light",
    "/version": "light",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
}
_RESPONSES = "/v1/responses/"

ADAPTER_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
"""What only admins may ask, of a node that they name."""

NEVER_HANDED_ON = frozenset(
    {
        *ADAPTER_PATHS,
        # Loads and unloads adapters too, where a server keeps to SageMaker's rules.
        "/adapters",
        # What the gateway answers itself, or nobody: other nodes' pages are not the client's matter.
        "/metrics",
        "/health",
        "/ready",
        "/readyz",
        "/load",
        "/server_info",
        "/kv_event_sources",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/static",
        "/tokenizer_info",
        # Sleeping, pausing, weights, caches: whoever reaches these stops the engine for everybody.
        "/sleep",
        "/wake_up",
        "/is_sleeping",
        "/release_kv_cache_memory",
        "/resume_memory_occupation",
        "/release_memory_occupation",
        "/pause",
        "/resume",
        "/is_paused",
        "/pause_generation",
        "/continue_generation",
        "/abort_requests",
        "/abort_request",
        "/inference/v1/abort_requests",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/flush_cache",
        "/init_weight_transfer",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/update_weight_version",
        "/weight_info",
        "/weight_checker",
        "/get_world_size",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/fault_tolerance",
        "/start_profile",
        "/stop_profile",
        # SGLang's: adapters, weights, memory, logs that write down what others ask, sessions of others.
        "/load_lora_adapter",
        "/load_lora_adapter_from_tensors",
        "/unload_lora_adapter",
        "/update_weights_from_disk",
        "/update_weights_from_distributed",
        "/update_weights_from_tensor",
        "/update_weights_from_ipc",
        "/init_weights_update_group",
        "/destroy_weights_update_group",
        "/init_weights_send_group_for_remote_instance",
        "/send_weights_to_remote_instance",
        "/get_remote_instance_transfer_engine_info",
        "/remote_instance_transfer_engine_info",
        "/get_weights_by_name",
        "/post_process_weights",
        "/weights_checker",
        "/get_server_info",
        "/get_internal_state",
        "/set_internal_state",
        "/get_load",
        "/v1/loads",
        "/configure_logging",
        "/set_trace_level",
        "/dumper",
        "/freeze_gc",
        "/slow_down",
        "/hicache",
        "/clear_hicache_storage_backend",
        "/start_expert_distribution_record",
        "/stop_expert_distribution_record",
        "/dump_expert_distribution_record",
        "/add_external_corpus",
        "/remove_external_corpus",
        "/list_external_corpora",
        "/open_session",
        "/close_session",
    }
)
"""The closed list, each with all below it: every route of vLLM's server that is not an inference call, those of its
development mode included, and those of SGLang's."""

_LONGEST = max(path.count("/") for path in NEVER_HANDED_ON)
_SAFE = "/:@!$&'()*+,=~-._"
_SAFE_QUERY = _SAFE + ';?%[]{}|\\^`"<>'
_DEEPEST = 8
"""Layers of percent-encoding that are looked through; whoever needs more is up to something."""


class CallTarget(NamedTuple):
    """Where a call goes."""

    path: str
    """Decoded."""
    query: str
    """As it came, without its question mark."""

    @property
    def is_canonical(self) -> bool:
        """Whether the path says the same to everybody: a server that tidies paths up reads no other one in it."""
        path = self.path
        parts = path[1:].split("/")
        if path == "/":
            return True
        return (
            path.startswith("/")
            and not any(part in ("", ".", "..") for part in parts)
            and not any(c in "%\\;#?\ufffd" or not c.isprintable() for c in path)
        )

    @property
    def canonical(self) -> str:
        """The canonical path that is meant by one that is not; good for a hint only."""
        return "/" + "/".join(part for part in self.path.split("/") if part not in ("", ".", ".."))

    @property
    def kind(self) -> CallKind:
        return CALL_PATHS.get(self.path) or ("light" if self.held_response else "other")

    @property
    def held_response(self) -> str:
        """The response that the path belongs to, which one node holds; empty: it belongs to none."""
        path = self.path
        if not path.startswith(_RESPONSES) or path in CALL_PATHS:
            return ""
        return path.removeprefix(_RESPONSES).partition("/")[0]

    def written(self) -> str:
        """The target as an engine's server gets it: one way of writing for all."""
        path = self.path if self.path in CALL_PATHS else quote(self.path, safe=_SAFE)
        return f"{path}?{quote(self.query, safe=_SAFE_QUERY)}" if self.query else path


_KNOWN = {path: CallTarget(path, "") for path in CALL_PATHS}


def target_of(url: str) -> CallTarget:
    """Of a request's target in origin form, fragments dropped."""
    known = _KNOWN.get(url)
    if known is not None:
        return known
    path, _, query = url.partition("#")[0].partition("?")
    return CallTarget(unquote(path) if "%" in path else path, query)


def may_be_handed_on(path: str) -> bool:
    """False for what is on the closed list, however it is spelt; `path` may be encoded any number of times.

    What stands before does not matter: a server with a root path (vLLM's `--root-path`) serves all its routes below it
    too.
    """
    for _ in range(_DEEPEST):
        decoded = unquote(path)
        if decoded == path:
            break
        path = decoded
    else:
        return False
    parts: list[str] = []
    for part in path.replace("\\", "/").casefold().split("/"):
        # Parameters of a segment, and what some server trims from its ends.
        name = "".join(c for c in part.partition(";")[0] if c.isprintable()).strip()
        if name == "..":
            parts = parts[:-1]
        elif name not in ("", "."):
            parts.append(name)
    return not any(
        "/" + "/".join(parts[begin : begin + length]) in NEVER_HANDED_ON
        for begin in range(len(parts))
        for length in range(1, _LONGEST + 1)
    )
