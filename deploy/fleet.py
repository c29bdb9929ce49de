"""A fleet as data: groups of equal nodes, from a TOML file, by the name of a shipped one, or as `6*a30/llama-2-7b,...`.

What a group leaves out is for the command that takes the fleet. The page on fleets is `bench/fleets.md`.
"""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engine_adapters.profile_file import SUFFIX as PROFILE_SUFFIX
from engine_adapters.profile_file import load_any_profile
from protos.runtime.config import ConfigError, load_config
from simcore.cost.profile import Profile

SHIPPED = Path(__file__).resolve().parent / "fleets"
SUFFIX = ".toml"

Count = Annotated[int, msgspec.Meta(ge=1)]
GroupName = Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Price = Annotated[float, msgspec.Meta(ge=0)]


class FleetError(ValueError):
    """A fleet that cannot be. The message says where, what and how to mend it."""


class NodeGroup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Equal nodes. None and empty: not said here."""

    count: Count
    """Nodes."""
    profile: str
    """Step times: a shipped profile (`a30/llama-2-7b`), or a profile file, seen from the folder of the fleet's file."""
    name: GroupName = ""
    """Begins the names of its nodes; empty: the GPU of the profile, or the whole profile where the GPU is there
    twice."""
    model: str = ""
    """Name under which clients ask for it; empty: the profile's."""
    max_num_seqs: Count | None = None
    """Requests in one batch."""
    max_num_batched_tokens: Count | None = None
    """Token budget of one step."""
    block_size_tokens: Count | None = None
    """Tokens per KV block."""
    num_blocks: Count | None = None
    """KV blocks of a node; None: what the profile's memory gives."""
    max_model_len_tokens: Count | None = None
    """Prompt plus answer limit."""
    prefix_caching: bool | None = None
    """Whether what prompts begin with is kept and found again; None: it is."""
    price_per_hour: Price | None = None
    """Of one node."""
    min: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Where the fleet is scaled: fewest nodes."""
    max: Count | None = None
    """Where the fleet is scaled: most nodes; None: `count`."""
    cold_start_s: Annotated[float, msgspec.Meta(gt=0)] | None = None
    """Where the fleet is scaled: from the wish for a node to its first request."""
    labels: dict[str, str] = {}
    """For people and their scripts: results repeat them."""

    def load_profile(self) -> Profile:
        """Raises ValueError."""
        return load_any_profile(self.profile)

    @property
    def served_model(self) -> str:
        """Raises ValueError as `load_profile`."""
        return self.model or self.load_profile().served_name

    def node_ids(self) -> list[str]:
        """`a30-0`, `a30-1`, ..."""
        return [f"{self.name}-{index}" for index in range(self.count)]

    def node_options(self) -> dict[str, Any]:
        """Options of `astrolabe predictor` for one of its nodes, with an emulated engine: those that are said here."""
        limits = ("max_num_seqs", "max_num_batched_tokens", "block_size_tokens", "num_blocks", "max_model_len_tokens")
        said = {name: value for name in limits if (value := getattr(self, name)) is not None}
        if self.model:
            said["model"] = self.model
        if self.prefix_caching is False:
            said["no_prefix_caching"] = True
        return {"profile": self.profile, **said}


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All groups, in the order of the nodes; also what a fleet's file says."""

    group: tuple[NodeGroup, ...] = ()
    currency: str = "USD"
    """Of the prices."""
    note: str = ""
    """For people, for example where the prices are from; shown where prices are."""

    @property
    def size(self) -> int:
        """Nodes in all."""
        return sum(group.count for group in self.group)

    @property
    def models(self) -> list[str]:
        """The models served, in the order of the groups. Raises ValueError as `load_any_profile`."""
        return list(dict.fromkeys(group.served_model for group in self.group))

    @property
    def price_per_hour(self) -> float | None:
        """Of all nodes; None unless every group says its own."""
        prices = [group.price_per_hour for group in self.group]
        if None in prices:
            return None
        return sum(group.count * (group.price_per_hour or 0.0) for group in self.group)

    @property
    def profile_files(self) -> list[str]:
        """Profiles that are files of the user's own."""
        return [group.profile for group in self.group if group.profile.endswith(PROFILE_SUFFIX)]


