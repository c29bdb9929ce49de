"""Records that every part shares: what an engine is, what it holds, what is asked of it, what is forecast.

Owns values only. Nothing here reads a clock; every `_s` is in seconds, every `_tokens` in tokens, every `_blocks` in
KV blocks of `EngineConfig.block_size_tokens` tokens. All records are immutable.
"""

from __future__ import annotations

import enum
import itertools
import math
from typing import Literal

import msgspec

Priority = int
"""Smaller runs first, as in vLLM. 0 is the default."""
CLASSES = 8
"""The most classes above, and below, that of everybody: priorities further from 0 count like this one, so that what is
bounded for each class is bounded for any number that clients send."""


def class_of(priority: Priority) -> int:
    """The class of a priority: itself, within the bounds."""
    return max(-CLASSES, min(CLASSES, priority))


class LengthBelief(msgspec.Struct, frozen=True, gc=False):
    """Distribution of the *total* output tokens of one request, as equally likely values.

    `atoms_tokens` is ascending and not empty, each value >= 1. One atom means the length is known.
    Twenty atoms are the 2.5 %, 7.5 %, ... 97.5 % quantiles. Conditioning on tokens already produced is
    `length_model.core.belief.remaining`.
    """

    atoms_tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        atoms = self.atoms_tokens
        if not atoms:
            raise ValueError("a length belief needs at least one atom")
        if atoms[0] < 1 or (len(atoms) > 1 and any(a > b for a, b in itertools.pairwise(atoms))):
            raise ValueError(f"atoms must be ascending and >= 1 token, got {atoms}")

    @property
    def is_known(self) -> bool:
        """True when every atom is the same value."""
        return self.atoms_tokens[0] == self.atoms_tokens[-1]

    @property
    def mean_tokens(self) -> float:
        atoms = self.atoms_tokens
        return sum(atoms) / len(atoms)

    def quantile_tokens(self, q: float) -> int:
        """The smallest atom whose cumulated probability reaches `q` (0 < q <= 1)."""
        n = len(self.atoms_tokens)
        return self.atoms_tokens[min(n - 1, max(0, math.ceil(q * n) - 1))]


class TokenLogprobs(msgspec.Struct, frozen=True, gc=False):
    """How likely one token of an answer was, and which others could have come in its place."""

    logprob: float
    """Natural logarithm of the token's probability."""
    other_ids: tuple[int, ...] = ()
    """Token ids that were likeliest beside it, likeliest first."""
    other_logprobs: tuple[float, ...] = ()


FULL_ATTENTION = (0,)
"""`EngineConfig.kv_windows_tokens` of an engine whose layers all attend to all tokens."""


