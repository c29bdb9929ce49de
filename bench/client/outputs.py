"""Files of an endpoint run: results, throughput records, figures and a text summary, named as PlanetServe's are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from bench.client.endpoints import EndpointRun
from bench.client.server_metrics import ServerRates, rates
from bench.measure.results import Summary, summarise
from bench.run.provenance import Provenance
from bench.show.plots import DPI, STYLE
from bench.show.tables import print_table, rate_text, seconds, summary_lines, summary_table

RESULTS_FILE = "experiment_results.json"
THROUGHPUT_FILE = "throughput_records.json"
SUMMARY_FILE = "summary.txt"

FIGURES: tuple[tuple[str, str, Callable[[ServerRates], float | None]], ...] = (
    ("kv_cache_use", "share of the KV cache in use", lambda r: r.kv_use),
    (
        "prefix_hit_ratio",
        "share of prompt tokens found in the prefix cache since the start",
        lambda r: r.prefix_hit_ratio,
    ),
    ("ttft", "mean TTFT since the start (s)", lambda r: r.ttft_mean_s),
    ("tpot", "mean time per output token since the start (s)", lambda r: r.tpot_mean_s),
    ("token_throughput", "output tokens per second", lambda r: r.output_tokens_per_s),
    ("request_throughput", "requests per second", lambda r: r.requests_per_s),
)
_SMOOTH_S = 1.0
_ARRIVAL_BINS = 15
_THEIR_FIGURES = {
    "prefix_hit_ratio": "prefix_hit_rate",
    "ttft": "ttft_stats",
    "tpot": "tpot_stats",
    "latency": "latency_stats",
}
"""Names of our figures that PlanetServe's measurer has otherwise."""


class OutputPlaces(msgspec.Struct, frozen=True, kw_only=True):
    """Where the files of a run go, and what they are called."""

    files: Path
    figures: Path
    summary: str = SUMMARY_FILE
    figure_names: dict[str, str] = {}
    """Those that are not called as here."""
    arrivals: bool = False
    """A figure of the gaps between requests as well."""


def measurers_places(dataset: str, interval_s: float) -> OutputPlaces:
    """Where PlanetServe's measurer puts the same run, by the name of its file: scripts look for it there."""
    name = Path(dataset).stem
    return OutputPlaces(
        files=Path(f"log_{name}_{interval_s}"),
        figures=Path(f"fig_{name}_{interval_s}"),
        summary=f"{name}_summary.txt",
        figure_names=_THEIR_FIGURES,
        arrivals=True,
    )


def write_outputs(
    folder: Path, head: Provenance, run: EndpointRun, *, places: OutputPlaces | None = None
) -> tuple[Summary, list[Path]]:
    """Everything into `folder`, or into `places`, which are made; the paths written, figures last. Raises OSError."""
    places = places or OutputPlaces(files=folder, figures=folder)
    folder = places.files
    for made in (folder, places.figures):
        made.mkdir(parents=True, exist_ok=True)
    summary = summarise(run.results)
    records = {url: rates(samples) for url, samples in run.samples.items()}
    servers = {url: last(rows) for url, rows in records.items()}
    paths = [folder / name for name in (RESULTS_FILE, THROUGHPUT_FILE, places.summary)]
    paths[0].write_bytes(
        msgspec.json.format(
            msgspec.json.encode({"header": head, "summary": summary, "servers": servers, "requests": run.results})
        )
    )
    paths[1].write_bytes(msgspec.json.format(msgspec.json.encode({"header": head, "servers": records})))
    paths[2].write_text(summary_text(summary, servers), encoding="utf-8")

    def figure(name: str) -> Path:
        return places.figures / f"{places.figure_names.get(name, name)}.png"

    with mpl.rc_context(STYLE):
        for name, label, value in FIGURES:
            paths.append(_figure(figure(name), label, records, value))
        paths.append(_latencies(figure("latency"), run))
        if places.arrivals:
            paths.append(_arrivals(figure("arrival_distribution"), run))
    return summary, paths


def last(rows: Sequence[ServerRates]) -> ServerRates | None:
    """What a server's averages were at the end; None without any."""
    return rows[-1] if rows else None


def summary_text(summary: Summary, servers: dict[str, ServerRates | None]) -> str:
    """The run in lines of text, the same as on the terminal."""
    out = StringIO()
    console = Console(file=out, width=100, color_system=None)
    print_table(console, summary_table(summary, title="endpoints"))
    for line in summary_lines(summary):
        console.print(line, highlight=False)
    for url, rate in servers.items():
        console.print(server_line(url, rate), highlight=False, soft_wrap=True)
    return out.getvalue()


def server_line(url: str, rate: ServerRates | None) -> str:
    """One server's own averages."""
    if rate is None:
        return f"{url}: no /metrics"
    hits = "–" if rate.prefix_hit_ratio is None else f"{rate.prefix_hit_ratio:.0%}"
    return (
        f"{url}: prefix hits {hits}, TTFT {seconds(rate.ttft_mean_s)}, per token {seconds(rate.tpot_mean_s)}, "
        f"KV in use at the end {rate_text(rate.kv_use)}"
    )


def _figure(
    path: Path,
    label: str,
    records: dict[str, list[ServerRates]],
    value: Callable[[ServerRates], float | None],
) -> Path:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for url, rows in records.items():
        known = [(row.at_s, number) for row in rows if (number := value(row)) is not None]
        if known:
            times, values = np.array(known).T
            axes.plot(times, _smoothed(times, values), label=url)
    if axes.lines:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "no server tells this", ha="center", transform=axes.transAxes)
    axes.set_xlabel("seconds")
    axes.set_ylim(bottom=0)
    axes.set_title(label)
    figure.savefig(path, dpi=DPI)
    return path


def _smoothed(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mean of the last second: rates between polls of 0.1 s jump with every step of the engine."""
    starts = np.searchsorted(times, times - _SMOOTH_S, side="right")
    sums = np.concatenate(([0.0], np.cumsum(values)))
    ends = np.arange(1, len(values) + 1)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _latencies(path: Path, run: EndpointRun) -> Path:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for label, values in (
        ("TTFT", [r.ttft_s for r in run.results if r.ttft_s is not None]),
        ("E2E", [r.e2e_s for r in run.results if r.e2e_s is not None]),
    ):
        if values:
            axes.ecdf(values, label=label)
    if axes.lines:
        axes.legend()
    axes.set_xlabel("seconds")
    axes.set_title("share of requests within")
    figure.savefig(path, dpi=DPI)
    return path


def _arrivals(path: Path, run: EndpointRun) -> Path:
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    gaps_s = np.diff(sorted(result.arrival_s for result in run.results))
    if gaps_s.any():
        axes.hist(gaps_s, bins=_ARRIVAL_BINS, range=(0.0, float(gaps_s.max())))
    axes.set_xlabel("seconds")
    axes.set_title("gaps between requests")
    figure.savefig(path, dpi=DPI)
    return path
