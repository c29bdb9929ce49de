"""Where everything lies in the arrays of a compiled node.

head   int64 (N_HEAD,)            limits, then counters
req    int64 (capacity, N_COLS)   one row per request ("slot")
lists  int64 (N_LISTS, width)     running order, waiting queue, free-queue segments
log    int64 (n, N_LOG_COLS)      what happened, in order

The waiting queue is stored back to front: its first request is the last cell, so that admitting and putting back a
preempted request touch one cell.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simcore.types import HEADROOM_HORIZONS_S, EngineConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# head: limits
MAX_SEQS = 0
BUDGET = 1
BLOCK = 2
MAX_LEN = 3
LONG_PREFILL = 4
CACHING = 5
BY_PRIORITY = 6
TOTAL_BLOCKS = 7
# head: counters
N_RUNNING = 8
N_WAITING = 9
FREE = 10
PREEMPTED_TOTAL = 11
# head: free queue; meaningful only while OWNED > 0 (else no free block is worth telling from another)
OWNED = 12
FRONT = 13
SEG_HEAD = 14
SEG_TAIL = 15
# head: what-ifs only
AHEAD = 16
"""1 for an engine that plans a step ahead (asynchronous scheduling): who comes now is not in the next plan."""
N_HEAD = 17

# req columns
PROMPT = 0
OUT = 1
COMPUTED = 2
FINAL = 3
CAPACITY = 4
"""Tokens that the held blocks have room for: blocks held * block size."""
PRIORITY = 5
ORDER = 6
PREEMPTIONS = 7
SEGMENT = 8
"""Index of the free-queue segment with this waiting request's own old blocks, or -1."""
GRANTED = 9
"""Tokens given in the step being planned, else 0."""
CACHED = 10
"""Tokens found cached at the admission in the step being planned."""
N_COLS = 11

# lists rows
RUNNING = 0
WAITING = 1
SEG_OWNER = 2
SEG_COUNT = 3
LEFT = 4
"""Scratch of `jump`: steps that each running request has left."""
PER_SLACK = 5
"""Scratch of `jump`: running requests by the room in their last block."""
N_LISTS = 6

# log columns and kinds
KIND = 0
SLOT = 1
TOKENS = 2
PRODUCED = 3
HIT = 4
N_LOG_COLS = 5
PREEMPTED = 0
SCHEDULED = 1
FIRST_TOKEN = 2
FINISHED = 3

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
SO_FAR_PATH = 3
"""Fewest free blocks so far within each of the horizons."""
N_PROGRESS = SO_FAR_PATH + len(HEADROOM_HORIZONS_S)

# a row of a course: what a candidate would find on the way, without it
SINCE = 0
"""When the stretch begins; the next one ends it."""
ROOM = 1
"""Fewest free blocks in the stretch, and once the course is complete: in it and all later ones; -1 where a newcomer
would have to wait."""
N_COURSE_COLS = 2

# a candidate: how many scenarios it has lengths for, then one length per scenario from C_FINALS on
C_PROMPT = 0
C_PRIORITY = 1
C_SCENARIOS = 2
C_FINALS = 3


def list_width(capacity: int, block_size_tokens: int) -> int:
    """Cells a list needs: two free-queue segments per request with room to let them wander before compaction, and one
    cell per token of a block in `PER_SLACK`."""
    return max(4 * capacity + 8, block_size_tokens)


def log_rows(capacity: int) -> int:
    """Log rows one step can fill: each request preempted or scheduled, with a first token, finished."""
    return 3 * capacity + 4


def new_head(config: EngineConfig) -> Ints:
    """The head of an empty node."""
    head = np.zeros(N_HEAD, dtype=np.int64)
    head[MAX_SEQS] = config.max_num_seqs
    head[BUDGET] = config.max_num_batched_tokens
    head[BLOCK] = config.block_size_tokens
    head[MAX_LEN] = config.max_model_len_tokens
    head[LONG_PREFILL] = config.long_prefill_token_threshold_tokens
    head[CACHING] = config.enable_prefix_caching
    head[BY_PRIORITY] = config.scheduling_policy == "priority"
    head[TOTAL_BLOCKS] = config.num_blocks
    head[FREE] = config.num_blocks
    return head
