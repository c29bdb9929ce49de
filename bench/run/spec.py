"""Everything that decides one simulated run, as one flat record: what a sweep varies and a result line repeats."""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from bench.data.datasets import DEFAULT_OUTPUT_TOKENS, DEFAULT_PROMPT_TOKENS
from bench.data.named import check_name
from bench.measure.groups import GroupFacts
from bench.run.asked_moves import asked_moves
from bench.run.scaling import check_scaling, with_most_nodes
from bench.simcluster import Delays, NodeSpec
from bench.simcluster.noise import Noise
from bench.workload.item import LengthKnowledge
from bench.workload.models import model_shares
from deploy.fleet import Fleet, NodeGroup, checked, fleet_file, read_fleet
from gateway.core.queue.queue import HoldConfig
from gateway.core.router import RouterConfig
from simcore.types import EngineConfig

Count = Annotated[int, msgspec.Meta(ge=1)]
Index = Annotated[int, msgspec.Meta(ge=0)]

_EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
_PACKAGED = {".py": "policies", ".json": "profiles"}


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run: who decides, over which nodes, for which requests.

    Nodes default to the limits of Block's A30 experiments (48 sequences, 512 tokens, 1,052 blocks).
    """

    policy: str = "min_total_latency"
    """A name, an alias, or a path to a policy file."""
    sample: Index = 0
    """Nodes drawn at random per decision; 0: the policy's default."""
    router: dict[str, Any] = {}
    """Further keys of the router's configuration."""
    as_published: bool = False
    """The router as published systems have it, not as it ships: all nodes drawn asked, nothing held back, a predicted
    length believed as it stands."""
    correcting: bool | Literal["by size"] = True
    """Predictors correct their forecasts by what became of earlier ones ("by size": not by the arrival rate). Block's
    do not."""
    lengths: LengthKnowledge = "known"
    """What the router is told of each answer's length: the truth, nothing (a live gateway then has its own length
    model's belief, see its --lengths), the data set's prediction."""
    length_error: float = 0.0
    """Standard deviation of a factor on each expected length, as a share."""
    latency_error: float = 0.0
    """The same on each forecast."""
    dataset: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "block-sharegpt"
    """sharegpt: conversations as JSON (the installed package, or your file). burstgpt: its CSV, version 1 or 2. azure:
    LLM inference trace of 2023 or 2024. mooncake: JSON with hash_ids. servegen: X_arrivals.csv with
    X_lengths_quantiles.csv beside it. power-law: lengths drawn as Llumnix's, see --shape. fixed: all
    alike, see --prompt-tokens and --output-tokens. lengths: CSV num_prefill_tokens,num_decode_tokens[,arrived_at].
    turns: CSV conv,turn,role,tokens. jsonl: {"prompt": text, "output_tokens": m} or {"prompt_tokens": n,
    "output_tokens": m} a line. `astrolabe bench data list` says where to get them. block-sharegpt,
    block-sharegpt-predicted, burstgpt-like and llumnix-...: what published systems were measured with. Or a .py file
    of your own with a function `workload`."""
    dataset_path: Annotated[str, msgspec.Meta(extra={"metavar": "FILE"})] = ""
    """The data set's file, packed or not. It is read as what it begins as; a note says where --dataset differs."""
    skip_bad: bool = False
    """Leave out rows that cannot be read, and say how many."""
    tokenizer: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = ""
    """Counts tokens of texts; empty: the best installed."""
    prompt_tokens: Count = DEFAULT_PROMPT_TOKENS
    """fixed: length of every prompt."""
    output_tokens: Count = DEFAULT_OUTPUT_TOKENS
    """fixed: length of every answer. JSON lines: of those that do not say theirs."""
    shape: Annotated[str, msgspec.Meta(extra={"metavar": "PROMPT-ANSWER"})] = "medium-medium"
    """power-law: short, medium or long, of prompts and answers; S-L is short-long."""
    start_s: Annotated[float, msgspec.Meta(extra={"option": "start", "metavar": "S"})] = 0.0
    """Recorded arrivals: begin so many seconds into the trace."""
    rows: Annotated[str, msgspec.Meta(extra={"metavar": "A:B"})] = ""
    """Use data rows A:B only, counted from 1."""
    in_order: bool | None = None
    """Rows in file order, or shuffled by the seed; not given: in order where prompts share beginnings, or else
    shuffled."""
    arrivals: Literal["poisson", "gamma", "uniform", "recorded"] = "gamma"
    """Process that makes the arrivals when a rate is given; recorded: the data set's own, scaled to the rate."""
    burstiness: float = 1.0
    """Shape of gamma gaps: 1 is Poisson, less is burstier."""
    rate_per_s: float | None = None
    """Requests per second. None: the data set's own arrivals."""
    rate_scale: float = 1.0
    """For recorded arrivals (no rate given): 2 is twice as dense."""
    rate_steps: Annotated[str, msgspec.Meta(extra={"metavar": "RxS,..."})] = ""
    """A rate that changes: 20x1200,30x600 is 20 requests/s for 1200 s, then 30 for 600 s."""
    day_curve: float | None = None
    """One day squeezed into the duration: the rate swings by this factor around its mean (BurstGPT: 11.7)."""
    requests: Count | None = 10_000
    """Length of the run in requests; not given: as many as the data set or the duration gives."""
    duration_s: Annotated[float | None, msgspec.Meta(extra={"option": "duration", "metavar": "S"})] = None
    """Length of the run in seconds."""
    concurrency: Annotated[Count | None, msgspec.Meta(extra={"metavar": "N"})] = None
    """A closed loop instead of a rate, in simulations: so many requests at a time, the next when one has ended."""
    warm_up_s: Annotated[float, msgspec.Meta(extra={"option": "warm-up", "metavar": "S"})] = 0.0
    """Simulations: what comes in the first S seconds is run and not measured."""
    seed: Index = 0
    nodes: Count = 12
    """Equal nodes."""
    profile: Annotated[str, msgspec.Meta(extra={"metavar": "GPU/MODEL|FILE"})] = "a30/llama-2-7b"
    """Step times of the nodes: a shipped profile, or a path to a profile file."""
    fleet: Annotated[str | tuple[NodeGroup, ...], msgspec.Meta(extra={"metavar": "NAME|FILE|N*PROFILE,..."})] = ""
    """Nodes that differ, in place of equal ones: a shipped fleet (a30x12, mixed, h100-l40s), a TOML file, or
    6*a30/llama-3.1-8b,3*l40s/llama-3.1-8b; what it leaves out is as for equal ones."""
    models: Annotated[str | dict[str, float], msgspec.Meta(extra={"metavar": "NAME=SHARE,..."})] = ""
    """What share of the requests asks for which model, for a fleet that serves several: llama-3.1-8b=3,qwen2-7b=1."""
    max_num_seqs: Count = 48
    """Requests in one batch."""
    max_num_batched_tokens: Count = 512
    """Token budget of one step."""
    block_size_tokens: Count = 16
    """Tokens per KV block."""
    num_blocks: Count | None = None
    """KV blocks of a node; not given: what the profile's memory gives."""
    max_model_len_tokens: Count = 4096
    """Prompt plus answer limit."""
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    """Order in which engines take the requests that wait there."""
    high_share: Annotated[float, msgspec.Meta(ge=0, le=1, extra={"metavar": "SHARE"})] = 0.0
    """Share of the requests, drawn at random, that are sent with priority -1."""
    priority_blind: bool = False
    """Simulations: neither the router nor engines are told of priorities; results tell the classes apart all the same.
    """
    moves_asked: Annotated[str, msgspec.Meta(extra={"metavar": "N>NODE@S,..."})] = ""
    """Simulations: after S seconds the N-th request is told to go on at NODE, as by `astrolabe move`; 65>node-1@6."""
    moves_gently: bool = False
    """Those moves take no more than their share of the destination's time."""
    network_one_way_s: float = 0.0002
    gateway_s: float = 0.0003
    """Gateway work per event."""
    forecast_s: float = 0.0005
    note_interval_s: float = 0.005
    slo_ttft_s: Annotated[float, msgspec.Meta(extra={"option": "slo-ttft", "metavar": "S"})] = 3.0
    """A good answer's time to first token, at most."""
    slo_tpot_s: Annotated[float, msgspec.Meta(extra={"option": "slo-tpot", "metavar": "S"})] = 0.1
    """A good answer's time per token after the first, at most."""
    slo_e2e_s: Annotated[float | None, msgspec.Meta(extra={"option": "slo-e2e", "metavar": "S"})] = None
    """A good answer's time from arrival to end, at most; not given: any."""
    slo_share: Annotated[float, msgspec.Meta(extra={"metavar": "SHARE"})] = 0.95
    """Share of the requests that a scaler must keep within those times."""
    scaler: Annotated[str, msgspec.Meta(extra={"metavar": "NAME|FILE"})] = ""
    """Decides how many nodes serve: a scaling rule by name or file, static (always the most), perfect (knows the
    future); not given: all nodes serve always."""
    scaler_options: Annotated[dict[str, Any], msgspec.Meta(extra={"no_option": "several pairs"})] = {}
    """Of the scaling rule."""
    min_nodes: Annotated[int | str, msgspec.Meta(extra={"option": "min", "metavar": "N|GROUP=N,..."})] = "1"
    """Nodes that a scaler keeps at least; by group: a30=2,h100=0."""
    max_nodes: Annotated[int | str, msgspec.Meta(extra={"option": "max", "metavar": "N|GROUP=N,..."})] = ""
    """Nodes that a scaler has at most; not given: those of --nodes or --fleet."""
    start_nodes: Annotated[int | str, msgspec.Meta(extra={"metavar": "N|GROUP=N,..."})] = ""
    """Nodes that serve when a scaled run begins; not given: the least."""
    cold_start: Annotated[int | float | str, msgspec.Meta(extra={"metavar": "S|A:B|P50/P90"})] = "60"
    """From the wish for a node to its first request: always S, uniform from A to B, or log-normal; by group with
    GROUP=...,...."""
    price: Annotated[int | float | str, msgspec.Meta(extra={"metavar": "PRICE|GROUP=PRICE,..."})] = ""
    """Of one node and hour, from the wish to the stop; not given: the fleet's, or 1."""
    tick_s: Annotated[float, msgspec.Meta(extra={"option": "tick", "metavar": "S"})] = 5.0
    """Between two decisions of the scaler."""
    failed_starts: Annotated[float, msgspec.Meta(extra={"metavar": "SHARE"})] = 0.0
    """Share of the starts that are refused, break or never end."""
    spot_s: Annotated[float | None, msgspec.Meta(extra={"option": "spot", "metavar": "S"})] = None
    """Nodes vanish without a word, after so long in the mean."""

    @property
    def key(self) -> str:
        """Two specs with one key are the same run; what files named in it hold counts, not their names alone."""
        document = msgspec.to_builtins(self)
        for name in _ADDED:
            # Runs of before these keys were there are the same runs.
            if document[name] == _DEFAULTS[name]:
                del document[name]
        own = msgspec.json.encode(document, order="deterministic")
        digest = hashlib.sha256(own)
        for path in self.files:
            digest.update(Path(path).read_bytes())
        return digest.hexdigest()[:16]

    @property
    def files(self) -> list[str]:
        """Files of the user's own that decide the run."""
        named = [self.policy, self.scaler, self.dataset, self.dataset_path, *self.node_fleet.profile_files]
        own = [path for path in map(packaged_path, named) if path.endswith((".py", ".json")) and Path(path).is_file()]
        fleet = fleet_file(self.fleet) if isinstance(self.fleet, str) and self.fleet else None
        return own if fleet is None else [*own, str(fleet)]

    @property
    def policy_path(self) -> str:
        """The policy's name, or where its file lies."""
        return packaged_path(self.policy)

    @property
    def node_fleet(self) -> Fleet:
        """The nodes: those of `fleet`, or as many equal ones as `nodes` says; with a scaler the most that there may
        be. Raises SpecError."""
        try:
            fleet = self._all_nodes
            if not self.scaler:
                return fleet
            return msgspec.structs.replace(fleet, group=with_most_nodes(self, fleet.group))
        except ValueError as error:
            raise SpecError(str(error)) from None

    @property
    def _all_nodes(self) -> Fleet:
        if not self.fleet:
            return Fleet(group=(NodeGroup(name="node", count=self.nodes, profile=packaged_path(self.profile)),))
        if isinstance(self.fleet, str):
            return _fleet(self.fleet)
        own = tuple(msgspec.structs.replace(group, profile=packaged_path(group.profile)) for group in self.fleet)
        return checked(Fleet(group=own), where="fleet: ")

    @property
    def groups(self) -> tuple[NodeGroup, ...]:
        """In the order of the nodes. Raises SpecError."""
        return self.node_fleet.group

    @property
    def size(self) -> int:
        """Nodes in all."""
        return self.node_fleet.size

    @property
    def model_shares(self) -> dict[str, float]:
        """What share of the requests asks for which model; empty: all for the only one. Raises SpecError."""
        try:
            return model_shares(self.models, self.node_fleet.models)
        except ValueError as error:
            raise SpecError(str(error)) from None

    @property
    def group_facts(self) -> list[GroupFacts]:
        """What results by group must know of `fleet`; empty for equal nodes. Raises ValueError as `engine`."""
        return [
            GroupFacts(
                name=group.name,
                profile=group.profile,
                model=group.served_model,
                node_ids=tuple(group.node_ids()),
                price_per_hour=None if group.price_per_hour is None else group.count * group.price_per_hour,
                labels=group.labels,
            )
            for group in (self.groups if self.fleet else ())
        ]

    def engine(self, group: NodeGroup) -> EngineConfig:
        """What an engine of this group is started with. Raises ValueError for a profile that cannot be loaded."""
        profile = group.load_profile()
        block_size_tokens = group.block_size_tokens or self.block_size_tokens
        memory_blocks = max(1, profile.kv.num_blocks * profile.kv.block_size_tokens // block_size_tokens)
        return EngineConfig(
            model=group.model or profile.served_name,
            max_num_seqs=group.max_num_seqs or self.max_num_seqs,
            max_num_batched_tokens=group.max_num_batched_tokens or self.max_num_batched_tokens,
            block_size_tokens=block_size_tokens,
            num_blocks=group.num_blocks or self.num_blocks or memory_blocks,
            max_model_len_tokens=group.max_model_len_tokens or self.max_model_len_tokens,
            enable_prefix_caching=group.prefix_caching is not False,
            scheduling_policy=self.scheduling_policy,
        )

    def node_options(self) -> tuple[dict[str, Any], ...]:
        """For each node the options of a daemon with an emulated engine like it. Raises ValueError."""
        found: list[dict[str, Any]] = []
        for group in self.groups:
            engine = self.engine(group)
            limits = {
                "model": engine.model,
                "max_num_seqs": engine.max_num_seqs,
                "max_num_batched_tokens": engine.max_num_batched_tokens,
                "block_size_tokens": engine.block_size_tokens,
                "num_blocks": engine.num_blocks,
                "max_model_len_tokens": engine.max_model_len_tokens,
            }
            if engine.scheduling_policy != "fcfs":
                limits["scheduling_policy"] = engine.scheduling_policy
            found += [{**group.node_options(), **limits, "node_id": node_id} for node_id in group.node_ids()]
        return tuple(found)

    @property
    def longest_tokens(self) -> int:
        """Prompt plus answer that every node can run."""
        engines = [self.engine(group) for group in self.groups]
        return min(min(e.max_model_len_tokens, e.num_blocks * e.block_size_tokens) for e in engines)

    def node_specs(self) -> list[NodeSpec]:
        """Raises ValueError for a profile that is neither shipped nor a profile file."""
        found: list[NodeSpec] = []
        for group in self.groups:
            config, step_time = self.engine(group), group.load_profile().step_time_model()
            found += [NodeSpec(node_id=node_id, config=config, step_time=step_time) for node_id in group.node_ids()]
        return found

    @property
    def router_text(self) -> str:
        """Which router decides, for people."""
        own = "".join(f", {name} {value}" for name, value in _flat(self.router))
        return f"router {'as published' if self.as_published else 'as shipped'}{own}"

    @property
    def fleet_text(self) -> str:
        """The nodes in a line, for people."""
        to = "up to " if self.scaler else ""
        kinds = ", ".join(f"{to}{group.count} {profile_text(group.profile)}" for group in self.groups)
        return f"{kinds}; {self.limits_text}"

    @property
    def limits_text(self) -> str:
        """What one node can hold, for people; several values where groups differ."""
        engines = [self.engine(group) for group in self.groups]
        seqs, budgets, blocks = (
            "/".join(f"{value:,}" for value in dict.fromkeys(getattr(engine, name) for engine in engines))
            for name in ("max_num_seqs", "max_num_batched_tokens", "num_blocks")
        )
        return f"{seqs} sequences, {budgets} tokens a step, {blocks} KV blocks"


def profile_text(profile: str) -> str:
    """A profile's name for people: of one in a file the file's name."""
    return Path(profile).name if profile.endswith(".json") else profile


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots and single values, of values within values."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


_ADDED = (
    "scheduling_policy",
    "high_share",
    "priority_blind",
    "prompt_tokens",
    "moves_asked",
    "moves_gently",
    "slo_e2e_s",
    "slo_share",
    *RunSpec.__struct_fields__[RunSpec.__struct_fields__.index("scaler") :],
)
_DEFAULTS: dict[str, Any] = msgspec.to_builtins(RunSpec())


def _fleet(text: str) -> Fleet:
    """Raises FleetError."""
    path = fleet_file(text)
    return _read_fleet(text, path.stat().st_mtime_ns if path is not None and path.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _read_fleet(text: str, written_ns: int) -> Fleet:
    """`written_ns`: when its file was, so that a new one is read."""
    return read_fleet(text)


def packaged_path(name: str) -> str:
    """Where a file that comes with the experiments (`experiments/NAME`) lies; every other name stays as it is."""
    kind = _PACKAGED.get(Path(name).suffix)
    if kind is None or not name.startswith("experiments/"):
        return name
    return str(_EXPERIMENTS / kind / name.removeprefix("experiments/"))


AS_PUBLISHED: Mapping[str, Any] = {"ask": 0, "hold": "never"}
SHORT_NAMES = {
    "duration": "duration_s",
    "start": "start_s",
    "rate": "rate_per_s",
    "workload": "dataset",
    "batch": "max_num_seqs",
    "chunk": "max_num_batched_tokens",
    "min": "min_nodes",
    "max": "max_nodes",
    "tick": "tick_s",
    "spot": "spot_s",
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
    for name in ("rate_per_s", "rate_scale", "burstiness", "duration_s"):
        value = getattr(spec, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise SpecError(f"{name} is {value:g}; it must be above 0")
    if spec.concurrency is not None and (spec.rate_per_s is not None or spec.rate_steps):
        raise SpecError(
            f"concurrency is {spec.concurrency}, a closed loop, and a rate is given too: leave one of them out"
        )
    if not (math.isfinite(spec.warm_up_s) and spec.warm_up_s >= 0):
        raise SpecError(f"warm_up_s is {spec.warm_up_s:g}; it must be 0 or above")
    if spec.sample > spec.size:
        raise SpecError(f"sample is {spec.sample}, but there are only {spec.size} nodes to draw from")
    try:
        longest_tokens = spec.longest_tokens
        model_shares(spec.models, spec.node_fleet.models)
    except ValueError as error:
        raise SpecError(str(error)) from None
    if longest_tokens < 2:
        smallest = min((spec.engine(group) for group in spec.groups), key=lambda e: e.num_blocks * e.block_size_tokens)
        raise SpecError(f"{smallest.num_blocks} KV blocks of {smallest.block_size_tokens} tokens hold no request")
    check_name(spec.dataset)
    try:
        asked_moves(spec)
        if spec.scaler:
            check_scaling(spec)
    except ValueError as error:
        raise SpecError(str(error)) from None
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

    As it ships, or `as_published`; what `router` says goes before either.
    `hold` may be its `when` alone; `seed`, of ties and draws, is the run's unless it is named. Raises ValueError.
    """
    start = AS_PUBLISHED if spec.as_published else {}
    own: dict[str, Any] = {**start, "seed": spec.seed, "explain_keep": 0, **spec.router}
    for name in ("policy", "sample"):
        if name in spec.router:
            raise ValueError(f"router.{name} is the key {name} of the run")
    when: Any = own.get("hold", {})
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
