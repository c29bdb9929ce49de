"""Settings of scaling: the rule, the groups of nodes that may be started, and who starts them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from gateway.core.scale.config import Objective, ScaleConfig, ScaleError, ScaleGroup, check
from gateway.scale.connectors.registry import check_connector
from protos.runtime.addresses import parse_address
from protos.runtime.config import FileName

if TYPE_CHECKING:
    from simcore.types import EngineConfig, NodePace

Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
GroupName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$")]


class ScalingGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Equal nodes that may be started and stopped: how many, what they cost, what they are."""

    name: GroupName
    """Its nodes are `name-0`, `name-1`, ..."""
    profile: str = ""
    """Step times: a shipped profile (`a30/llama-2-7b`) or a profile file; empty: unknown until a node is up."""
    model: str = ""
    """Name under which clients ask for what they serve; empty: the profile's."""
    min: Annotated[int, msgspec.Meta(ge=0)] = 1
    """Nodes that stay, whatever the rule says; with 0 the first request waits for the first node."""
    max: Count = 4
    price_per_hour: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    """Of one node."""
    cold_start_s: Positive = 60.0
    """From the wish for a node to its first request, until that has been measured."""
    max_num_seqs: Count = 256
    """Requests in one batch."""
    max_num_batched_tokens: Count = 2048
    """Token budget of one step."""
    block_size_tokens: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Tokens per KV block; 0: the profile's."""
    num_blocks: Annotated[int, msgspec.Meta(ge=0)] = 0
    """KV blocks of a node; 0: what the profile's memory gives."""
    max_model_len_tokens: Count = 4096
    """Prompt plus answer limit."""
    prefix_caching: bool = True
    """Whether what prompts begin with is kept and found again."""

    def predictor_options(self) -> dict[str, Any]:
        """Options of `astrolabe predictor` for one of its nodes with an emulated engine, with _ for -."""
        return {
            "profile": self.profile or None,
            "model": self.model or None,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
            "block_size_tokens": self.block_size_tokens or None,
            "num_blocks": self.num_blocks or None,
            "max_model_len_tokens": self.max_model_len_tokens,
            "no_prefix_caching": not self.prefix_caching,
        }


class LocalConnectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes as processes on this machine, with emulated engines. They end with the gateway, unless that is killed: then
    the next one finds them."""

    folder: FileName = ""
    """Folder of their logs and of what is known of them."""
    options: Annotated[dict[str, Any], msgspec.Meta(extra={"no_option": "a table of names"})] = {}
    """More options of `astrolabe predictor` for each node, with _ for -: `time_scale = 10`."""


class SystemdConnectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes as instances of a template unit on hosts of your own, over ssh. They go on when the gateway ends."""

    hosts: Annotated[dict[str, tuple[str, ...]], msgspec.Meta(extra={"no_option": "a table of names"})] = {}
    """Per group `[user@]host:port`, one for each node that it may have: node `name-0` runs on the first of them and its
    predictor listens on that port."""
    unit: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "astrolabe-predictor@{node}"
    """Unit of a node; {node} is its name."""
    ssh: Annotated[tuple[str, ...], msgspec.Meta(extra={"no_option": "a list of words"})] = (
        "ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5",
    )  # fmt: skip
    """How to run a command on a host: these words, the host, the command. Empty: on this machine, without ssh."""
    systemctl: Annotated[tuple[str, ...], msgspec.Meta(extra={"no_option": "a list of words"})] = ("systemctl",)
    """The command there: ["sudo", "systemctl"] for a user without rights."""


class CommandConnectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A program of your own: what to do comes as JSON on its standard input, what there is goes out as JSON."""

    run: Annotated[tuple[str, ...], msgspec.Meta(extra={"no_option": "a list of words"})] = ()
    """The program and its arguments."""


class KubernetesConnectorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes as pods of a StatefulSet or Deployment per group, which has the group's name; each pod's predictor is
    called as its pod. They go on when the gateway ends."""

    kind: Literal["statefulset", "deployment"] = "statefulset"
    """What they are pods of."""

    server: Annotated[str, msgspec.Meta(extra={"metavar": "URL"})] = ""
    """URL of the API server; empty: that of the cluster in which the gateway runs."""
    namespace: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = ""
    """Where those are; empty: the gateway's own namespace."""
    token_file: FileName = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    """File with the token of a service account that may read and patch them; read anew for each call."""
    ca_file: FileName = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    """File with the API server's authority."""
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 8100
    """Port on which the pods' predictors listen (a number)."""


class ScalingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many nodes there are, and when. A change needs a restart."""

    rule: Annotated[str, msgspec.Meta(extra={"metavar": "NAME|FILE"})] = ""
    """Rule that says how many nodes of which group there should be, or a rule file; empty: nothing is scaled."""
    connector: Annotated[str, msgspec.Meta(extra={"metavar": "NAME"})] = "advise"
    """Who starts and stops nodes: local, systemd, command, kubernetes; advise: nobody, what is wanted stands on the
    page for Prometheus."""
    dry_run: bool = False
    """Only say what would be done."""
    tick_s: Positive = 5.0
    """Between two decisions."""
    start_limit_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    """A node that is not ready so long after it was asked for is given up; 0: three times what starts take."""
    call_limit_s: Positive = 30.0
    """How long one call of a connector may take."""
    call_tries: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    """How often a call that fails is tried before that is said (a count)."""
    lease_s: Annotated[float, msgspec.Meta(ge=0)] = 10.0
    """Of several gateways that scale the same nodes one leads, by leases of so long from the nodes, the same for all of
    them; 0: there is no other, and this one leads from its start."""
    seed: int = 0
    """Of the rule's random choices."""
    objective: Objective = Objective()
    """What the fleet must keep."""
    options: Annotated[dict[str, Any], msgspec.Meta(extra={"no_option": "a table of names"})] = {}
    """Of the rule."""
    group: Annotated[tuple[ScalingGroup, ...], msgspec.Meta(extra={"no_option": "tables"})] = ()
    """The groups, one table [[scaling.group]] each."""
    local: LocalConnectorConfig = LocalConnectorConfig()
    """Of the connector of that name."""
    systemd: SystemdConnectorConfig = SystemdConnectorConfig()
    """Of the connector of that name."""
    command: CommandConnectorConfig = CommandConnectorConfig()
    """Of the connector of that name."""
    kubernetes: KubernetesConnectorConfig = KubernetesConnectorConfig()
    """Of the connector of that name."""

    def __post_init__(self) -> None:
        if not self.rule:
            if self.group:
                raise ValueError("there are groups and no rule; name one with rule, or leave the groups out")
            return
        # Loads what a gateway without scaling needs not.
        from gateway.core.scale.rules.registry import make_rule

        try:
            make_rule(self.core(learned=False))
        except ScaleError as bad:
            raise ValueError(str(bad).removeprefix("scaling: ")) from None
        check_connector(self)

    @property
    def is_on(self) -> bool:
        return bool(self.rule)

    @property
    def is_shared(self) -> bool:
        """Whether other gateways may scale the same nodes: then one of them leads, by leases. One that only says what
        it would do takes no lease from those who do it."""
        return self.lease_s > 0 and not self.dry_run

    def core(self, *, learned: bool = True) -> ScaleConfig:
        """What the scaler is told. `learned`: with the engines that the profiles describe, which takes a moment.

        Raises ScaleError.
        """
        from gateway.rule_files import rule_name

        config = ScaleConfig(
            rule=rule_name(self.rule),
            options=self.options,
            groups=tuple(self._group(group, learned=learned) for group in self.group),
            objective=self.objective,
            tick_s=self.tick_s,
            start_limit_s=self.start_limit_s or None,
            seed=self.seed,
        )
        check(config)
        return config

    def _group(self, group: ScalingGroup, *, learned: bool) -> ScaleGroup:
        model, engine, pace = group.model, None, None
        if group.profile:
            from engine_adapters.profile_file import load_any_profile

            try:
                profile = load_any_profile(group.profile)
            except ValueError as bad:
                raise ScaleError(f"group {group.name!r}: {bad}") from None
            model = model or profile.served_name
            if learned:
                engine, pace = _engine_of(group, model)
        return ScaleGroup(
            name=group.name,
            model=model,
            min=group.min,
            max=group.max,
            price_per_hour=group.price_per_hour,
            cold_start_s=group.cold_start_s,
            leaves="last" if self.connector == "kubernetes" and self.kubernetes.kind == "statefulset" else "any",
            engine=engine,
            pace=pace,
        )


def _engine_of(group: ScalingGroup, model: str) -> tuple[EngineConfig, NodePace]:
    """What a node of the group will be, as far as its profile and its limits say."""
    from engine_adapters.profile_file import load_any_profile
    from simcore.types import EngineConfig

    profile = load_any_profile(group.profile)
    kv = profile.kv
    block_size_tokens = group.block_size_tokens or kv.block_size_tokens
    engine = EngineConfig(
        model=model,
        max_num_seqs=group.max_num_seqs,
        max_num_batched_tokens=group.max_num_batched_tokens,
        block_size_tokens=block_size_tokens,
        num_blocks=group.num_blocks or max(1, kv.num_blocks * kv.block_size_tokens // block_size_tokens),
        max_model_len_tokens=group.max_model_len_tokens,
        enable_prefix_caching=group.prefix_caching,
    )
    return engine, profile.step_time_model().pace(engine)


def is_address(text: str) -> bool:
    """Whether it is `host:port`."""
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