MOST_KV_GROUPS = 62
MOST_DRAFTS = 20
"""Drafts per step that there are rules for."""


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The limits under which one engine schedules. Names follow vLLM's own options."""

    model: str
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    block_size_tokens: int = 16
    num_blocks: int = 1052
    """KV blocks that requests can hold (vLLM's `num_gpu_blocks` less its one null block)."""
    max_model_len_tokens: int = 4096
    long_prefill_token_threshold_tokens: int = 0
    """Largest prefill chunk of one request in a step; 0 means no limit but the budget."""
    long_prefill_adaptive: bool = False
    """Whether that is never less than an even share of `max_num_batched_tokens` among all that run and wait (vLLM's
    `long_prefill_token_threshold_adaptive`)."""
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    async_scheduling: bool = False
    max_loras: int = 0
    """LoRA adapters that one step's batch can use; 0: no limit, or no adapters."""
    kv_windows_tokens: tuple[int, ...] = FULL_ATTENTION
    """Of each KV cache group, in the engine's order, how many tokens its layers attend to (a sliding window); 0: all.
    Every group takes blocks of its own for the same tokens. All windows are the same; several groups have one."""
    num_speculative_tokens: int = 0
    """Drafts that a request can have in a step (speculative decoding); 0: none."""
    num_lookahead_tokens: int = 0
    """Further tokens for which a request holds KV blocks: what drafting writes there."""
    drops_cached_block: bool = False
    """Whether the last block that a request finds cached is computed anew: drafting needs what the cache does not hold
    (vLLM's EAGLE family)."""
    engine: str = "emulated"
    engine_version: str = ""
    outside_rules: tuple[str, ...] = ()
    """What this engine does that the rules of `simcore` do not cover (`simcore.proved`), or is not known to follow, as
    clauses for people; then its forecasts are `approximate`. Empty: the rules hold step by step."""
    prefix_cache_traced: bool = False
    """Whether the trace tells what the prefix cache holds, so that forecasts know what a prompt finds there."""
    other_names: tuple[str, ...] = ()
    """Further names under which clients may ask for `model`, or for what the engine serves beside it."""
    forwards: bool = False
    """Whether the node hands calls on to its engine as their clients made them."""
    tells_logprobs: bool = False
    """Whether the node can tell how likely the tokens of its answers were."""
    pools: bool = False
    """Whether the engine gives embeddings, scores or classes and no text: it takes no requests by tokens."""
    own_chats: bool = False
    """Whether chats are its server's own to read and to word (it parts reasoning from answers, say), so that they are
    handed on."""
    address: str = ""
    """host:port at which proxies reach the engine's HTTP server, as :port where its host is the node's; empty: they do
    not."""
    kv_source: str = ""
    """host:port or URL where other engines fetch KV that this one holds, and it fetches theirs; empty: they do not."""

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size_tokens",
            "num_blocks",
            "max_model_len_tokens",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        windows = set(self.kv_windows_tokens) - {0}
        if self.kv_windows_tokens != FULL_ATTENTION and (len(windows) != 1 or min(windows) < 2):
            raise ValueError(f"kv_windows_tokens must be (0,) or have one window >= 2, got {self.kv_windows_tokens}")
        if len(self.kv_windows_tokens) > MOST_KV_GROUPS:
            raise ValueError(
                f"kv_windows_tokens has {len(self.kv_windows_tokens)} groups, there can be {MOST_KV_GROUPS}"
            )
        if self.num_speculative_tokens > MOST_DRAFTS:
            raise ValueError(f"num_speculative_tokens must be <= {MOST_DRAFTS}, got {self.num_speculative_tokens}")
        if windows and (self.spare_tokens or self.drops_cached_block):
            raise ValueError("there are no rules for speculative decoding over sliding windows: leave one of them out")

    @property
    def window_tokens(self) -> int:
        """The sliding window of its groups that have one; 0: none has."""
        return max(self.kv_windows_tokens)

    @property
    def window_groups(self) -> int:
        """How many of its KV cache groups have a sliding window."""
        return len(self.kv_windows_tokens) - self.kv_windows_tokens.count(0)

    @property
    def window_blocks(self) -> int:
        """The most blocks that a group with a window asks for at admission: those of the window, of all tokens that can
        be in flight, and one, as both may begin in the middle of a block."""
        if not self.window_tokens:
            return 0
        in_flight = self.max_num_batched_tokens * (2 if self.async_scheduling else 1)
        tokens = min(self.window_tokens - 1 + in_flight, self.max_model_len_tokens)
        return -(-tokens // self.block_size_tokens) + 1

    @property
    def names(self) -> tuple[str, ...]:
        """All names by which clients may ask this engine, its own first."""
        return (self.model, *self.other_names)

    def adapter_of(self, model: str) -> str:
        """The LoRA adapter that a client asks for by that name; empty: the engine's own model, or all are alike to it.

        Sound while `other_names` are further names of the model itself, as an engine tells them in its trace.
        """
        return "" if not self.max_loras or not model or model in self.names else model

    @property
    def spare_tokens(self) -> int:
        """For how many tokens more than are computed a request may hold blocks: drafts that were wrong, lookahead."""
        return self.num_speculative_tokens + self.num_lookahead_tokens

    @property
    def dropped_blocks(self) -> int:
        """How many of the blocks that a request finds cached are computed anew."""
        return int(self.drops_cached_block)

    @property
    def unsure_tokens(self) -> int:
        """How many tokens behind its last one may need blocks: drafts of the steps in flight, lookahead."""
        return self.num_speculative_tokens * (2 if self.async_scheduling else 1) + self.num_lookahead_tokens

    def blocks_for(self, tokens: int) -> int:
        """KV blocks that so many tokens take, as they are counted at admission."""
        rows = -(-tokens // self.block_size_tokens)
        if self.kv_windows_tokens == FULL_ATTENTION:
            return rows
        windows = self.window_groups
        return (len(self.kv_windows_tokens) - windows) * rows + windows * min(rows, self.window_blocks)

    @property
    def tokens_per_block(self) -> float:
        """Tokens of long requests that a KV block stands for: each group takes blocks for the same tokens, one with a
        window only so many."""
        if self.kv_windows_tokens == FULL_ATTENTION:
            return float(self.block_size_tokens)
        return self.max_model_len_tokens / self.blocks_for(self.max_model_len_tokens)

    @property
    def kv_tokens(self) -> int:
        """The most tokens of one request that its blocks can hold, drafts beside them, or the model's limit where that
        is no limit."""
        groups, windows = len(self.kv_windows_tokens), self.window_groups
        rows = self.num_blocks // groups
        if windows and rows >= self.window_blocks:
            if windows == groups:
                return self.max_model_len_tokens
            rows = (self.num_blocks - windows * self.window_blocks) // (groups - windows)
        room = rows * self.block_size_tokens
        return room if room >= self.max_model_len_tokens else room - self.unsure_tokens

    @property
    def longest_tokens(self) -> int:
        """The most prompt and output tokens that one request can have."""
        return min(self.max_model_len_tokens, self.kv_tokens)


class RequestState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request as its engine's scheduler sees it."""

    request_id: str
    prompt_tokens: int
    output_tokens: int = 0
    """Tokens produced so far."""
    computed_tokens: int = 0
    """Tokens of prompt + output whose KV is in blocks. 0 for a request that waits from scratch."""
    max_output_tokens: int
    priority: Priority = 0
    arrival_s: float = 0.0
    """Engine clock at which the scheduler got it."""
    preemptions: int = 0
    adapter: str = ""
    """Its LoRA adapter, as clients name it; empty: none, or the engine does not tell."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that could be sent to a node, or is there and could leave it: the question of a what-if."""

    request_id: str
    prompt_tokens: int
    max_output_tokens: int
    belief: LengthBelief
    priority: Priority = 0
    block_hashes: tuple[int, ...] = ()
    """Hashes of the prompt's full KV blocks (`simcore.prefix`); empty: it shares its beginning with nobody."""
    model: str = ""
    """The name by which its client asks for the model or for one of its LoRA adapters; empty: the model."""
    leaving: bool = False
    """It is on the node already, known there by its id, which alone counts then: how it goes if it stays, and what its
    leaving would be worth to the others (`Forecast`)."""


class Quantiles(msgspec.Struct, frozen=True, gc=False):
    """Mean, median and 90th percentile over the scenarios of a what-if. Equal when lengths are known."""

    mean: float
    p50: float
    p90: float

    def scaled(self, factor: float, factor_p50: float | None = None) -> Quantiles:
        """Each `factor` times as large; median and 90th percentile `factor_p50` times, where that is given."""
        of_quantiles = factor if factor_p50 is None else factor_p50
        return Quantiles(self.mean * factor, self.p50 * of_quantiles, self.p90 * of_quantiles)

    def later(self, by_s: float) -> Quantiles:
        """Each larger by `by_s`."""
        return Quantiles(self.mean + by_s, self.p50 + by_s, self.p90 + by_s)


HEADROOM_HORIZONS_S = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
"""Horizons of `Forecast.kv_headroom_path`, in seconds from the answer."""

ForecastSource = Literal["simulated", "approximate", "prior"]
"""`simulated`: from a per-request trace; `approximate`: from aggregates or an engine outside the proved rules;
`prior`: no state at all, a pessimistic guess."""


class Forecast(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer of a what-if for one candidate on one node. Times count from the moment of the answer.

    Of a candidate that is there already (`Candidate.leaving`): how it goes if it stays, with the next token for the
    first, and as harm the seconds that the others would gain in sum if it left now. Its clear start is 0, and the
    fewest free blocks are those until all that are there have finished.
    """

    request_id: str
    node_id: str
    ttft_s: Quantiles
    tpot_s: Quantiles
    """Mean seconds between output tokens after the first; 0 for one-token answers."""
    e2e_s: Quantiles
    preemptions: float
    """Expected preemptions (of anyone on the node) until the candidate has finished."""
    kv_headroom_blocks: int
    """Fewest free KV blocks on the way, over all scenarios."""
    harm_s: Quantiles
    """Seconds that the candidate adds to the requests already on the node: their summed delay."""
    trace_seq: int
    """Sequence number of the trace state the answer was computed from."""
    state_age_s: float
    """Age of that state when the answer was computed."""
    cached_tokens: int = 0
    """Tokens of the candidate's prompt that the node is taken to find in its prefix cache."""
    source: ForecastSource = "simulated"
    preemption_probability: float = 0.0
    """Share of the scenarios with at least one preemption, of anyone on the node, until the candidate has finished."""
    clear_start_s: Quantiles = Quantiles(0.0, 0.0, 0.0)
    """Seconds until the node could start the candidate at once and at nobody's expense: the first moment of the future
    *without* it from which on nobody waits there, a seat is free, and the fewest KV blocks that are ever free again
    hold its whole prompt and answer. Placed then it neither queues nor has anyone preempted, itself included. 0: it
    may come now (the step in progress does not count as waiting). New arrivals are not foreseen, nor that all places
    for LoRA adapters (`EngineConfig.max_loras`) are taken: for that see `ttft_s`."""
    kv_headroom_path: tuple[int, ...] = ()
    """Fewest free KV blocks within the first `HEADROOM_HORIZONS_S` seconds with the candidate there, over all
    scenarios; falls along the path. Empty: not known (a forecast that is no simulation)."""
    prefill_share: float = 0.0
    """Share of its time that the node has lately spent on prompts, 0 to 1: about what those that come later will take
    from the candidate's steps. None of it is in the means. 0 also where nothing is known of it."""

    def slowed(self, factor: float, factor_p50: float | None = None) -> Forecast:
        """This forecast for a node whose clock runs wrong by `factor`: all its times take that much longer. Where
        `factor_p50` is given, medians and 90th percentiles of the request's own times take so much longer instead."""
        return msgspec.structs.replace(
            self,
            ttft_s=self.ttft_s.scaled(factor, factor_p50),
            tpot_s=self.tpot_s.scaled(factor, factor_p50),
            e2e_s=self.e2e_s.scaled(factor, factor_p50),
            harm_s=self.harm_s.scaled(factor),
            clear_start_s=self.clear_start_s.scaled(factor),
        )


class NodeOutlook(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a node foresees of the requests that it has, if none comes."""

    preemption_ahead_s: float = -1.0
    """Seconds until half of the scenarios have had a preemption; -1: most have none."""
    head_waits_s: float = 0.0
    """Seconds until the first in the engine's queue starts, in the mean; 0: nobody waits."""


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Summary of a node that heuristic policies score. Includes reservations: dispatched, not yet in the trace."""

    node_id: str
    trace_seq: int
    state_age_s: float
    """Age of the engine state at the moment this summary was made."""
    running: int
    waiting: int
    """Queued in the engine plus reserved."""
    free_blocks: int
    total_blocks: int
    waiting_prompt_blocks: int
    """KV blocks that the prompts of all waiting and reserved requests will need."""
    unprocessed_tokens: int
    """Sum over requests of max(0, prompt + expected output - computed)."""
    preemptions_total: int
    reserved: int = 0
    """How many of `waiting` are reservations."""
    prefill_tokens: int = 0
    """Prompt tokens still to be computed: sum over requests, reserved ones too, of max(0, prompt - computed). What a
    waiting request may find in the prefix cache is not known yet, and counts."""
    trusted: bool = True
    """False while the node's own forecasts are off by more than its bound (`predictor.core.correction`): it says so
    itself, and a gateway should place by its load instead. True also where too little is known to tell."""
    preemption_ahead_s: float = -1.0
    """Seconds until the first preemption that it foresees (`NodeOutlook`); -1: none, or it has not looked."""
    head_waits_s: float = 0.0
    """Seconds that the first in the engine's queue will still wait; 0: nobody does, or it has not looked."""
    classes: dict[int, int] = {}
    """How many of those there are of each class other than 0 (`class_of`), reserved ones too; empty also where the node
    does not tell."""


class NodePace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast a node works, in a few numbers: enough to guess what a request would cost there without asking.

    Raises ValueError for numbers that cannot be: negative, not finite, falling with the batch, no batches.
    """

    batches: tuple[int, ...]
    """Numbers of sequences in a step, ascending from 1."""
    step_s: tuple[float, ...]
    """Seconds of a step that decodes so many, without reading their KV; linear between."""
    kv_s_per_token: float
    """Added to a step for each token of KV that it reads."""
    prefill_s_per_token: float
    """Added to a step for each token of a prompt, in a step filled to the budget."""
    prefill_s_per_token2: float = 0.0
    """Added for each pair of a prompt's token and one that it attends to."""

    def __post_init__(self) -> None:
        numbers = (*self.step_s, self.kv_s_per_token, self.prefill_s_per_token, self.prefill_s_per_token2)
        if not all(math.isfinite(x) and x >= 0.0 for x in numbers) or not self.step_s or self.step_s[0] <= 0.0:
            raise ValueError("a pace has seconds that are negative or not finite, or a step that takes no time")
        if len(self.batches) != len(self.step_s) or self.batches[0] != 1:
            raise ValueError("a pace needs as many seconds as batches, the first of one sequence")
        if any(a >= b for a, b in itertools.pairwise(self.batches)):
            raise ValueError(f"batches of a pace must be ascending, got {self.batches[:20]}")
        if any(a > b for a, b in itertools.pairwise(self.step_s)):
            raise ValueError("the seconds of a pace must not fall with the batch")


class ExpectedWork(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a gateway expects to send to a node from now on, per second.

    Raises ValueError for numbers that cannot be: negative or not finite.
    """

    requests_per_s: float
    new_tokens_per_s: float
    """Of their prompts, what is not cached there as far as is known."""
    new_tokens2_per_s: float
    """Sum of the squares of that: how unequal the prompts are."""

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x >= 0.0 for x in self.rates):
            raise ValueError(f"expected work is negative or not finite: {self.rates}")

    @property
    def rates(self) -> tuple[float, float, float]:
        return self.requests_per_s, self.new_tokens_per_s, self.new_tokens2_per_s


class Outcome(enum.Enum):
    """How a request ended; a closed list. Values are metric labels and log fields."""

    # Looked up in sets and tables per request: Enum's own hash is a call into Python.
    __hash__ = object.__hash__

    STOP = "stop"
    LENGTH = "length"
    CLIENT_LEFT = "client_left"
    CLIENT_SLOW = "client_slow"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    INVALID = "invalid"
    NO_NODE = "no_node"
    OVERLOADED = "overloaded"
    ENGINE_FAILED = "engine_failed"
    NODE_LOST = "node_lost"
    INTERNAL = "internal"


class Score(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One node as it stood in a decision."""

    node_id: str
    cost: float | None = None
    """What the policy minimises; None when the node could not be scored."""
    forecast: Forecast | None = None
    state_age_s: float = 0.0
    note: str = ""
    """Why it was left out; empty when it was not."""


class Decision(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Chosen node, losing candidates with their costs, the reason, the age of each state used."""

    request_id: str
    node_id: str
    """Empty when there was none to choose."""
    policy: str
    """The policy that chose: the fallback's name if one had to step in."""
    cost_unit: str
    scores: tuple[Score, ...]
    """All nodes considered, best first."""
    reason: str
    decision_s: float
    """From arrival to decision."""
    attempt: int = 1
