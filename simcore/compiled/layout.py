"""Where everything lies in the arrays of a compiled node.

head   int64 (N_HEAD,)            limits, then counters
req    int64 (capacity, N_COLS)   one row per request ("slot")
lists  int64 (N_LISTS, width)     running order, waiting queue, free-queue segments
log    int64 (n, N_LOG_COLS)      what happened, in order
pool   int64 (N_POOL, width)      shared prefixes only: blocks, their free queue, and where to find them by key
table  int64 (capacity, width)    shared prefixes only: blocks of each slot, one KV cache group behind the other
names  int64 (capacity, width)    shared prefixes only: names of the blocks that a slot may share

The waiting queue is stored back to front: its first request is the last cell, so that admitting and putting back a
preempted request touch one cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simcore.proved import has_rules_of_0_33
from simcore.types import FULL_ATTENTION, HEADROOM_HORIZONS_S, EngineConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Arrays = tuple[Ints, Ints, Ints]
Shared = Arrays | None
"""(pool, table, names) where blocks are told apart, all empty where an engine with sliding windows or drafts counts
them. None: a plain engine, that has neither and counts. Kernels are compiled for each of the two, and for None have no
more than the plain rules: what is behind `shared is not None` is not there."""

# head: limits
MAX_SEQS = 0
BUDGET = 1
BLOCK = 2
MAX_LEN = 3
LONG_PREFILL = 4
"""0: none; below: at least so much, and at least an even share of the budget."""
CACHING = 5
BY_PRIORITY = 6
TOTAL_BLOCKS = 7
# head: counters
N_RUNNING = 8
N_WAITING = 9
FREE = 10
PREEMPTED_TOTAL = 11
"""Preemptions that a trace tells of: not of a request that ended or was aborted before the step in question began."""
# head: free queue; meaningful only while OWNED > 0 (else no free block is worth telling from another)
OWNED = 12
FRONT = 13
SEG_HEAD = 14
SEG_TAIL = 15
# head: asynchronous scheduling (`step.step_async`)
ASYNC = 16
"""1 for an engine that plans the next step when one begins, before its tokens are known."""
IN_FLIGHT = 17
"""1 while a step is planned that has not come back."""
N_PLAN = 18
"""Its entries in the `PLAN_` rows of bank `BANK`."""
BANK = 19
PLAN_PREFILL = 20
"""Its features: prefill tokens, twice the prefill work, prefill sequences, decode sequences, decode KV tokens, and
the fewest free blocks."""
PLAN_WORK2 = 21
PLAN_PREFILL_SEQS = 22
PLAN_DECODE = 23
PLAN_KV = 24
PLAN_LOWEST = 25
PLAN_GREW = 26
"""Blocks that it took, less those that its preemptions gave back."""
N_BEFORE = 27
"""Running requests when it was made, less those that have gone: row `RUNNING_BEFORE`."""
MAX_LORAS = 28
"""A limit: LoRA adapters in a batch; 0: none."""
# head: KV cache groups (`windows`)
GROUPS = 29
WINDOW_GROUPS = 30
"""How many of them have a sliding window; 0: there is one group, of full attention."""
WINDOW = 31
WINDOW_BLOCKS = 32
"""The most blocks that one with a window asks for at admission."""
WINDOW_MASK = 33
"""Bit g: group g has a window."""
NAMED_GROUP = 34
"""The group whose blocks are found by a prompt's own names: the first of full attention, else the first."""
RULES_OF_0_33 = 35
"""1 where the rules of vLLM 0.33 hold, not those of 0.32 (`simcore.proved`)."""
SPECULATIVE = 36
"""Limits: drafts of a request in a step, 0: none;"""
LOOKAHEAD = 37
"""further tokens that must have room;"""
DROPS_BLOCK = 38
"""1 where the last block found cached is computed anew."""
N_HEAD = 39

# req columns; those that every step looks at stand together
PROMPT = 0
OUT = 1
COMPUTED = 2
FINAL = 3
CAPACITY = 4
"""Tokens that the held blocks have room for: blocks held * block size."""
GRANTED = 5
"""Tokens given in the step being planned, else 0."""
CACHED = 6
"""Tokens found cached at the admission in the step being planned."""
PENDING = 7
"""Output tokens planned and not known yet."""
MAX_OUT = 8
"""Limit on the answer that the engine knows of."""
KEYED = 9
"""Leading tokens whose full blocks can be found by their content; kept where `kv_cache_manager.names_lag`."""
PRIORITY = 10
ORDER = 11
PREEMPTIONS = 12
SEGMENT = 13
"""Index of the free-queue segment with this waiting request's own old blocks, or -1."""
BEFORE = 14
"""Tokens computed when it was preempted last; from its admission on, how many were passed over for it then."""
HASHES = 15
"""How many of its blocks have a name that others may have: row of `names`."""
BORROWED = 16
"""What-ifs: held blocks that somebody else is taken to hold too, and to give back."""
ASSUMED = 17
"""What-ifs: blocks of a waiting request that are taken to be found cached at its admission."""
ASSUMED_HELD = 18
"""What-ifs: blocks of `ASSUMED` that somebody holds already."""
N_COLS = 19

