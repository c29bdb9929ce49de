"""Our own schedulers behind the interface of the comparison."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.cost.step_time import StepTimeModel
from simcore.drafts import DraftOdds
from simcore.node import SimNode, SimRequest
from simcore.reference import ReferenceRequest, ReferenceScheduler
from simcore.reference_kv import ReferenceHolding
from simcore.trace import Scheduled
from simcore.types import EngineConfig
from tests.conformance.scheduler_workloads import Observation, OracleRequest


class Reference:
    """The plain implementation; checks its invariants after every step."""

    def __init__(self, config: EngineConfig, *, draft_odds: DraftOdds | None = None, checking: bool = True) -> None:
        self.scheduler = ReferenceScheduler(config, draft_odds)
        self._checking = checking
        self._order = 0

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    def add(self, request: OracleRequest, arrival_s: float) -> None:
        self.scheduler.add(
            ReferenceRequest(
                request_id=request.request_id,
                prompt_tokens=request.prompt_tokens,
                final_tokens=request.output_tokens,
                max_output_tokens=request.most_tokens,
                priority=request.priority,
                arrival_s=arrival_s,
                adapter=request.adapter,
                order=self._order,
                held=ReferenceHolding(
                    prompt_tokens=request.prompt_tokens,
                    request_id=request.request_id,
                    block_hashes=request.block_hashes(self.scheduler.config.block_size_tokens),
                ),
            )
        )
        self._order += 1

    def abort(self, request_id: str) -> None:
        self.scheduler.abort(request_id)
        self._check()

    def step(self) -> Observation:
        done = self.scheduler.step()
        self._check()
        return Observation(
            scheduled=tuple(map(_in_the_batch, done.scheduled)),
            preempted=tuple(sorted(done.preempted)),
            finished=tuple(sorted(done.finished)),
            running=tuple((r.request_id, r.computed_tokens, r.output_tokens) for r in self.scheduler.running),
            waiting=tuple(r.request_id for r in self.scheduler.waiting),
            free_blocks=done.free_blocks,
        )

    def _check(self) -> None:
        if self._checking:
            self.scheduler.check()


def _in_the_batch(done: Scheduled) -> tuple[str, int, int, int]:
    """As `Observation.scheduled` has it: with drafts that were wrong."""
    tokens = 1 + done.drafts if done.drafts else done.tokens
    return (done.request_id, tokens, done.produced, done.cached_tokens)


FLAT = StepTimeModel(
    name="flat",
    constant_s=1.0,
    prefill_work_s_per_token2=0.0,
    decode_kv_s_per_token=0.0,
    per_seq_s=0.0,
    dense_knots_tokens=(1, 2),
    dense_knots_s=(0.0, 0.0),
)


class Compiled:
    """The compiled node, one step at a time; checks its invariants after every operation."""

    def __init__(self, config: EngineConfig, *, draft_odds: DraftOdds | None = None, checking: bool = True) -> None:
        self.node = SimNode("compiled", config, FLAT, draft_odds=draft_odds)
        self._checking = checking

    @property
    def has_work(self) -> bool:
        return self.node.has_work

    def add(self, request: OracleRequest, arrival_s: float) -> None:
        self.node.add(
            SimRequest(
                request_id=request.request_id,
                prompt_tokens=request.prompt_tokens,
                output_tokens=request.output_tokens,
                max_output_tokens=request.most_tokens,
                priority=request.priority,
                block_hashes=request.block_hashes(self.node.config.block_size_tokens),
                adapter=request.adapter,
            ),
            arrival_s,
        )
        self._check()

    def abort(self, request_id: str) -> None:
        self.node.abort(request_id)
        self._check()

    def step(self) -> Observation:
        """As it stands, not as a trace tells of it: with what the step in flight has changed."""
        node = self.node
        names = list(node.ids)
        already = {i: int(node.req[a.slot, at.PREEMPTIONS]) for i, a in node.requests.items()}
        slots = {i: a.slot for i, a in node.requests.items()}
        delta = node.step(0.0)
        self._check()
        running = node.lists[at.RUNNING, : node.head[at.N_RUNNING]].tolist()
        waiting = node.lists[at.WAITING, : node.head[at.N_WAITING]][::-1].tolist()
        return Observation(
            scheduled=tuple(map(_in_the_batch, delta.scheduled)),
            preempted=tuple(sorted(i for i, n in already.items() if node.req[slots[i], at.PREEMPTIONS] > n)),
            finished=tuple(sorted(delta.finished)),
            running=tuple((names[s], int(node.req[s, at.COMPUTED]), int(node.req[s, at.OUT])) for s in running),
            waiting=tuple(names[s] for s in waiting),
            free_blocks=int(node.head[at.FREE]),
        )

    def _check(self) -> None:
        if self._checking:
            self.node.check()
