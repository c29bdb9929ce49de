"""`astrolabe explain`: why a request went where it went, and what became of it; why there are as many nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from deploy.gateway_client import dispatch_stub, gateway_option
from protos.runtime.options import json_option

if TYPE_CHECKING:
    from rich.console import Console

    from protos.v1 import astrolabe_dispatch_pb2 as pb
    from protos.v1 import astrolabe_types_pb2 as types_pb

_HOW = {
    "pass_through": "handed on as its client made it",
    "by_proxy": "taken there by the proxy that asked where to go",
}
"""How a request goes to its engine, by lane; by tokens in any other."""


@click.command(
    epilog="""\b
Example: the id stands in the summary of 'astrolabe request' and in the gateway's log.
  astrolabe explain r-6f1a2b3c4d5e6f70

\b
Example: why there are as many nodes as there are.
  astrolabe explain --scaling
"""
)
@click.argument("request_id", required=False)
@click.option("--scaling", is_flag=True, help="Explain the number of nodes, in place of a request.")
@click.option(
    "--decisions", type=click.IntRange(1, 256), default=10, show_default=True, help="With --scaling: at most so many."
)
@gateway_option
@json_option
def explain(request_id: str | None, scaling: bool, decisions: int, gateway: str, as_json: bool) -> None:
    """Why REQUEST_ID went where it went: every node's cost and forecast, then what really happened.

    With --scaling: what the scaler has seen, wanted and done, and why.
    """
    from protos.v1 import astrolabe_dispatch_pb2 as pb

    if scaling:
        _explain_scaling(gateway, decisions, as_json=as_json)
        return
    if request_id is None:
        raise click.UsageError("name a request by its REQUEST_ID, or say --scaling")
    with dispatch_stub(gateway) as stub:
        explanation = stub.Explain(pb.ExplainRequest(request_id=request_id), timeout=5.0)
    if as_json:
        import orjson
        from google.protobuf.json_format import MessageToDict

        click.echo(orjson.dumps(MessageToDict(explanation, preserving_proto_field_name=True)))
        return
    from rich.console import Console

    console = Console()
    for decision in explanation.decisions:
        _print_decision(console, decision)
    _print_lane(console, explanation)
    _print_belief(console, explanation)
    for told in explanation.moves:
        _print_move(console, told)
    _print_actual(console, explanation.actual)


def _explain_scaling(gateway: str, decisions: int, *, as_json: bool) -> None:
    from deploy.commands.scale import as_document, print_decisions, print_groups, scaling_of

    said = scaling_of(gateway, decisions=decisions)
    if as_json:
        click.echo(as_document(said))
        return
    from rich.console import Console

    console = Console()
    print_decisions(console, said)
    print_groups(console, said)


def _print_decision(console: Console, decision: pb.Decision) -> None:
    from rich import box
    from rich.table import Table

    from protos.runtime.terminal import print_table

    table = Table(
        title=f"attempt {decision.attempt}: {decision.node_id or 'no node'}, by {decision.policy} "
        f"in {decision.decision_s * 1000:.2f} ms",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("node", no_wrap=True)
    # Two lines a head: the table fits a terminal of 80 columns.
    names = (
        f"cost\n{decision.cost_unit}", "TTFT\ns", "E2E\ns", "harm\ns", "pre-\nempted", "blocks\nleft", "state\nage s",
    )  # fmt: skip
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for score in decision.scores:
        chosen = score.node_id == decision.node_id
        forecast = ("-",) * 5
        if score.HasField("forecast"):
            f = score.forecast
            forecast = (
                f"{f.ttft_s.mean:.3f}",
                f"{f.e2e_s.mean:.3f}",
                f"{f.harm_s.mean:.3f}",
                f"{f.preemptions:.2f}",
                str(f.kv_headroom_blocks),
            )
        table.add_row(
            "→" if chosen else "",
            score.node_id,
            f"{score.cost:.4g}" if score.HasField("cost") else "-",
            *forecast,
            f"{score.state_age_s:.3f}",
            style="bold" if chosen else "",
        )
    print_table(console, table)
    alike: dict[str, list[str]] = {}
    for score in decision.scores:
        if score.note:
            alike.setdefault(score.note, []).append(score.node_id)
    for note, nodes in alike.items():
        console.print(f"{', '.join(nodes)}: {note}", highlight=False, markup=False)
    console.print(decision.reason, highlight=False)
    for score in decision.scores:
        if score.node_id == decision.node_id and score.HasField("forecast"):
            _print_forecast(console, score.forecast)


def _print_forecast(console: Console, forecast: types_pb.Forecast) -> None:
    """All that the chosen node foresaw, with the spread over its futures."""
    from simcore.types import HEADROOM_HORIZONS_S

    times = (
        f"ttft {_spread(forecast.ttft_s)} s",
        f"tpot {_spread(forecast.tpot_s, 1e3, 1)} ms",
        f"e2e {_spread(forecast.e2e_s)} s",
        f"harm {_spread(forecast.harm_s)} s",
        f"clear start in {_spread(forecast.clear_start_s)} s",
    )
    # The reason goes by means: beside a median of other futures they look like a contradiction.
    console.print(f"what {forecast.node_id} foresaw, mean (p50 / p90): {', '.join(times)}", highlight=False)
    said = f"somebody preempted in {forecast.preemption_probability:.0%} of its futures"
    if forecast.kv_headroom_path:
        blocks = ", ".join(map(str, forecast.kv_headroom_path))
        said += f"; fewest KV blocks free within {', '.join(f'{h:g}' for h in HEADROOM_HORIZONS_S)} s: {blocks}"
    if forecast.cached_tokens:
        said += f"; {forecast.cached_tokens} tokens of the prompt in its prefix cache"
    console.print(said, highlight=False)


def _spread(told: types_pb.Quantiles, factor: float = 1.0, places: int = 3) -> str:
    mean, p50, p90 = (f"{factor * value:.{places}f}" for value in (told.mean, told.p50, told.p90))
    return f"{mean} ({p50} / {p90})"


_COUNTED = {"length": "estimated by its length", "engine": "counted by its engine"}


def _print_lane(console: Console, explanation: pb.Explanation) -> None:
    by = _COUNTED.get(explanation.prompt_counted_by, "counted by the gateway's tokenizer")
    how = _HOW.get(explanation.lane, "generated token by token")
    console.print(f"how it went to its engine: {how} (lane {explanation.lane}); prompt {by}", highlight=False)


def _print_belief(console: Console, explanation: pb.Explanation) -> None:
    from protos import codec

    belief = codec.belief_from_wire(explanation.belief)
    if belief is None:
        return
    said = f"{belief.quantile_tokens(0.5)} tokens"
    if len(belief.atoms_tokens) > 1:
        said = f"p50 {said}, p90 {belief.quantile_tokens(0.9)}, mean {belief.mean_tokens:.0f}"
    source = f" ({explanation.belief_source})" if explanation.belief_source else ""
    console.print(f"what was believed of the answer's length: {said}{source}", highlight=False)


def _print_move(console: Console, told: pb.MoveInfo) -> None:
    from deploy.commands.move import sentence

    console.print(f"after {told.after_s:.3f} s, as {told.why}, it {sentence(told)}", highlight=False, markup=False)


def _print_actual(console: Console, actual: pb.Actual) -> None:
    from protos import codec

    outcome = codec.outcome_from_wire(actual.outcome).value if actual.outcome else "still runs"
    ttft = f"{actual.ttft_s:.3f} s" if actual.HasField("ttft_s") else "-"
    e2e = f"{actual.e2e_s:.3f} s" if actual.HasField("e2e_s") else "-"
    console.print(
        f"what happened: {outcome}; ttft {ttft}, e2e {e2e}, {actual.usage.prompt_tokens} prompt tokens "
        f"({actual.usage.cached_tokens} of them cached), {actual.usage.output_tokens} output tokens",
        highlight=False,
    )