# lists rows
RUNNING = 0
WAITING = 1
SEG_OWNER = 2
SEG_COUNT = 3
LEFT = 4
"""Scratch of `decode_sync`: steps that each running request has left."""
PER_SLACK = 5
"""Scratch of `decode_sync`: running requests by the room in their last block."""
RUNNING_BEFORE = 6
"""Asynchronously: the running list when the step in flight was planned."""
PLAN_SLOT = 7
"""Two banks of rows: slots of the step in flight in batch order, -1 for one that was aborted."""
PLAN_TOKENS = 9
"""Twice the tokens, plus 1 if it yields one."""
PLAN_CACHED = 11
POSITION = 13
"""Scratch of `decode_sync`: index in the running list of each slot that runs; anything for the others."""
BY_END = 14
"""Scratch of `decode_sync`: indexes in the running list, those that end first in front."""
ADAPTERS = 15
"""Scratch of `adapter_slots`: the adapters of a batch, each once."""
ADAPTER_OF = 16
"""Number of each slot's LoRA adapter (`simcore.adapters`), 0 for none; anything where `MAX_LORAS` is 0. Not a column of
`req`, which what-ifs copy and step through: engines without adapters would pay for it."""
PER_LEFT = 17
"""Scratch of `windows`: of a round of steps, how many requests give back a block of each window group in each."""
LEFT_BEHIND = 18
"""Leading blocks that each slot has given back in each window group, and the next two rows: anything without one."""
UNDER_WAY = 19
"""Tokens of each running slot in the step in flight."""
KNOWN_BEGIN = 20
"""How many of each slot's first blocks other groups had at its admission when the window groups had less; else 0."""
DRAFTS = 21
"""Speculative decoding only, as all rows from here on. Drafts that each slot has for its next step; -1 while not all of
its tokens are computed."""
RIGHT = 22
"""How many of them will turn out right."""
DRAWN = 23
"""How often it has had drafts."""
DRAFT_ODDS = 24
"""`drafts.cells_of`."""
PLAN_DRAFTS = 25
"""Two banks, beside `PLAN_SLOT`: drafts in the step in flight times 256, plus those that are right."""
N_LISTS = 27

# pool rows: one cell per block, then two ends of the free queue; the last row has a cell per bucket
KEY = 0
HAS_KEY = 1
"""0: none; 1: a name that others may ask for; 2: a key that nobody else has."""
REFS = 2
PREVIOUS = 3
NEXT = 4
CHAIN = 5
"""Next block in the same bucket, in the order in which they got their keys; -1 at the end."""
SEEN = 6
"""Scratch."""
BUCKETS = 7
N_POOL = 8
_NO_POOL: Arrays = (np.zeros((0, 0), dtype=np.int64),) * 3

# log columns and kinds
KIND = 0
SLOT = 1
TOKENS = 2
PRODUCED = 3
HIT = 4
DRAFTED = 5
N_LOG_COLS = 6
LOG_ROWS_EACH = 4
PREEMPTED = 0
SCHEDULED = 1
FIRST_TOKEN = 2
FINISHED = 3

# a state as its trace tells it (`run_to_event`): steps run, and what `types.NodeLoad` says of it
STATE_SEQ = 0
STATE_RUNNING = 1
STATE_WAITING = 2
STATE_FREE = 3
STATE_BLOCKS = 4
STATE_TOKENS = 5
STATE_PREEMPTED = 6
STATE_MARK = 7
STATE_PREFILL = 8
N_STATE = 9
WATCH_ALL = -2
"""Instead of a slot: every step is somebody's concern. -1: none is for its begin alone."""

# a forecast, as floats: mean, median and 90th percentile of each time, and what is counted
TTFT = 0
TPOT = 3
E2E = 6
HARM = 9
PREEMPTION_COUNT = 12
HEADROOM = 13
PREEMPTION_SHARE = 14
CLEAR = 15
HEADROOM_PATH = 18
N_FORECAST = HEADROOM_PATH + len(HEADROOM_HORIZONS_S)

# stacked states of a what-if, and the floats of a checkpoint
BASE = 0
SCRATCH_STATE = 1
FIRST_CHECKPOINT = 2
NOW = 0
SO_FAR_PREEMPTIONS = 1
SO_FAR_HEADROOM = 2
FIRST_PREEMPTED = 3
"""Of a whole future without a candidate: when it first preempted somebody; -1: never."""
HEAD_STARTS = 4
"""Of such a future: when the first that waited was admitted; -1: nobody waited."""
SO_FAR_PATH = 5
"""Fewest free blocks so far from each horizon to the next (`headroom.read_path`)."""
N_PROGRESS = SO_FAR_PATH + len(HEADROOM_HORIZONS_S)

