"""What an experiment's TOML may say. Strict: an unknown key is an error that names file and key."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

System = Literal["Astrolabe", "Block", "Llumnix", "Vidur", "llm-d", "own"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all records here."""


class Variant(_Strict, frozen=True, kw_only=True):
    """One line of the figures: a name and what it changes in the run."""

    name: str
    values: dict[str, Any]
    ours: bool = False
    """Drawn thicker."""


class Grid(_Strict, frozen=True, kw_only=True):
    """Every variant at every combination of the axes and every seed."""

    name: str = ""
    """Empty when there is only one."""
    base: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    variants: list[str] = []
    """Names; empty: all."""


class Panel(_Strict, frozen=True, kw_only=True):
    """One part of a figure."""

    title: str
    measure: str
    limit: float | None = None
    """A line at this value; for `capacity`, the limit that is reached."""
    capacity: bool = False
    """Bars of the rate at which the measure reaches the limit, not a curve."""
    scale: float = 1.0
    log: bool = False
    grid: str = ""
    """Only runs of this grid; empty: the figure's."""
    at: dict[str, Any] = {}


class Figure(_Strict, frozen=True, kw_only=True):
    """One picture."""

    name: str
    title: str
    kind: Literal["curves", "heatmap", "course", "settings", "tradeoff"]
    """`settings`: a map of variants and settings for each panel, coloured by how far each cell is from the best of its
    column. `tradeoff`: each variant a marker, at the measure `x` and the panel's."""
    x: str = "rate_per_s"
    x_title: str = "offered requests per second"
    y: str = ""
    """Second axis of a heat map."""
    columns: int = 4
    panels: list[Panel]
    variants: list[str] = []
    """Names; empty: all."""
    grid: str = ""


class Claim(_Strict, frozen=True, kw_only=True):
    """A published number, and how ours is found."""

    what: str
    variant: str
    against: str = ""
    """A second variant: the claim is the ratio of the two."""
    measure: str
    limit: float | None = None
    """Set: the value is the rate at which the measure reaches this limit."""
    at: dict[str, Any] = {}
    """Which runs: values of axes."""
    against_at: dict[str, Any] = {}
    """Those that `variant` (or `against`) is set against, when they are others."""
    grid: str = ""
    published: float | None = None
    """Of `variant`, in the unit of the measure."""
    published_against: float | None = None
    """Of `against`."""
    source: str = ""


class Column(_Strict, frozen=True, kw_only=True):
    """One column of a table."""

    title: str
    measure: str
    limit: float | None = None
    """Set: the rate at which the measure reaches it."""
    at: dict[str, Any] = {}
    grid: str = ""
    scale: float = 1.0
    digits: int = 2


class TableSpec(_Strict, frozen=True, kw_only=True):
    """One table, a row per variant."""

    title: str
    columns: list[Column]
    variants: list[str] = []


class Setting(_Strict, frozen=True, kw_only=True):
    """One situation that every variant is put into: a column of the matrices."""

    title: str
    grid: str
    at: dict[str, Any] = {}
    """Values of the grid's axes."""


class MatrixSpec(_Strict, frozen=True, kw_only=True):
    """One measure of all variants in all settings, the best of each column marked."""

    title: str
    measure: str
    best: Literal["least", "most"] = "least"
    scale: float = 1.0
    digits: int = 2
    settings: list[str] = []
    """Titles; empty: all."""
    variants: list[str] = []
    """Names; empty: all."""


class FrontLine(_Strict, frozen=True, kw_only=True):
    """One system of a front: a point for each of its runs but for the seeds, which are meant."""

    name: str
    variant: str
    grids: list[str] = []
    """Empty: all."""
    ours: bool = False


class Front(_Strict, frozen=True, kw_only=True):
    """What each system pays for what it gives: two measures of which less is better, at every setting of it."""

    name: str
    title: str
    x: str = "cost"
    x_title: str
    y: str
    y_title: str
    log: bool = False
    """Of y in the picture."""
    systems: list[FrontLine]
    published: dict[str, list[tuple[float, float]]] = {}
    against: str = ""
    """The system whose front says what the same y costs."""
    reference_factor: float | None = None
    """Set: hypervolumes, to a reference so many times the worst x and y of all points."""


class PeersSpec(_Strict, frozen=True, kw_only=True):
    """One variant against the best of all others in every setting, at no more misses and at no more cost."""

    title: str
    ours: str
    bounds: list[str]
    """Variants that are no peers: what knows the future, what never scales."""
    cost: str = "cost"
    misses: str = "slo_missed_share"
    unrest: str = "flaps_per_hour"


class PublishedPoints(_Strict, frozen=True, kw_only=True):
    """Many published numbers in a file of `published/`."""

    file: str
    baseline: str
    """The variant to which the others are set in ratio."""


class Live(_Strict, frozen=True, kw_only=True):
    """What `--live` runs: the same on real processes with emulated engines, as small as a laptop needs it."""

    values: dict[str, Any]
    axes: dict[str, list[Any]] = {}
    variants: list[str] = []
    time_scale: float = 1.0
    """How many times as fast as their profile the engines run."""


class Experiment(_Strict, frozen=True, kw_only=True):
    """One experiment."""

    name: str
    title: str
    system: System
    source: str
    """Paper, section, figure."""
    status: Literal["ready", "live"] = "ready"
    """`live`: only real processes can show it."""
    exact: list[str] = []
    """What is reproduced exactly."""
    modelled: list[str] = []
    different: list[str] = []
    base: dict[str, Any] = {}
    seeds: int = 1
    variants: list[Variant] = []
    grids: list[Grid] = []
    figures: list[Figure] = []
    tables: list[TableSpec] = []
    settings: list[Setting] = []
    matrices: list[MatrixSpec] = []
    fronts: list[Front] = []
    peers: PeersSpec | None = None
    claims: list[Claim] = []
    published: PublishedPoints | None = None
    live: Live | None = None

    def variant(self, name: str) -> Variant:
        """Raises KeyError."""
        for variant in self.variants:
            if variant.name == name:
                return variant
        raise KeyError(name)


class PublishedPoint(_Strict, frozen=True, kw_only=True):
    """One plotted point of a paper."""

    grid: str
    variant: str
    x: float
    measure: str
    value: float


class PublishedFile(_Strict, frozen=True, kw_only=True):
    """Points and where they are from."""

    source: str
    points: list[PublishedPoint]
