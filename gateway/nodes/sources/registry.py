"""Sources by their tables in the configuration; a module is imported when it is asked for."""

from __future__ import annotations

from pathlib import Path

from gateway.config import DiscoveryConfig
from gateway.nodes.sources.base import NodeSource
from protos.runtime.addresses import parse_address


def make_sources(config: DiscoveryConfig) -> list[NodeSource]:
    """All that a configuration names, in order."""
    sources: list[NodeSource] = []
    if config.dns_srv:
        from gateway.nodes.sources.dns_srv import DnsSrvSource

        server = parse_address(config.dns_server, default_port=53) if config.dns_server else None
        sources += [DnsSrvSource(name, server=server) for name in config.dns_srv]
    if config.files:
        from gateway.nodes.sources.node_file import NodeFileSource

        sources += [NodeFileSource(Path(file)) for file in config.files]
    if config.kubernetes.service:
        from gateway.nodes.sources.kubernetes import EndpointSliceSource

        sources.append(EndpointSliceSource(config.kubernetes))
    return sources
