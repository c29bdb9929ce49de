"""What the registry of nodes knows of models, as links come, change and go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.config import GatewayConfig
from gateway.nodes.registry import NodeRegistry
from simcore.types import EngineConfig


def config(*names: str, forwards: bool = False) -> EngineConfig:
    return EngineConfig(model=names[0], other_names=names[1:], max_model_len_tokens=100, forwards=forwards)


def registry_of(**links: Any) -> NodeRegistry:
    no_pump: Any = None
    registry = NodeRegistry(GatewayConfig(), pump=no_pump, gateway_id="g", on_change=lambda: None)
    registry.links.update(links)
    return registry


def test_models_are_those_of_the_links_as_they_last_said() -> None:
    link = SimpleNamespace(status="up", config=config("m", "adapter", forwards=True))
    registry = registry_of(a=link)
    assert list(registry.models()) == ["m", "adapter"]
    assert registry.forwards("adapter")
    assert not registry.forwards("other")
    link.config = config("m", "other")
    registry._link_changed()
    assert list(registry.models()) == ["m", "other"]
    assert not registry.forwards("")
    link.status = "down"
    registry._link_changed()
    assert not registry.models()


def test_nodes_to_be_had_count_only_for_models_that_none_serves() -> None:
    registry = registry_of(a=SimpleNamespace(status="up", config=config("m")))
    assert not registry.forwards("m")
    registry.expect([config("m", forwards=True), config("cold", forwards=True)])
    assert not registry.forwards("m")
    assert registry.forwards("cold")
    registry.expect([])
    assert list(registry.models()) == ["m"]
