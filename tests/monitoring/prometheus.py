"""A real Prometheus over a local cluster, with the shipped rules in a hurry."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
NOT_INSTALLED = "no Prometheus and promtool here: apt-get install prometheus (2.42 or newer) brings both"
EVERY_S = 1.0
FOR_S = 3
"""How long what fires must be so, in place of minutes: more than a page that comes late on a busy machine."""
WINDOW_S = 15
"""What rates are taken over, in place of five minutes."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_installed() -> bool:
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


def hurried(rules: str, thresholds: Mapping[str, str] | None = None) -> str:
    """The shipped rules with short pauses and windows, else as they are.

    `thresholds`: for an alert another right-hand side, where the real one takes too much of a small machine.
    """
    found = yaml.safe_load(rules)
    for rule in (rule for group in found["groups"] for rule in group["rules"]):
        rule["expr"] = rule["expr"].replace("[5m]", f"[{WINDOW_S}s]")
        if "for" in rule:
            rule["for"] = f"{FOR_S}s"
        for old in (thresholds or {}).get(rule.get("alert", ""), "").split("|"):
            if old:
                before, after = old.split("->")
                assert before.strip() in rule["expr"], f"{rule['alert']} has no {before}"
                rule["expr"] = rule["expr"].replace(before.strip(), after.strip())
    return yaml.safe_dump(found, sort_keys=False)


class Prometheus:
    """Scrapes every second from `start` to `stop`."""

    def __init__(
        self,
        folder: Path,
        *,
        gateways: Sequence[str],
        predictors: Sequence[str],
        scheme: str = "http",
        scrape: Mapping[str, Any] | None = None,
        thresholds: Mapping[str, str] | None = None,
    ) -> None:
        """Addresses of the pages. `scrape`: more of the gateways' job (TLS, keys)."""
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.seen_firing: set[str] = set()
        (folder / "alerts.yml").write_text(hurried((MONITORING / "alerts.yml").read_text(), thresholds))
        config = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {
                    "job_name": "astrolabe-gateway",
                    "scheme": scheme,
                    "static_configs": [{"targets": list(gateways)}],
                    **(scrape or {}),
                },
                {"job_name": "astrolabe-predictor", "static_configs": [{"targets": list(predictors)}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))

    def start(self) -> Prometheus:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("LD_", "FAKETIME"))}
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._folder}/prometheus.yml",
                    f"--storage.tsdb.path={self._folder}/data",
                    f"--web.listen-address={self.url.removeprefix('http://')}",
                    "--log.level=warn",
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=environment,
            )
        self.until(self.is_ready, 60.0, "Prometheus is ready")
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
        try:
            with DIRECT.open(f"{self.url}/-/ready", timeout=2.0):
                return True
        except OSError:
            return False

    def api(self, path: str, **query: Any) -> Any:
        """`data` of the answer of an endpoint under /api/v1. Raises AssertionError for a query it does not take."""
        encoded = urllib.parse.urlencode(query, doseq=True)
        try:
            with DIRECT.open(f"{self.url}/api/v1/{path}?{encoded}", timeout=10.0) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as bad:
            raise AssertionError(f"{query}: {bad.read().decode()}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query."""
        found: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return found

    def over(self, expression: str, *, last_s: float = 20.0) -> list[dict[str, Any]]:
        """Series of a range query over the last seconds."""
        now_s = time.time()
        found: list[dict[str, Any]] = self.api(
            "query_range", query=expression, start=now_s - last_s, end=now_s, step="1s"
        )["result"]
        return found

    def firing(self) -> set[str]:
        """Names of the alerts that fire now; they are added to `seen_firing`."""
        now = {a["labels"]["alertname"] for a in self.api("alerts")["alerts"] if a["state"] == "firing"}
        self.seen_firing |= now
        return now

    def scraped(self, targets: int) -> bool:
        """Whether so many targets have a page."""
        return sum(t["health"] == "up" for t in self.api("targets", state="active")["activeTargets"]) == targets

    def until(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        end_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end_s, f"not within {within_s:g} s: {what}; have fired: {self.seen_firing}"
            time.sleep(EVERY_S / 3)


def metrics_address(log: Path) -> str:
    """Where a daemon's page is, as its log says."""
    told = re.findall(r'"metrics":"([^"]+)"', log.read_text())
    assert told, f"no page in {log}"
    return str(told[-1])
