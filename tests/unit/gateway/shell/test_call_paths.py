"""What is handed on and what never is, however it is spelt."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from gateway.intake.call_paths import CALL_PATHS, NEVER_HANDED_ON, may_be_handed_on, target_of

VLLM_ADMIN = [
    *("/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory", "/pause", "/resume", "/is_paused"),
    *("/collective_rpc", "/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/abort_requests"),
    *("/inference/v1/abort_requests", "/init_weight_transfer_engine", "/update_weights"),
    *("/shutdown_weight_transfer_engine", "/start_weight_update", "/start_draft_weight_update", "/weight_info"),
    *("/finish_weight_update", "/update_weight_version", "/weight_checker", "/get_world_size", "/scale_elastic_ep"),
    *("/is_scaling_elastic_ep", "/fault_tolerance/apply", "/fault_tolerance/status", "/start_profile"),
    *("/stop_profile", "/server_info", "/load", "/metrics", "/docs", "/redoc", "/openapi.json", "/static/x.js"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/docs/oauth2-redirect", "/kv_event_sources"),
    *("/adapters", "/adapters/tuned"),
]
"""As the routes of vLLM's server spell them."""
SGLANG_ADMIN = [
    *("/load_lora_adapter", "/load_lora_adapter_from_tensors", "/unload_lora_adapter", "/configure_logging"),
    *("/update_weights_from_disk", "/update_weights_from_distributed", "/update_weights_from_tensor"),
    *("/update_weights_from_ipc", "/init_weights_update_group", "/destroy_weights_update_group", "/slow_down"),
    *("/send_weights_to_remote_instance", "/get_weights_by_name", "/set_internal_state", "/get_server_info"),
    *("/hicache/storage-backend", "/hicache/storage-backend/clear", "/clear_hicache_storage_backend", "/freeze_gc"),
    *("/start_expert_distribution_record", "/dump_expert_distribution_record", "/set_trace_level", "/v1/loads"),
    *("/dumper/set", "/open_session", "/close_session", "/add_external_corpus", "/remove_external_corpus"),
    *("/pause_generation", "/abort_request", "/flush_cache", "/release_memory_occupation", "/update_weight_version"),
]
"""The same of SGLang's server."""


@pytest.mark.parametrize("path", [*VLLM_ADMIN, *SGLANG_ADMIN])
def test_what_stops_or_tells_of_an_engine_never_passes(path: str) -> None:
    assert not may_be_handed_on(path)


@pytest.mark.parametrize("path", sorted(CALL_PATHS))
def test_what_clients_call_passes(path: str) -> None:
    assert may_be_handed_on(path)
    assert target_of(path).is_canonical
    assert target_of(path).written() == path


@pytest.mark.parametrize("path", sorted(NEVER_HANDED_ON))
@pytest.mark.parametrize("root", ["/llm", "/a/b", "/v1", "/%6clm"])
def test_a_root_path_opens_nothing(path: str, root: str) -> None:
    assert not may_be_handed_on(root + path)


def tricks(path: str) -> list[str]:
    everything = "".join(f"%{byte:02x}" for byte in path.encode())
    return [
        f"/{path}",
        f"{path}/",
        f"{path}//",
        f"{path}/below",
        path.upper(),
        f"/.{path}",
        f"/v1/..{path}",
        f"/v1/%2e%2e{path}",
        f"/v1/x/../..{path}",
        f"{path};a=b",
        f"/;a{path}",
        f"{path}%00",
        f"{path}%20",
        f"{path}%09",
        path.replace("/", "\\"),
        path.replace("/", "%5c"),
        everything,
        quote(everything),
        quote(quote(everything)),
        f"/%2f{path[1:]}",
        f"/%252e{path}",
        "/" + "%" + "25" * 20 + "73" + path[1:],
    ]


@pytest.mark.parametrize("path", sorted(NEVER_HANDED_ON))
def test_no_spelling_gets_around_the_closed_list(path: str) -> None:
    for trick in tricks(path):
        target = target_of(trick)
        # Either it is known for what it is, or it is in no form that is ever handed on.
        assert not (target.is_canonical and may_be_handed_on(target.path)), trick


@pytest.mark.parametrize(
    "url",
    ["/v1/chat/completions/", "//v1/models", "/v1/./x", "/v1/a%2525", "/v1/a;b", "/v1/a\\b", "*", "v1/x", "/a%00"],
)
def test_only_canonical_targets_are_handed_on(url: str) -> None:
    assert not target_of(url).is_canonical


def test_a_target_is_written_in_one_way_and_its_query_kept() -> None:
    target = target_of("/v1/r%65sponses/resp_1%41/cancel?a=%20b&a=+&c=[1]#part")
    assert target.path == "/v1/responses/resp_1A/cancel"
    assert target.written() == "/v1/responses/resp_1A/cancel?a=%20b&a=+&c=[1]"
    assert target.kind == "light"


@pytest.mark.parametrize(
    ("path", "response"),
    [
        ("/v1/responses/resp_1", "resp_1"),
        ("/v1/responses/resp_1/cancel", "resp_1"),
        ("/v1/responses", ""),
        ("/v1/responses/render", ""),
        ("/v1/messages/resp_1", ""),
    ],
)
def test_a_path_names_the_response_that_it_belongs_to(path: str, response: str) -> None:
    assert target_of(path).held_response == response


@pytest.mark.parametrize("path", ["/sleeper", "/v1/sleep_on_it", "/inference/v1", "/resumes", "/load_balance", "/"])
def test_names_that_only_look_alike_are_the_nodes_to_answer(path: str) -> None:
    assert may_be_handed_on(path)
