"""Clients that send one request after the other through all gateways of a fleet, and keep what went wrong."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import grpc

from protos.v1 import astrolabe_dispatch_pb2 as pb
from protos.v1 import astrolabe_types_pb2 as types_pb
from protos.v1.astrolabe_dispatch_pb2_grpc import DispatchStub

SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": "astrolabe.v1.Dispatch"},
    "methodConfig": [
        {
            "name": [{"service": "astrolabe.v1.Dispatch"}],
            "waitForReady": True,
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
"""What gateway/README.md tells clients of several gateways."""
CALL_S = 240.0


class TlsLoad:
    """Load on a fleet with TLS and keys; a context."""

    def __init__(
        self, gateways: Sequence[str], *, ca: Path, key: str, server_name: str, clients: int = 4, tokens: int = 60
    ) -> None:
        """`gateways`: host:port each. `server_name`: a name that all their certificates carry."""
        self._credentials = grpc.composite_channel_credentials(
            grpc.ssl_channel_credentials(ca.read_bytes()), grpc.access_token_call_credentials(key)
        )
        self._target = "ipv4:" + ",".join(gateways)
        self._options = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.ssl_target_name_override", server_name),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._tokens = tokens
        self._stop = threading.Event()
        self.done = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._client, args=(i,), daemon=True) for i in range(clients)]

    def __enter__(self) -> TlsLoad:
        self._channel = grpc.secure_channel(self._target, self._credentials, options=self._options)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        end_s = time.monotonic() + CALL_S + 10.0
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        self.failures += ["a call outlasts its deadline" for thread in self._threads if thread.is_alive()]
        self._channel.close()

    def _client(self, index: int) -> None:
        stub = DispatchStub(self._channel)  # type: ignore[no-untyped-call, unused-ignore]
        turn = 0
        while not self._stop.is_set():
            turn += 1
            prompt = f"client {index} asks for the {turn}th time"
            sampling = types_pb.SamplingParams(max_tokens=self._tokens, ignore_eos=True, temperature=0.0)
            try:
                chunks = list(stub.Generate(pb.GenerateRequest(text=prompt, sampling=sampling), timeout=CALL_S))
            except grpc.RpcError as error:
                self.failures.append(f"{prompt}: {error.code()} {error.details()}")  # type: ignore[attr-defined, unused-ignore]
                continue
            tokens = sum(len(chunk.token_ids) for chunk in chunks)
            if tokens != self._tokens:
                self.failures.append(f"{prompt}: {tokens} tokens")
            self.done += 1
