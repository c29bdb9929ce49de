"""Pages for Prometheus of real processes, and that deploy/metrics.md describes exactly the series there are."""

from __future__ import annotations

import re
import socket
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.events import RequestShape
from gateway.core.nodes.accuracy import AccuracyStatus
from gateway.core.nodes.node import NodeStatus
from gateway.core.queue.late_binding import QueueStatus
from gateway.intake.client_stream import ClientStream
from gateway.main import Gateway
from gateway.observe.metrics import MAX_NODE_SERIES, Metrics
from gateway.scale.status import GroupStatus, ScaledNode, ScaleStatus
from gateway.workers.slot import WorkerSlot
from length_model.core.belief import known
from simcore.types import Decision, EngineConfig, NodeLoad, Outcome
from tests.e2e.in_process import configured, until
from tests.e2e.predictor_daemon import daemon
from tests.e2e.scripted_node import ScriptedNode

PAGE = Path(__file__).resolve().parents[2] / "deploy" / "metrics.md"


def described(section: str) -> dict[str, set[str]]:
    """Series of one section of the page with their labels (what stands behind in brackets are their values)."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`"): set(re.findall(r"`(\w+)`", labels)) for name, _, labels, _ in rows}


def told(page: str) -> dict[str, set[str]]:
    """Series of a page by the names that `described` has."""
    found: dict[str, set[str]] = {}
    unlabelled = described("Every process") | described("Gateway") | described("Predictor")
    for family in text_string_to_metric_families(page):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        # A family that nothing has been counted in yet shows no labels.
        found[name] = labels if family.samples else unlabelled.get(name, set())
    return found


def value(page: str, name: str, **labels: str) -> float:
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return sample.value
    raise AssertionError(f"{name} {labels} is not on the page")


def status(node_id: str) -> NodeStatus:
    load = NodeLoad(
        node_id=node_id, trace_seq=1, state_age_s=0.5, running=3, waiting=2, free_blocks=7, total_blocks=10,
        waiting_prompt_blocks=1, unprocessed_tokens=9, preemptions_total=4,
    )  # fmt: skip
    return NodeStatus(
        node_id=node_id, status="up", config=EngineConfig(model="m"), profile="p", detail="", load=load, noted_s=10.0,
        in_flight=1, alarm="look", forecasts=AccuracyStatus(use="corrected", bias=2.0, samples=9),
    )  # fmt: skip


def ended(*, tokens: int = 11, attempt: int = 1, resumes: int = 0) -> ClientStream:
    shape = RequestShape(request_id="r", prompt_tokens=5, max_output_tokens=20, belief=known(9), model="m")
    stream = ClientStream(shape)
    stream.arrived_s, stream.first_token_s = 100.0, 101.0
    stream.output_tokens, stream.attempt, stream.resumes = tokens, attempt, resumes
    decision = Decision(request_id="r", node_id="n", policy="p", cost_unit="s", scores=(), reason="", decision_s=0.001)
    stream.placed(decision, 100.002)
    stream.end(Outcome.STOP, "", 103.0)
    return stream


def test_the_gateways_page_is_what_the_documentation_says() -> None:
    metrics = Metrics(lambda: [status("a")], lambda: 12.0, lambda: {"gateway.crt": 1e9})
    metrics.denied("unknown_key")
    metrics.finished(ended(attempt=4, resumes=1))
    metrics.observe(running=3, nodes={"up": 1}, holding=QueueStatus(held=5, held_tokens=50, shed_total=7))
    metrics.observe(running=3, nodes={"up": 1}, holding=QueueStatus(held=5, held_tokens=50, shed_total=8))
    kind, body = metrics.page()
    page = body.decode()
    assert kind.startswith("text/plain")
    assert told(page) == described("Every process") | described("Gateway")
    assert value(page, "astrolabe_certificate_end_time_seconds", file="gateway.crt") == 1e9
    assert value(page, "astrolabe_workers") == 1
    assert value(page, "process_resident_memory_bytes") > 1e6
    assert value(page, "astrolabe_requests_total", outcome="stop") == 1
    assert (value(page, "astrolabe_retries_total"), value(page, "astrolabe_resumes_total")) == (2, 1)
    assert value(page, "astrolabe_ttft_seconds_sum") == pytest.approx(1.0)
    assert value(page, "astrolabe_tpot_seconds_sum") == pytest.approx(0.2)
    assert value(page, "astrolabe_e2e_seconds_sum") == pytest.approx(3.0)
    assert value(page, "astrolabe_requests_shed_total") == 8
    assert value(page, "astrolabe_node_state_age_seconds", node="a") == pytest.approx(2.5)
    assert value(page, "astrolabe_node_forecast_bias", node="a") == 2.0
    assert value(page, "astrolabe_node_forecasts_used", node="a") == 0.5
    assert value(page, "astrolabe_node_alarm", node="a") == 1


class _Scaling:
    """A scaler with one group, until it has another."""

    def __init__(self) -> None:
        self.actions = {("start", "a30"): 3}
        self.failures = {("stop", "a30"): 1, ("list", ""): 2}
        self.defects = 4
        self.status: ScaleStatus | None = None

    def has(self, name: str) -> None:
        nodes = tuple(ScaledNode(node_id=f"{name}-{n}", state=s) for n, s in enumerate(("serving", "starting")))
        group = GroupStatus(
            name=name, model="m", min=1, max=6, wanted=2, price_per_hour=1.0, start_p50_s=9.0, start_p90_s=12.0,
            blocked_s=0.0, nodes=nodes,
        )  # fmt: skip
        self.status = ScaleStatus(
            now_s=1.0, rule="static", connector="local", leads=True, leader="", executes=True, tick_s=5.0, problem="",
            groups=(group,), latest=None, decisions=(),
        )  # fmt: skip


def test_the_scalers_series_are_what_the_documentation_says_and_go_with_their_group() -> None:
    scaling = _Scaling()
    metrics = Metrics(list, lambda: 12.0)
    metrics.follow_scaling(scaling)
    scaling.has("a30")
    page = metrics.page()[1].decode()
    described_now = described("Scaling")
    assert {name: labels for name, labels in told(page).items() if name in described_now} == described_now
    assert value(page, "astrolabe_desired_nodes", group="a30") == 2
    assert value(page, "astrolabe_scaling_nodes", group="a30", state="starting") == 1
    assert value(page, "astrolabe_scaling_connector_failures_total", group="", call="list") == 2
    assert value(page, "astrolabe_scaling_rule_failures_total") == 4
    scaling.has("h100")
    assert 'astrolabe_desired_nodes{group="a30"}' not in metrics.page()[1].decode()


def test_node_series_are_capped_and_go_with_their_node() -> None:
    nodes = [status(f"n{index}") for index in range(MAX_NODE_SERIES + 20)]
    metrics = Metrics(lambda: nodes, lambda: 12.0)
    assert metrics.page()[1].decode().count("astrolabe_node_alarm{") == MAX_NODE_SERIES
    del nodes[1:]
    assert re.findall(r'astrolabe_node_alarm\{node="(\w+)"\}', metrics.page()[1].decode()) == ["n0"]


@pytest.mark.e2e
def test_the_predictors_page_is_what_the_documentation_says(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with daemon(tmp_path, metrics_listen=address):
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as response:
            page = response.read().decode()
        assert told(page) == described("Every process") | described("Predictor")
        assert value(page, "astrolabe_predictor_info", node="n1") == 1
        assert value(page, "astrolabe_predictor_synchronised") == 1
        assert value(page, "astrolabe_predictor_free_blocks") > 0


@pytest.mark.e2e
async def test_a_worker_whose_page_nobody_asks_for_tells_its_part_all_the_same(
    node: ScriptedNode, tmp_path: Path
) -> None:
    place = WorkerSlot(index=0, count=2, folder=str(tmp_path), listen="127.0.0.1:0", http_listen="127.0.0.1:0")
    worker = Gateway(configured(node.address), place)
    await worker.start()
    try:
        # Not by its HTTP front: asking would bring it up to date.
        await until(lambda: 'astrolabe_nodes{status="up"} 1.0' in worker.metrics.page()[1].decode())
    finally:
        await worker.stop()


@pytest.mark.e2e
async def test_a_renewed_certificate_counts_once_it_has_been_read(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key = (str(tmp_path / name) for name in ("ca.crt", "gateway.crt", "gateway.key"))
    authority.cert_pem.write_to_path(ca)

    def renew(end: datetime) -> float:
        made = authority.issue_cert("localhost", not_after=end)
        made.cert_chain_pems[0].write_to_path(cert)
        made.private_key_pem.write_to_path(key)
        return end.timestamp()

    now = datetime.now(UTC).replace(microsecond=0)
    old_s = renew(now + timedelta(days=3))
    gateway = Gateway(configured(tls_cert=cert, tls_key=key, node_ca=ca, node_cert=cert, node_key=key))
    await gateway.start()
    try:
        name = "astrolabe_certificate_end_time_seconds"
        assert value(gateway.metrics.page()[1].decode(), name, file=cert) == old_s
        new_s = renew(now + timedelta(days=300))
        assert value(gateway.metrics.page()[1].decode(), name, file=cert) == old_s, "nobody has read it"
        gateway.reload(gateway.config)
        assert value(gateway.metrics.page()[1].decode(), name, file=cert) == new_s
    finally:
        await gateway.stop()
