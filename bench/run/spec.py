"""Everything that decides one simulated run, as one flat record: what a sweep varies and a result line repeats."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from bench.data.named import check_name
from bench.run.packaged import packaged_path
from bench.run.simulate import ClusterShape
from bench.simcluster.node import Delays
from bench.simcluster.noise import Noise
from bench.workload.arrivals import ArrivalKind
from bench.workload.item import LengthKnowledge
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: who decides, over which nodes, for which requests."""

    policy: str = "min_total_latency"
    """A name, an alias, or a path to a policy file."""
    sample: int = 0
    """Nodes drawn at random per decision; 0: the policy's default."""
    router: dict[str, Any] = {}
    """Further keys of the router's configuration."""
    correcting: bool = True
    """Predictors correct their forecasts by what became of earlier ones. Block's do not."""
    lengths: LengthKnowledge = "known"
    length_error: float = 0.0
    """Standard deviation of a factor on each expected length, as a share."""
    latency_error: float = 0.0
    """The same on each forecast."""
    dataset: str = "block-sharegpt"
    """A name of `bench.data.named`, or a path to a workload file."""
    dataset_path: str = ""
    in_order: bool = False
    """Rows in file order, not shuffled by the seed."""
    arrivals: ArrivalKind = "gamma"
    burstiness: float = 1.0
    rate_per_s: float | None = None
    """None: the data set's own arrivals."""
    rate_scale: float = 1.0
    requests: int = 10_000
    seed: int = 0
    nodes: int = 12
    profile: str = "a30/llama-2-7b"
    """A shipped profile, or a path to a profile file."""
    max_num_seqs: int = 48
    max_num_batched_tokens: int = 512
    block_size_tokens: int = 16
    num_blocks: int = 1052
    max_model_len_tokens: int = 4096
    network_one_way_s: float = 0.0002
    gateway_s: float = 0.0003
    """Gateway work per event."""
    forecast_s: float = 0.0005
    note_interval_s: float = 0.005
    slo_ttft_s: float = 3.0
    slo_tpot_s: float = 0.1

    @property
    def shape(self) -> ClusterShape:
        return ClusterShape(**{name: getattr(self, name) for name in ClusterShape.__struct_fields__})

    @property
    def key(self) -> str:
        """Two specs with one key are the same run; what files named in it hold counts, not their names alone."""
        own = msgspec.json.encode(msgspec.to_builtins(self), order="deterministic")
        digest = hashlib.sha256(own)
        for path in self.files:
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()[:16]

    @property
    def files(self) -> list[str]:
        """Files of the user's own that decide the run."""
        named = (self.policy, self.dataset, self.profile, self.dataset_path)
        return [path for path in map(packaged_path, named) if path.endswith((".py", ".json")) and Path(path).is_file()]


SHORT_NAMES = {
    "rate": "rate_per_s",
    "workload": "dataset",
    "batch": "max_num_seqs",
    "chunk": "max_num_batched_tokens",
}


class SpecError(ValueError):
    """A run that cannot be. The message says which value of which key, and what it may be."""


def field_names() -> list[str]:
    return list(RunSpec.__struct_fields__)


def check_field(name: str) -> str:
    """The field of that name, `-` for `_`; `router.x` is key x of the router. Raises SpecError."""
    ours = name.strip().replace("-", "_")
    ours = SHORT_NAMES.get(ours, ours)
    of_router = ours.startswith("router.")
    known = [f"router.{key}" for key in RouterConfig.__struct_fields__] if of_router else field_names()
    if ours not in known:
        near = difflib.get_close_matches(ours, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        raise SpecError(f"unknown key {name!r}; {hint}")
    return ours


def with_values(spec: RunSpec, values: Mapping[str, Any]) -> RunSpec:
    """A copy with other values, strictly typed. Raises SpecError."""
    document: dict[str, Any] = msgspec.to_builtins(spec)
    router = dict(spec.router)
    for name, value in values.items():
        field = check_field(name)
        if field.startswith("router."):
            router[field.removeprefix("router.")] = value
        elif field == "router":
            router |= value
        else:
            document[field] = value
    document["router"] = router
    try:
        return msgspec.convert(document, RunSpec)
    except msgspec.ValidationError as error:
        raise SpecError(f"{error}; see `astrolabe bench sweep --help` for the keys") from None


def check_spec(spec: RunSpec) -> None:
    """Raises SpecError, DatasetError or PolicyError for a run that cannot be."""
    positive = ("requests", "nodes", "max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "num_blocks")
    for name in positive:
        if getattr(spec, name) < 1:
            raise SpecError(f"{name} is {getattr(spec, name)}; it must be at least 1")
    for name in ("rate_per_s", "rate_scale", "burstiness"):
        value = getattr(spec, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name} is {value:g}; it must be above 0")
    if spec.sample > spec.nodes:
        raise SpecError(f"sample is {spec.sample}, but there are only {spec.nodes} nodes to draw from")
    if spec.sample < 0 or spec.seed < 0:
        raise SpecError("sample and seed must not be negative")
    longest = spec.shape.longest_tokens
    if longest < 2:
        raise SpecError(f"{spec.num_blocks} KV blocks of {spec.block_size_tokens} tokens hold no request")
    check_name(spec.dataset)
    try:
        router_config(spec, "random")
    except ValueError as error:
        raise SpecError(f"router: {error}") from None
    try:
        delays_of(spec)
        noise_of(spec)
    except ValueError as error:
        raise SpecError(str(error)) from None


def router_config(spec: RunSpec, policy: str) -> RouterConfig:
    """The router's configuration for a policy that is registered by this name.

    As published systems work, unless `router` says otherwise: all nodes drawn are asked, and nothing is held back.
    `hold` may be its `when` alone; `seed`, of ties and draws, is the run's unless it is named. Raises ValueError.
    """
    own: dict[str, Any] = {"ask": 0, "hold": "never", "seed": spec.seed, "explain_keep": 0} | spec.router
    for name in ("policy", "sample"):
        if name in spec.router:
            raise ValueError(f"router.{name} is the key {name} of the run")
    when: Any = own["hold"]
    if not isinstance(when, Mapping):
        own["hold"] = {"when": HoldConfig(when=when).when}
    return msgspec.convert(own | {"policy": policy, "sample": spec.sample}, RouterConfig)


def delays_of(spec: RunSpec) -> Delays:
    """The ways between client, gateway and nodes. Raises ValueError."""
    return Delays(
        network_one_way_s=spec.network_one_way_s,
        decision_s=spec.gateway_s,
        forecast_s=spec.forecast_s,
        note_interval_s=spec.note_interval_s,
    )


def noise_of(spec: RunSpec) -> Noise | None:
    """The errors put on lengths and forecasts; None where there are none. Raises ValueError."""
    noise = Noise(length=spec.length_error, latency=spec.latency_error)
    return noise if noise.length or noise.latency else None
