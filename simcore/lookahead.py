"""What-if: the future of one node with and without a candidate, by simulation.

A forecast runs a copy of the node's scheduler forward until everybody has finished, once per scenario of answer lengths
(`simcore.scenarios`), and compares with the same scenario without the candidate. The futures without it are computed
once per base state. Of a request that is there already and might leave it compares the same future with that in which
the request is aborted now.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from simcore.adapters import adapter_number
from simcore.baseline import SAME_MOMENT_S, Baseline
from simcore.beliefs import BeliefTable
from simcore.compiled import layout as at
from simcore.compiled.entry import ENTRIES
from simcore.cost.step_time import StepTimeModel
from simcore.node import NodeRequest, SimNode
from simcore.scenarios import final_lengths, longest_output
from simcore.types import Candidate, EngineConfig, Forecast, LengthBelief, NodeOutlook, Quantiles

_FIRST_CAPACITY = 128


class WhatIf:
    """Forecasts from one base state. Reusable: `rebase_node`, then `forecast` as often as wanted. Not thread-safe."""

    def __init__(
        self,
        node_id: str,
        config: EngineConfig,
        step_time: StepTimeModel,
        *,
        scenarios: int = 8,
        jumping: bool = True,
    ) -> None:
        """`jumping=False` runs every step one by one: the same answers, slower; for comparisons.

        Of a simulated node whose prompts share blocks, stepping tells the blocks apart and is exact. Jumping counts
        them: one that several hold is freed with the first of them, and prompts find what is cached now and what those
        ahead of them leave.
        """
        if scenarios < 1:
            raise ValueError(f"scenarios must be >= 1, got {scenarios}")
        self.node_id = node_id
        self.config = config
        self.scenarios = scenarios
        self.jumping = jumping
        self._packed = step_time.pack()
        self._beliefs = BeliefTable(config, scenarios)
        self._samples = np.zeros((5, scenarios), dtype=np.float64)
        self._candidates = np.zeros((1, at.C_FINALS + scenarios), dtype=np.int64)
        self._out = np.zeros((1, at.N_FORECAST), dtype=np.float64)
        self._allocate(_FIRST_CAPACITY)
        self._counted = self._shared = self._base_shared = at.counted(config)
        self._sharing: SimNode | None = None
        self._hashes = np.zeros((1, 1), dtype=np.int64)
        self._seq = 0
        self._arrivals = 0
        self._start_s = 0.0
        self._base_scenarios = 1
        self._base_done = False
        self._base_is_now = True
        """False: the base state is older than the moment that its baseline was moved on to."""
        self._base_requests = 0
        self._baseline: Baseline | None = None
        self._heads[0] = at.new_head(config)
        self._node: SimNode | None = None
        self._node_rows = np.zeros(_FIRST_CAPACITY, dtype=np.int64)
        self._membership = 0
        self._arrived: dict[str, NodeRequest] = {}
        self._held: dict[str, LengthBelief] = {}

    def rebase_node(self, node: SimNode, beliefs: Mapping[str, LengthBelief], now_s: float) -> None:
        """Takes a simulated node as it stands at `now_s` as the base state and forgets the memoised baseline.

        `beliefs` holds the total output length of every request on it. A step in progress is waited for; an engine that
        schedules asynchronously has planned the step after that already, so a candidate joins one step later. Raises
        ValueError for a request without belief and for one that the engine cannot hold.
        """
        n = len(node.requests)
        self._reserve_slots(n)
        if node is not self._node or node.membership != self._membership or beliefs != self._held:
            self._read_beliefs(node, beliefs)
        table = self._beliefs
        self._base_scenarios = ENTRIES.take_node(
            node.head,
            node.req,
            node.lists,
            self._counted,
            self._heads,
            self._reqs,
            self._lists,
            self._source,
            self._node_rows,
            table.atoms,
            table.strata,
            self._rows,
            self.scenarios,
            self._finals,
        )
        self._base_done, self._base_is_now, self._base_requests = False, True, n
        known = self._base_scenarios == 1 and self.jumping and not node.shares_blocks
        self._baseline = Baseline(node, self._source[:n], now_s) if known and self._heads[0, at.N_WAITING] else None
        self._sharing = node if node.shares_blocks else None
        self._shared = self._base_shared = self._counted
        if self.jumping:
            node.count_shares(self._reqs[0], self._source)
        elif (base := node.shared_blocks(self._source[:n])) is not None:
            self._base_shared = base
            self._shared = np.empty_like(base[0]), np.empty_like(base[1]), base[2]
        self._arrivals = node.arrivals
        self._seq, self._start_s = node.seq, max(0.0, float(node.free_at_s - now_s))

    def reuse_baseline(self, node: SimNode, now_s: float) -> bool:
        """Moves the baseline of the node taken last on to `now_s` where that needs no new future.

        True if all that has happened on it was forecast, and a candidate would still wait for others now. The headroom
        of forecasts counts from then.
        """
        then, ends, progress = self._baseline, self._ends[0], self._progress[at.FIRST_CHECKPOINT]
        if then is None or not self._base_done or then.node is not node:
            return False
        if progress[at.NOW] < 0.0 or not then.still_holds(ends, self._ended[0], progress[at.NOW]):
            return False
        later_s, preempted = then.move_on(now_s)
        ends -= later_s
        since_s = self._headrooms[0, : self._headroom_rows[0], at.SINCE]
        since_s -= later_s
        since_s[since_s <= node.free_at_s - now_s + SAME_MOMENT_S] = 0.0
        progress[at.NOW] = max(0.0, progress[at.NOW] - later_s)
        progress[at.SO_FAR_PREEMPTIONS] -= preempted
        self._seq = node.seq
        self._base_is_now = False
        return True

    def __contains__(self, request_id: str) -> bool:
        """Whether the request is on the node of the base state."""
        return self._base_requests > 0 and request_id in self._arrived

    def forecast(self, candidates: Sequence[Candidate], cached_tokens: Sequence[int] = ()) -> list[Forecast]:
        """One forecast per candidate, each as if it came alone.

        `cached_tokens`: of each candidate's prompt, those that the node has in its prefix cache; none by default. They
        are taken to be there still when it is admitted, and their blocks to be held by nobody. A simulated node knows
        by itself what a candidate's block hashes find, and what those ahead of it leave there. Of a candidate that
        might leave they are those of its tokens whose blocks others hold too. Raises ValueError for a candidate that
        the engine can never run, and for one that might leave and is not there.
        """
        n = len(candidates)
        if not self._base_is_now and any(c.leaving for c in candidates):
            self._rebase_now()
        if n > len(self._candidates):
            self._candidates = np.zeros((n, self._candidates.shape[1]), dtype=np.int64)
            self._out = np.zeros((n, at.N_FORECAST), dtype=np.float64)
        block, dropped = self.config.block_size_tokens, self.config.dropped_blocks
        found_tokens = [0] * n
        for i, candidate in enumerate(candidates):
            blocks = cached_tokens[i] // block if cached_tokens else 0
            cached = (blocks + dropped if blocks else 0), 0
            if candidate.leaving:
                row = self._leaving_row(candidate, blocks)
                self._candidates[i, : len(row)] = row
                continue
            if candidate.block_hashes and self._sharing is not None:
                names, tokens = candidate.block_hashes, candidate.prompt_tokens
                cached = self._sharing.expected_blocks(names, tokens, candidate.priority)
            found_tokens[i] = max(0, cached[0] - dropped) * block
            row = self._candidate_row(candidate, *cached)
            self._candidates[i, : len(row)] = row
            if self._base_shared is not None and len(self._base_shared[2]):
                self._name_blocks(i, candidate, self._base_shared[2])
        fine = ENTRIES.forecast(
            self._heads,
            self._reqs,
            self._lists,
            self._shared,
            self._base_shared,
            self._hashes,
            self._log,
            self._packed,
            self._start_s,
            self._finals,
            self._base_scenarios,
            self._base_done,
            self._candidates,
            n,
            self._progress,
            self._ends,
            self._headrooms,
            self._headroom_rows,
            self._ended,
            self._samples,
            self._out,
            self.jumping,
        )
        if not fine:
            raise ValueError(f"{self.node_id}: a request on this node needs more KV blocks than the engine has")
        self._base_done = True
        if cached_tokens and self._sharing is None:
            found_tokens = [*cached_tokens]
        return [self._answer(*row) for row in zip(candidates, self._out[:n].tolist(), found_tokens, strict=True)]

    def outlook(self) -> NodeOutlook:
        """What is ahead of those that are on the node. Raises ValueError where `forecast` would."""
        if not self._base_is_now:
            self._rebase_now()
        if not self._base_requests:
            return NodeOutlook()
        if not self._base_done:
            self.forecast(())
        futures = self._progress[at.FIRST_CHECKPOINT : at.FIRST_CHECKPOINT + self._base_scenarios]
        preempted_s = sorted(x for x in futures[:, at.FIRST_PREEMPTED].tolist() if x >= 0.0)
        half = (self._base_scenarios + 1) // 2
        starts_s = futures[:, at.HEAD_STARTS].tolist()
        return NodeOutlook(
            preemption_ahead_s=preempted_s[half - 1] if len(preempted_s) >= half else -1.0,
            head_waits_s=max(0.0, sum(starts_s) / len(starts_s)),
        )

    def _rebase_now(self) -> None:
        """The node as it was when the baseline was moved on, which it still is, as the base state."""
        then = self._baseline
        assert then is not None, "only a baseline is moved on"
        if then.node.seq != self._seq:
            raise ValueError(f"{self.node_id}: its state was moved on, and has gone on since")
        self.rebase_node(then.node, self._held, then.now_s)

    def _leaving_row(self, candidate: Candidate, held_by_others: int) -> list[int]:
        if candidate.request_id not in self:
            raise ValueError(f"{self.node_id}: request {candidate.request_id!r} is not here")
        its_own = self._arrived[candidate.request_id].slot
        slot = int(np.flatnonzero(self._source[: self._base_requests] == its_own)[0])
        if self._sharing is not None:
            held_by_others = self._sharing.held_by_others(candidate.request_id)
        return [0, 0, 0, 0, held_by_others, 0, self._base_scenarios, slot, 0, 0]

    def _answer(self, candidate: Candidate, out: list[float], cached_tokens: int) -> Forecast:
        return Forecast(
            request_id=candidate.request_id,
            node_id=self.node_id,
            ttft_s=Quantiles(*out[at.TTFT : at.TTFT + 3]),
            tpot_s=Quantiles(*out[at.TPOT : at.TPOT + 3]),
            e2e_s=Quantiles(*out[at.E2E : at.E2E + 3]),
            preemptions=out[at.PREEMPTION_COUNT],
            kv_headroom_blocks=int(out[at.HEADROOM]),
            harm_s=Quantiles(*out[at.HARM : at.HARM + 3]),
            preemption_probability=out[at.PREEMPTION_SHARE],
            clear_start_s=Quantiles(*out[at.CLEAR : at.CLEAR + 3]),
            kv_headroom_path=tuple(map(int, out[at.HEADROOM_PATH :])),
            trace_seq=self._seq,
            state_age_s=0.0,
            cached_tokens=0 if candidate.leaving else cached_tokens,
        )

    def _name_blocks(self, i: int, candidate: Candidate, names: at.Ints) -> None:
        """What the blocks of candidate number `i` are found by."""
        if self._hashes.shape != (len(self._candidates), names.shape[1]):
            self._hashes = np.zeros((len(self._candidates), names.shape[1]), dtype=np.int64)
        row = np.array(candidate.block_hashes[: names.shape[1]], dtype=np.uint64).view(np.int64)
        self._hashes[i, : len(row)] = row
        self._candidates[i, at.C_HASHES] = len(row)

    def _candidate_row(self, candidate: Candidate, cached_blocks: int, cached_held: int) -> list[int]:
        longest = longest_output(self.config, candidate.prompt_tokens, candidate.max_output_tokens)
        shape = [candidate.prompt_tokens, candidate.priority, candidate.max_output_tokens]
        shape += [cached_blocks, cached_held, 0]
        adapter = adapter_number(self.config.adapter_of(candidate.model))
        atoms = candidate.belief.atoms_tokens
        if self._base_scenarios == 1 and atoms[0] == atoms[-1]:
            return [*shape, 1, -1, adapter, self._arrivals, min(longest, atoms[0])]
        finals = final_lengths(
            candidate.belief,
            candidate.request_id,
            produced_tokens=0,
            longest_tokens=longest,
            scenarios=self.scenarios,
        )
        return [*shape, self.scenarios, -1, adapter, self._arrivals, *finals]

    def _read_beliefs(self, node: SimNode, beliefs: Mapping[str, LengthBelief]) -> None:
        """Rows of the belief table by the node's slots; good until somebody comes, goes or is believed otherwise."""
        capacity = len(node.req)
        if len(self._node_rows) < capacity:
            self._node_rows = np.zeros(capacity, dtype=np.int64)
            self._node = None
        table, requests = self._beliefs, node.requests
        if node is not self._node:
            self._arrived, self._held = {}, {}
        self._node = None
        known, held, generation = self._arrived.get, self._held.get, table.generation
        fresh = [a for i, a in requests.items() if known(i) is not a or held(i) is not beliefs.get(i)]
        rows = self._rows_of(fresh, beliefs, len(requests))
        if table.generation != generation and len(fresh) < len(requests):
            fresh = [*requests.values()]
            rows = self._rows_of(fresh, beliefs, len(requests))
        for arrived, row in zip(fresh, rows, strict=True):
            self._node_rows[arrived.slot] = row
        self._node, self._membership = node, node.membership
        self._arrived, self._held = dict(requests), dict(beliefs)

    def _rows_of(self, arrived: Sequence[NodeRequest], beliefs: Mapping[str, LengthBelief], most: int) -> list[int]:
        wanted: list[tuple[str, LengthBelief, int, int]] = []
        for request_id, request in ((a.request.request_id, a.request) for a in arrived):
            belief = beliefs.get(request_id)
            if belief is None:
                raise ValueError(f"{self.node_id}: no length belief for request {request_id!r}")
            wanted.append((request_id, belief, request.prompt_tokens, request.max_output_tokens))
        return self._beliefs.rows(wanted, most)

    def _reserve_slots(self, n: int) -> None:
        if n + 1 > self._reqs.shape[1]:
            self._allocate(2 * n + 2)

    def _allocate(self, capacity: int) -> None:
        """`capacity` requests, the candidate among them; one state each for base, scratch and checkpoints."""
        width = at.list_width(capacity, self.config.block_size_tokens)
        states = at.FIRST_CHECKPOINT + self.scenarios
        self._heads = np.zeros((states, at.N_HEAD), dtype=np.int64)
        self._reqs = np.zeros((states, capacity, at.N_COLS), dtype=np.int64)
        self._lists = np.zeros((states, at.N_LISTS, width), dtype=np.int64)
        self._progress = np.zeros((states, at.N_PROGRESS), dtype=np.float64)
        self._log = np.zeros((at.log_rows(capacity), at.N_LOG_COLS), dtype=np.int64)
        self._source = np.zeros(capacity, dtype=np.int64)
        self._rows = np.zeros(capacity, dtype=np.int64)
        self._finals = np.zeros((self.scenarios, capacity), dtype=np.int64)
        self._ends = np.zeros((self.scenarios + 1, capacity), dtype=np.float64)
        self._headrooms = np.zeros((self.scenarios, width, at.N_HEADROOM_COLS), dtype=np.float64)
        self._headroom_rows = np.zeros(self.scenarios, dtype=np.int64)
        self._ended = np.zeros((self.scenarios, at.ended_width(capacity)), dtype=np.int64)
