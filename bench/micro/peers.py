"""Routers and proxies of others, started as their own documents say, for comparisons: `peer`."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PEERS = ("vllm-router", "sglang-router", "smg", "nginx", "haproxy", "envoy")


@contextlib.contextmanager
def peer(name: str, command: str, engines: Sequence[str]) -> Iterator[tuple[str, str, subprocess.Popen[bytes]]]:
    """One of `PEERS` before HTTP engines (host:port), in one process or with one worker: (how it balances, its address,
    the process). Raises ValueError for another name."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        if name == "nginx":
            balancing, arguments = "least_conn", _nginx(Path(folder), port, engines)
        elif name == "haproxy":
            balancing, arguments = "leastconn", _haproxy(Path(folder), port, engines)
        elif name == "envoy":
            balancing, arguments = "LEAST_REQUEST", _envoy(Path(folder), port, engines)
        elif name in PEERS:
            balancing, arguments = "round_robin", _router(name, port, engines)
        else:
            raise ValueError(f"unknown peer {name!r}: one of {', '.join(PEERS)}")
        process = subprocess.Popen([command, *arguments], stdout=subprocess.DEVNULL)
        try:
            yield balancing, f"127.0.0.1:{port}", process
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _router(name: str, port: int, engines: Sequence[str]) -> list[str]:
    """`vllm-router` and its relatives, which take the same options after a command `launch`."""
    is_first = name == "vllm-router"
    return [
        *([] if is_first else ["launch"]),
        "--host=127.0.0.1",
        f"--port={port}",
        "--worker-urls",
        *(f"http://{engine}" for engine in engines),
        "--policy=round_robin",
        f"--log-level={'warning' if is_first else 'warn'}",
        "--prometheus-host=127.0.0.1",
        f"--prometheus-port={free_port()}",
    ]


def _nginx(folder: Path, port: int, engines: Sequence[str]) -> list[str]:
    """Streams are not buffered, connections to the engines are kept."""
    servers = " ".join(f"server {engine};" for engine in engines)
    (folder / "nginx.conf").write_text(
        f"""daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream engines {{ least_conn; {servers} keepalive 1024; }}
  server {{ listen 127.0.0.1:{port}; location / {{
    proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  }} }}
}}
"""
    )
    return ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "/dev/null"]


def _haproxy(folder: Path, port: int, engines: Sequence[str]) -> list[str]:
    """Pieces of streams are passed on at once, connections to the engines are kept."""
    servers = "\n".join(f"  server engine{i} {engine}" for i, engine in enumerate(engines))
    (folder / "haproxy.cfg").write_text(
        f"""global
  nbthread 1
  maxconn 4096
defaults
  mode http
  option http-no-delay
  http-reuse always
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend all
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance leastconn
{servers}
"""
    )
    return ["-db", "-q", "-f", str(folder / "haproxy.cfg")]


def _envoy(folder: Path, port: int, engines: Sequence[str]) -> list[str]:
    def address(where: str) -> dict[str, object]:
        host, _, number = where.rpartition(":")
        return {"socket_address": {"address": host, "port_value": int(number)}}

    endpoints = [{"endpoint": {"address": address(engine)}} for engine in engines]
    types = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{types}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{types}.http.router.v3.Router"}}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "engines", "timeout": "0s"}}],
                }
            ]
        },
    }
    bootstrap = {
        "static_resources": {
            "listeners": [
                {
                    "address": address(f"127.0.0.1:{port}"),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                }
            ],
            "clusters": [
                {
                    "name": "engines",
                    "type": "STATIC",
                    "lb_policy": "LEAST_REQUEST",
                    "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
                    "circuit_breakers": {
                        "thresholds": [{"max_connections": 8192, "max_requests": 8192, "max_pending_requests": 8192}]
                    },
                }
            ],
        }
    }
    (folder / "envoy.json").write_text(json.dumps(bootstrap))
    return ["-c", str(folder / "envoy.json"), "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
