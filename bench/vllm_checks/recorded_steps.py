"""What `bench.vllm_checks.real_device` recorded, against a profile: steps, whole requests, forecasts, learning.

    python -m bench.vllm_checks.recorded_steps --profile h200/qwen3-32b DIRECTORY/steps-*.jsonl

Each file is a run of its own; learning alone goes through all of them, in the order given. Nothing of the profile is
fitted to the runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec
import numpy as np

from bench.measure.forecast_errors import ForecastOutcome, errors_of
from bench.profile.calibration import Trace, learn
from bench.profile.measured_run import MeasuredRequest
from bench.profile.validate import METRICS, validate
from predictor.core.calibration import Calibration
from predictor.core.node_predictor import NodePredictor
from predictor.core.traced_engine import TracedEngine
from simcore.cost.shipped import load_profile
from simcore.cost.step_time import StepTimeModel
from simcore.trace import TraceDelta, TraceSnapshot
from simcore.types import Candidate, Forecast, LengthBelief

RESERVED_S = 30.0
"""As daemons hold a dispatched request that the trace does not show yet."""
SEQS = (1, 8, 32, 64, 128, 200, 1025)
"""Edges of the rows of decoding steps, in sequences."""
CUT_OFF_S = 25.0
"""Requests of the end of a run that was cut short are left out: those that ended are the short ones."""


class Recording(msgspec.Struct, frozen=True):
    """One run of one engine."""

    snapshot: TraceSnapshot
    deltas: Sequence[TraceDelta]


def recording_of(content: bytes, name: str) -> Recording:
    """Raises click.ClickException for a file that does not begin with a snapshot or has no step."""
    first, *rest = content.splitlines() or [b""]
    try:
        snapshot = msgspec.json.decode(first, type=TraceSnapshot)
    except msgspec.DecodeError as error:
        raise click.ClickException(f"{name}: line 1 is no snapshot of an engine ({error}); record it again") from None
    if not rest:
        raise click.ClickException(f"{name}: no step was recorded; was the server traced while requests ran?")
    return Recording(snapshot, [msgspec.json.decode(line, type=TraceDelta) for line in rest if b'"duration_s"' in line])


def requests_of(recording: Recording) -> list[MeasuredRequest]:
    """The requests that arrived and ended within the recording, in order of arrival."""
    arrived: dict[str, tuple[float, int]] = {}
    first_s: dict[str, float] = {}
    made: dict[str, int] = {}
    found: list[MeasuredRequest] = []
    for delta in recording.deltas:
        for state in delta.arrived:
            arrived[state.request_id] = (state.arrival_s, state.prompt_tokens)
        for part in delta.scheduled:
            made[part.request_id] = made.get(part.request_id, 0) + part.produced
            if part.produced:
                first_s.setdefault(part.request_id, delta.end_s)
        for request_id in delta.finished:
            if request_id in arrived and request_id in first_s:
                queued_s, prompt_tokens = arrived[request_id]
                found.append(
                    MeasuredRequest(
                        request_id=request_id,
                        input_toks=prompt_tokens,
                        output_toks=made[request_id],
                        queued_ts=queued_s,
                        first_token_ts=first_s[request_id],
                        last_token_ts=delta.end_s,
                    )
                )
    if len(found) < len(arrived):
        end_s = recording.deltas[-1].end_s - CUT_OFF_S
        found = [r for r in found if r.queued_ts < end_s]
    order = {request_id: position for position, request_id in enumerate(arrived)}
    return sorted(found, key=lambda r: order[r.request_id])


def forecasts_of(recording: Recording, prior: StepTimeModel) -> tuple[list[ForecastOutcome], list[ForecastOutcome]]:
    """What a daemon that knows only `prior` when the run begins would have forecast for each request as it came, its
    length known, beside what happened: (TTFT, E2E), in order of arrival, those cut off left out.

    The daemon's own code, on the recorded times: the trace, learned step times, corrections by outcomes.
    """
    engine = TracedEngine("n", recording.snapshot.config, prior, reservation_ttl_s=RESERVED_S, calibrate=True)
    predictor = NodePredictor(engine, Calibration())
    engine.on_snapshot(recording.snapshot, recording.snapshot.at_s)
    whole = {r.request_id: r for r in requests_of(recording)}
    coming = sorted((s for d in recording.deltas for s in d.arrived), key=lambda s: s.arrival_s)
    forecasts: dict[str, Forecast] = {}
    made: dict[str, int] = {}
    position = 0
    for delta in recording.deltas:
        while position < len(coming) and coming[position].arrival_s < delta.end_s:
            state, now_s = coming[position], coming[position].arrival_s
            position += 1
            candidate = Candidate(
                request_id=state.request_id,
                prompt_tokens=state.prompt_tokens,
                max_output_tokens=state.max_output_tokens,
                belief=LengthBelief((state.max_output_tokens,)),
            )
            (answer,) = predictor.forecast([candidate], now_s)
            assert isinstance(answer, Forecast), answer
            forecasts[state.request_id] = answer
            predictor.dispatched(candidate, now_s)
        engine.on_delta(delta, delta.end_s)
        for part in delta.scheduled:
            if part.produced:
                made[part.request_id] = made.get(part.request_id, 0) + part.produced
                predictor.first_token(part.request_id, delta.end_s)
        for request_id in delta.finished:
            predictor.ended(request_id, delta.end_s, complete=True, output_tokens=made.get(request_id, 0))
    ttft, e2e = [], []
    for request_id, request in whole.items():
        forecast = forecasts[request_id]
        first_s, last_s = request.first_token_ts - request.queued_ts, request.last_token_ts - request.queued_ts
        ttft.append(ForecastOutcome(forecast.ttft_s.p50, forecast.ttft_s.p90, first_s))
        e2e.append(ForecastOutcome(forecast.e2e_s.p50, forecast.e2e_s.p90, last_s))
    return ttft, e2e


def step_rows(deltas: Sequence[TraceDelta], model: StepTimeModel) -> list[str]:
    """Markdown: medians of recorded and modelled steps by number of decoding sequences, then those that prefill."""
    kinds = {
        f"{low} to {high - 1} decode": [
            d for d in deltas if not d.batch.prefill_seqs and low <= d.batch.decode_seqs < high
        ]
        for low, high in itertools.pairwise(SEQS)
    }
    kinds["with prefill"] = [d for d in deltas if d.batch.prefill_seqs]
    rows = ["| steps | number | recorded ms, median | profile / recorded, median (p10 to p90) |", "|---|---|---|---|"]
    for name, some in kinds.items():
        if some:
            ratios = np.array([model.seconds(d.batch) / d.duration_s for d in some])
            low, mid, high = np.quantile(ratios, (0.1, 0.5, 0.9))
            took_ms = 1e3 * float(np.median([d.duration_s for d in some]))
            rows.append(f"| {name} | {len(some):,} | {took_ms:.1f} | {mid:.3f} ({low:.2f} to {high:.2f}) |")
    return rows


@click.command()
@click.option("--profile", default="h200/qwen3-32b", show_default=True)
@click.option("--prior", "priors", multiple=True, default=("a30/llama-2-7b",), show_default=True, help="To learn from.")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(profile: str, priors: Sequence[str], files: Sequence[Path]) -> None:
    """Print tables, Markdown: steps, learning, and whole requests replayed with the profile."""
    steps: list[TraceDelta] = []
    for path in files:
        recording = recording_of(path.read_bytes(), str(path))
        config = recording.snapshot.config
        model = load_profile(profile).step_time_model(async_scheduling=config.async_scheduling)
        deltas = [d for d in recording.deltas if d.batch.total_tokens and d.duration_s > 0]
        steps += deltas
        click.echo(f"\n{path.name}: {config.engine} {config.engine_version}, {len(deltas):,} steps\n")
        click.echo("\n".join(step_rows(deltas, model)))
        requests = requests_of(recording)
        replayed = validate(requests, msgspec.structs.replace(config, engine="vllm"), model)
        click.echo(f"\n{replayed.requests:,} requests replayed: recorded, simulated s (difference)\n")
        click.echo("| | mean | P50 | P90 | P99 |\n|---|---|---|---|---|")
        for metric in METRICS:
            cells = [
                f"{getattr(replayed.measured[metric], at):.3f}, {getattr(replayed.simulated[metric], at):.3f} "
                f"({100 * replayed.error[metric][at]:+.1f} %)"
                for at in ("mean", "p50", "p90", "p99")
            ]
            click.echo(f"| {metric.removesuffix('_s').upper()} | {' | '.join(cells)} |")
        click.echo("\nforecasts at arrival, by a daemon that begins with the run, length known\n")
        click.echo("| taken for | | requests | error P50 | P90 | bias | actuals under p90 |\n" + "|---" * 7 + "|")
        for name in dict.fromkeys((profile, *priors)):
            prior = load_profile(name).step_time_model(async_scheduling=config.async_scheduling)
            for what, pairs in zip(("TTFT", "E2E"), forecasts_of(recording, prior), strict=True):
                if (off := errors_of(pairs)) is not None:
                    shares = (off.error_p50, off.error_p90, off.bias, off.under_p90)
                    cells = [f"{100 * share:.1f} %" for share in shares]
                    click.echo(f"| {name} | {what} | {off.samples:,} | {' | '.join(cells)} |")
    trace = Trace([d.batch for d in steps], [d.duration_s for d in steps])
    click.echo("\nmedian error over the next 100 steps, learned from the trace alone\n")
    click.echo("| taken for | before | after 10 steps | 100 | 500 | 1,000 | 3,000 | at the end |\n" + "|---" * 8 + "|")
    for name in dict.fromkeys((profile, *priors)):
        course = learn(trace, load_profile(name).step_time_model(async_scheduling=True), name=name)
        after = [course.at_steps.get(mark) for mark in (10, 100, 500, 1000, 3000)]
        cells = [
            f"{100 * error:.1f} %" if error is not None else "-" for error in (course.before, *after, course.final)
        ]
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
