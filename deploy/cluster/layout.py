"""Where things lie on a host. Pure."""

from __future__ import annotations

OPT = "/opt/astrolabe"
RELEASES = f"{OPT}/releases"
CURRENT = f"{OPT}/current"
PREVIOUS = f"{OPT}/previous"
COMPLETE = ".complete"
"""In a release's folder once nothing is missing."""
PENDING = f"{OPT}/pending"
"""A file by the name of each unit whose configuration is newer than its process."""
ETC = "/etc/astrolabe"
TLS = f"{ETC}/tls"
UNITS = "/etc/systemd/system"
CACHE = "/var/cache/astrolabe"

PREDICTOR = "astrolabe-predictor"
GATEWAY = "astrolabe-gateway"
ENGINE = "astrolabe-engine"
ALL_UNITS = (GATEWAY, PREDICTOR, ENGINE)
"""In the order in which they are stopped."""
