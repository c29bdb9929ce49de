"""Whether a gateway or a node serves, by its gRPC health service: `python -m deploy.health HOST:PORT`.

For a container's health check; exit code 0 when it serves. Through TLS as the command line's environment says.
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.gateway_channel import blocking_channel
from protos.runtime.config import ConfigError

PATIENCE_S = 3.0


def main() -> int:
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m deploy.health HOST:PORT, for example 127.0.0.1:8200\n")
        return 2
    address = sys.argv[1]
    try:
        with blocking_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S).status
    except (grpc.RpcError, ConfigError) as error:
        why = error.details() if isinstance(error, grpc.Call) else str(error)
        sys.stderr.write(f"error: {address} does not answer: {why}\n")
        return 1
    if found != health_pb2.HealthCheckResponse.SERVING:
        sys.stderr.write(f"error: {address} does not serve yet\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
