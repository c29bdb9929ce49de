"""Run on a host by `astrolabe cluster`: waits until a service is active and says by its health RPC that it serves.

Ends with 0, or with 1 and one line that says why it does not.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos.runtime.channels import open_blocking_channel
from protos.runtime.tls import channel_credentials
from protos.runtime.tls_files import ClientTlsFiles

POLL_S = 0.2
CALL_S = 5.0
MOST_RESTARTS = 2
"""A service that has died more often than this will not come up by itself."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("unit")
    parser.add_argument("address")
    parser.add_argument("service")
    for name in ("--ca", "--cert", "--key"):
        parser.add_argument(name, default="")
    parser.add_argument("--timeout-s", type=float, default=300.0)
    given = parser.parse_args()
    files = ClientTlsFiles(ca=given.ca, cert=given.cert, key=given.key)
    end_s = time.monotonic() + given.timeout_s
    restarts = _restarts(given.unit)
    while True:
        state = _shown(given.unit, "ActiveState")
        reason = f"is {state}"
        if state == "active":
            reason = _why_not_serving(given.address, given.service, files)
            if not reason:
                return 0
        if state == "failed" or _restarts(given.unit) - restarts > MOST_RESTARTS or time.monotonic() > end_s:
            print(f"{given.unit} {reason}: {_last_line(given.unit)}; see: journalctl -u {given.unit}")  # noqa: T201
            return 1
        time.sleep(POLL_S)


def _why_not_serving(address: str, service: str, files: ClientTlsFiles) -> str:
    """Empty when it does."""
    credentials = channel_credentials(files) if files.ca else None
    with open_blocking_channel(address, credentials=credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_S)
        except grpc.RpcError as error:
            return f"does not answer at {address} ({error.details()})"  # type: ignore[attr-defined, unused-ignore]
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return f"answers at {address}, but does not serve yet"


def _shown(unit: str, what: str) -> str:
    command = ["systemctl", "show", f"--property={what}", "--value", unit]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _restarts(unit: str) -> int:
    text = _shown(unit, "NRestarts")
    return int(text) if text.isdigit() else 0


def _last_line(unit: str) -> str:
    """The last line of its own, not of systemd's."""
    command = [
        "journalctl",
        "--unit",
        unit,
        "--lines=20",
        "--output=cat",
        "--no-pager",
        "_SYSTEMD_UNIT=" + unit + ".service",
    ]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip().splitlines()
    errors = [line for line in lines if line.startswith("error:")]
    return (errors or lines or ["it has said nothing"])[-1][:300]


if __name__ == "__main__":
    sys.exit(main())
