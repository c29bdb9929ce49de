"""A setting is said once, in its record: what it means, and hence how it reads on the command line."""

from __future__ import annotations

import click
import msgspec
import pytest

from gateway.cli import gateway
from gateway.config import GatewayConfig
from predictor.cli import predictor
from predictor.config import PredictorConfig
from protos.runtime.config import tables_of
from protos.runtime.options import docstrings, options_of

PROCESSES: list[tuple[type[msgspec.Struct], click.Command]] = [(GatewayConfig, gateway), (PredictorConfig, predictor)]


@pytest.mark.parametrize(("kind", "_"), PROCESSES)
def test_every_field_says_what_it_is(kind: type[msgspec.Struct], _: click.Command) -> None:
    silent = [
        f"{table.__name__}.{field}"
        for table in (kind, *tables_of(kind).values())
        for field in table.__struct_fields__
        if not docstrings(table).get(field)
    ]
    assert silent == []


@pytest.mark.parametrize(("kind", "command"), PROCESSES)
def test_every_field_is_an_option_of_its_process(kind: type[msgspec.Struct], command: click.Command) -> None:
    tables = {(): kind, **tables_of(kind)}
    fields = {
        (*path, field.name)
        for path, table in tables.items()
        for field in msgspec.inspect.type_info(table).fields  # type: ignore[attr-defined]
        if "no_option" not in (getattr(field.type, "extra", None) or {})
    } - set(tables)
    assert {option.path for option in options_of(kind)} == fields
    parameters = [option.parameter for option in options_of(kind)]
    assert len(set(parameters)) == len(parameters)
    assert {p.name for p in command.params} - {"path", "paths"} == set(parameters)


STABLE_NAMES = {
    "gateway": """--ext-proc-listen --discovery-dns-srv --discovery-dns-server --discovery-file
        --discovery-kubernetes-service
        --listen --http-listen --workers --keys --tls-cert --tls-key --tls-client-ca --node-ca --node-cert
        --node-server-name --node-key --insecure --max-body-bytes --max-prompt-tokens --node --dns-interval-s --policy
        --policy-file --sample --ask --hold --hold-order --hold-aging-s --hold-max-requests --hold-max-tokens
        --hold-max-s --infeasible --seed --forecast-timeout-ms --fallback --max-attempts --retry-share --retry-burst
        --stall-s --state-stale-s --tokenizer --lengths --lengths-deadline-ms --max-buffered-tokens --keepalive-s
        --min-ping-interval-s --reconnect-max-s --lame-duck-s --drain-grace-s
        --gateway-id --otlp-endpoint --record --ready-file --log-level
        --config""",
    "predictor": """--engine-address --engine-http-listen
        --config --node-id --listen --metrics-listen --tls-cert --tls-key --tls-client-ca --insecure
        --engine --engine-url --engine-trace --engine-ca --engine-cert --engine-key --engine-wait-s --engine-api-key
        --engine-api-key-file --profile
        --calibrate --no-calibrate --engine-profile --model --tokenizer --max-num-seqs
        --max-num-batched-tokens --block-size-tokens --num-blocks --max-model-len-tokens
        --scheduling-policy --time-scale --reservation-ttl-s --scenarios
        --otlp-endpoint --ready-file --log-level""",
}
"""Names that scripts and units rely on: renaming a field must not take them away."""


@pytest.mark.parametrize(("_", "command"), PROCESSES)
def test_the_names_that_scripts_rely_on_stay(_: type[msgspec.Struct], command: click.Command) -> None:
    assert command.name is not None
    flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    assert set(STABLE_NAMES[command.name].split()) - flags == set()