def shipped_fleets() -> list[str]:
    """Their names, sorted."""
    return sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))


def fleet_file(text: str) -> Path | None:
    """The file that a fleet is read from; None for the short form. Raises FleetError for a name that is not shipped."""
    if text.endswith(SUFFIX):
        return Path(text)
    if "*" in text:
        return None
    if text not in (names := shipped_fleets()):
        near = difflib.get_close_matches(text, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise FleetError(
            f"cannot read the nodes {text!r}: {hint}shipped fleets are {', '.join(names)}; or name a {SUFFIX} file, or "
            "write COUNT*PROFILE,..., for example 6*a30/llama-2-7b"
        )
    return SHIPPED / f"{text}{SUFFIX}"


def read_fleet(text: str) -> Fleet:
    """A fleet by file, name or in its short form, checked. Raises FleetError."""
    path = fleet_file(text)
    if path is None:
        return checked(Fleet(group=tuple(_short_form(text))), where="")
    try:
        fleet = load_config(Fleet, path)
    except ConfigError as error:
        raise FleetError(str(error)) from None
    groups = tuple(msgspec.structs.replace(group, profile=_beside(path, group.profile)) for group in fleet.group)
    return checked(msgspec.structs.replace(fleet, group=groups), where=f"{path}: ")


def checked(fleet: Fleet, *, where: str) -> Fleet:
    """The fleet with a name for every group. Raises FleetError, whose message begins with `where`."""
    if not fleet.group:
        raise FleetError(f"{where}no groups; write at least one [[group]] with count and profile")
    profiles: list[Profile] = []
    for number, group in enumerate(fleet.group, start=1):
        at = f"{where}[group {number}]: "
        try:
            profiles.append(group.load_profile())
        except ValueError as error:
            raise FleetError(f"{at}{error}") from None
        most = group.max or group.count
        if group.min is not None and group.min > most:
            raise FleetError(f"{at}min {group.min} is above {'max' if group.max else 'count'} {most}; lower it")
        kv = profiles[-1].kv
        block_size_tokens = group.block_size_tokens or kv.block_size_tokens
        num_blocks = group.num_blocks or kv.num_blocks * kv.block_size_tokens // block_size_tokens
        # A prompt and an answer of one token each.
        if num_blocks * block_size_tokens < 2:
            raise FleetError(
                f"{at}{num_blocks} KV blocks of {block_size_tokens} tokens hold no request; raise num_blocks, or leave "
                "it out for what the profile's memory gives"
            )
    gpus = Counter(profile.gpu for profile in profiles)
    groups = []
    for group, profile in zip(fleet.group, profiles, strict=True):
        own = profile.gpu if gpus[profile.gpu] == 1 else profile.name.replace("/", "-")
        groups.append(msgspec.structs.replace(group, name=group.name or own))
    names = Counter(group.name for group in groups)
    for number, group in enumerate(groups, start=1):
        if names[group.name] > 1:
            raise FleetError(
                f"{where}[group {number}]: the name {group.name!r} is there {names[group.name]} times; give each group "
                "a name of its own"
            )
    return msgspec.structs.replace(fleet, group=tuple(groups))


def _short_form(text: str) -> list[NodeGroup]:
    """`6*a30/llama-2-7b,3*./mine.json`. Raises FleetError."""
    found: list[NodeGroup] = []
    for part in text.split(","):
        count, times, profile = (word.strip() for word in part.partition("*"))
        if not times or not count.isdecimal() or int(count) < 1 or not profile:
            raise FleetError(
                f"cannot read the nodes {part.strip()!r}; write COUNT*PROFILE,..., for example 6*a30/llama-2-7b"
            )
        found.append(NodeGroup(count=int(count), profile=profile))
    return found


def _beside(path: Path, profile: str) -> str:
    return str(path.parent / profile) if profile.endswith(PROFILE_SUFFIX) else profile
