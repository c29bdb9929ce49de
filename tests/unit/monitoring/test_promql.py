from __future__ import annotations

import pytest

from tests.monitoring.promql import faults, groupings_in, series_in

KNOWN = {"astrolabe_nodes": {"status"}, "astrolabe_ttft_seconds_bucket": {"le"}, "astrolabe:x:rate5m": {"job"}}


def test_series_and_labels_are_found_wherever_they_stand() -> None:
    text = 'max by (job) (astrolabe_nodes{status="up", job=~"$job"}) == 0 unless on (job) astrolabe:x:rate5m > up'
    assert [name for name, _ in series_in(text)] == ["astrolabe_nodes", "astrolabe:x:rate5m", "up"]
    assert series_in(text)[0].labels == {"status", "job"}
    assert groupings_in(text) == {"job"}
    assert faults(text, KNOWN) == []


def test_what_stands_in_quotes_names_nothing() -> None:
    assert faults('astrolabe_nodes{status=~"astrolabe_nonsense|up"}', KNOWN) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("astrolabe_node", "no series astrolabe_node"),
        ("rate(astrolabe_ttft_seconds[5m])", "no series astrolabe_ttft_seconds"),
        ('astrolabe_nodes{state="up"}', "astrolabe_nodes has no label state"),
        ("sum by (node) (astrolabe_nodes)", "nothing in it has the label node"),
        ("process_cpu_seconds_total", "no series process_cpu_seconds_total"),
    ],
)
def test_what_is_not_there_is_found(text: str, fault: str) -> None:
    assert faults(text, KNOWN) == [fault]
