"""What every process tells Prometheus of itself beside its work: version, clock, memory, certificates. Shell code."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric

from protos.runtime.config import ConfigError

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
STARTED_S = time.time()
"""Unix time at which this process began to load its parts."""


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell (no /proc)."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def certificate_ends(*files: str) -> dict[str, float]:
    """Unix time at which each PEM file's first certificate to end does so; empty names are passed over.

    Raises ConfigError for a file without a certificate.
    """
    ends: dict[str, float] = {}
    for file in filter(None, files):
        # 5 MB that processes without TLS do without.
        from cryptography import x509

        try:
            found = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except OSError as bad:
            raise ConfigError(f"{file}: cannot be read: {bad.strerror}; name a PEM file") from None
        except ValueError:
            raise ConfigError(f"{file}: there is no certificate in it; name a PEM file") from None
        ends[file] = min(certificate.not_valid_after_utc.timestamp() for certificate in found)
    return ends


def own_series(certificates: Mapping[str, float]) -> Iterable[Metric]:
    """Series that are true of a process whoever of its workers is asked. `certificates`: as `certificate_ends`."""
    build = GaugeMetricFamily("astrolabe_build_info", "1; the label is what was installed.", labels=("version",))
    build.add_metric((_version(),), 1.0)
    ends = GaugeMetricFamily(
        "astrolabe_certificate_end_time_seconds", "Unix time at which a certificate in use ends.", labels=("file",)
    )
    for file, end_s in certificates.items():
        ends.add_metric((file,), end_s)
    clock = GaugeMetricFamily("astrolabe_clock_seconds", "Unix time by this host's clock.", value=time.time())
    return (build, clock, ends)


def _version() -> str:
    try:
        return version("astrolabe")
    except PackageNotFoundError:
        return "unknown"