# a row of headroom over time: what a candidate would find on the way, without it
SINCE = 0
"""When it begins; the next row ends it."""
ROOM = 1
"""Fewest free blocks in that time, and once all rows are there: in it and all later ones; -1 where a newcomer
would have to wait."""
N_HEADROOM_COLS = 2

# the order in which requests end without a candidate: how many, then their slots, then (`ended_width`) the preemptions
# there have been by then
N_ENDED = 0
FIRST_ENDED = 1

# a candidate: how many scenarios it has lengths for, then one length per scenario from C_FINALS on
C_PROMPT = 0
C_PRIORITY = 1
C_MAX_OUT = 2
C_CACHED = 3
"""Blocks of its prompt that are taken to be cached, and how many of them somebody holds."""
C_CACHED_HELD = 4
"""Of one that leaves: blocks that it holds and others too."""
C_HASHES = 5
"""How many of its blocks have a name that others may have."""
C_SCENARIOS = 6
C_LEAVES = 7
"""Slot of one that is there already and might leave; -1: it would come."""
C_ADAPTER = 8
C_ORDER = 9
C_FINALS = 10


def ended_width(capacity: int) -> int:
    """Cells for the order of ends: the preemptions begin `capacity` cells after the slots."""
    return FIRST_ENDED + 2 * capacity


def list_width(capacity: int, block_size_tokens: int) -> int:
    """Cells a list needs: two free-queue segments per request with room to let them wander before compaction, and one
    cell per token of a block in `PER_SLACK`."""
    return max(4 * capacity + 8, block_size_tokens)


def is_plain(config: EngineConfig) -> bool:
    """Whether it has neither sliding windows nor drafts."""
    return config.kv_windows_tokens == FULL_ATTENTION and not config.spare_tokens and not config.drops_cached_block


def counted(config: EngineConfig) -> Shared:
    """What kernels get of an engine whose blocks are counted."""
    return None if is_plain(config) else _NO_POOL


def new_shared(config: EngineConfig, capacity: int) -> Arrays:
    """Empty arrays of a block pool; `block_pool.build_pool` fills them."""
    blocks = config.num_blocks
    width = 1 << (2 * blocks + 3).bit_length()
    most_tokens = min(config.longest_tokens + config.unsure_tokens, config.max_model_len_tokens)
    longest = -(-most_tokens // config.block_size_tokens)
    pool = np.zeros((N_POOL, width), dtype=np.int64)
    table = np.zeros((capacity, len(config.kv_windows_tokens) * longest), dtype=np.int64)
    return pool, table, np.zeros((capacity, longest), dtype=np.int64)


def log_rows(capacity: int) -> int:
    """Log rows one step can fill: each request preempted, scheduled, with a first token, finished."""
    return LOG_ROWS_EACH * capacity + 4


def new_head(config: EngineConfig) -> Ints:
    """The head of an empty node."""
    head = np.zeros(N_HEAD, dtype=np.int64)
    head[MAX_SEQS] = config.max_num_seqs
    head[BUDGET] = config.max_num_batched_tokens
    head[BLOCK] = config.block_size_tokens
    head[MAX_LEN] = config.max_model_len_tokens
    head[LONG_PREFILL] = config.long_prefill_token_threshold_tokens * (-1 if config.long_prefill_adaptive else 1)
    head[CACHING] = config.enable_prefix_caching
    head[BY_PRIORITY] = config.scheduling_policy == "priority"
    head[TOTAL_BLOCKS] = config.num_blocks
    head[FREE] = config.num_blocks
    head[ASYNC] = config.async_scheduling
    head[MAX_LORAS] = config.max_loras
    windows = config.kv_windows_tokens
    head[GROUPS] = len(windows)
    head[WINDOW_GROUPS] = config.window_groups
    head[WINDOW] = config.window_tokens
    head[WINDOW_BLOCKS] = config.window_blocks
    head[WINDOW_MASK] = sum(1 << group for group, window in enumerate(windows) if window)
    head[NAMED_GROUP] = windows.index(min(windows))
    head[RULES_OF_0_33] = has_rules_of_0_33(config.engine_version)
    head[SPECULATIVE] = config.num_speculative_tokens
    head[LOOKAHEAD] = config.num_lookahead_tokens
    head[DROPS_BLOCK] = config.drops_cached_block
    return head


def request_row(
    *,
    prompt: int,
    out: int,
    computed: int,
    final: int,
    max_out: int,
    priority: int,
    order: int,
    preemptions: int,
    block: int,
) -> list[int]:
    """A row of `req`, with `computed` tokens in blocks of its own."""
    capacity = -(-computed // block) * block
    hot = [prompt, out, computed, final, capacity, 0, 0, 0, max(max_out, final), computed]
    return [*hot, priority, order, preemptions, -1, 0, 0, 0, 0, 0]
