"""Workloads with a name: each the smallest in which a rule that is easily missed decides. Divergences that random
workloads find end up here."""

from __future__ import annotations

from typing import Any

from simcore.drafts import DraftOdds
from simcore.types import EngineConfig
from tests.conformance.scheduler_workloads import Actions, OracleRequest, Workload


def _workload(actions: dict[int, Actions], **limits: Any) -> Workload:
    defaults: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "num_blocks": 8}
    config = EngineConfig(model="oracle", max_model_len_tokens=128, **{**defaults, **limits})
    return Workload(seed=-1, config=config, actions=actions)


def _speculating(actions: dict[int, Actions], *odds: tuple[int, int, float], **limits: Any) -> Workload:
    """With three drafts at most; `odds` as the lines of `DraftOdds`."""
    workload = _workload(actions, num_speculative_tokens=3, **limits)
    return Workload(seed=-1, config=workload.config, actions=actions, draft_odds=DraftOdds(odds))


def _request(number: int, prompt: int, output: int, **more: Any) -> OracleRequest:
    return OracleRequest(request_id=f"r{number}", prompt_tokens=prompt, output_tokens=output, **more)


def _arrive(*requests: OracleRequest) -> Actions:
    return Actions(arrivals=requests)


NAMED = {
    # The last token that max_tokens allows is in flight: the next plan leaves the request out, but it keeps its seat.
    "a_seat_is_free_one_step_after_the_last_token": _workload(
        {0: _arrive(_request(0, 5, 3), _request(1, 5, 3))}, max_num_seqs=1, async_scheduling=True
    ),
    # It ended of itself, which the next plan could not know: a step that yields nothing, and may take a block.
    "an_answer_that_ends_of_itself_costs_one_more_step": _workload(
        {0: _arrive(_request(0, 14, 2, max_output_tokens=50), _request(1, 40, 20))}, num_blocks=4, async_scheduling=True
    ),
    "only_a_step_that_yields_nothing_is_left": _workload(
        {
            0: _arrive(_request(0, 5, 2, max_output_tokens=9)),
            2: _arrive(_request(1, 5, 2)),
            3: _arrive(_request(2, 3, 1)),
        },
        async_scheduling=True,
    ),
    # Preempted with a token in flight: it still comes, and if it is the last, the request ends while it waits.
    "a_preempted_request_ends_while_it_waits": _workload(
        {0: _arrive(_request(0, 60, 8, max_output_tokens=60), _request(1, 44, 5, max_output_tokens=60))},
        num_blocks=7,
        async_scheduling=True,
    ),
    "a_preempted_request_gets_the_token_in_flight": _workload(
        {0: _arrive(*(_request(i, 30, 40) for i in range(3)))}, num_blocks=9, async_scheduling=True
    ),
    "who_is_aborted_in_flight_is_computed_for_nobody": _workload(
        {
            0: _arrive(_request(0, 100, 9), _request(1, 20, 9)),
            1: Actions(aborts=("r0",)),
            2: _arrive(_request(2, 100, 4)),
        },
        async_scheduling=True,
    ),
    # Aborted in each of the states in which a request can be: in the queue, in the batch, put back with blocks that
    # still hold its tokens. What it held is free before the next step is planned.
    "who_waits_is_aborted": _workload(
        {
            0: _arrive(*(_request(i, 60, 20) for i in range(3))),
            2: Actions(aborts=("r2",)),
            5: _arrive(_request(3, 9, 4)),
        }
    ),
    "who_runs_is_aborted": _workload(
        {
            0: _arrive(*(_request(i, 60, 20) for i in range(3))),
            6: Actions(aborts=("r0",)),
            7: _arrive(_request(3, 9, 4)),
        }
    ),
    "who_is_aborted_while_preempted_leaves_its_cached_blocks": _workload(
        {
            0: _arrive(*(_request(i, 30, 40) for i in range(3))),
            22: Actions(aborts=("r2",)),
            24: _arrive(_request(3, 50, 4)),
        },
        num_blocks=7,
    ),
    "long_prompts_go_on_in_small_chunks_beside_others": _workload(
        {0: _arrive(_request(0, 100, 3), _request(1, 90, 3)), 1: _arrive(_request(2, 4, 6))},
        long_prefill_token_threshold_tokens=24,
        num_blocks=16,
    ),
    "a_long_prompt_alone_has_no_limit": _workload(
        {0: _arrive(_request(0, 100, 3)), 9: _arrive(_request(1, 100, 3))},
        long_prefill_token_threshold_tokens=24,
        max_num_batched_tokens=128,
        num_blocks=16,
    ),
    # In flight are two prefills: the third is admitted only if all of it fits beside them, not just its first chunk.
    "a_prompt_whose_first_chunk_fits_still_waits": _workload(
        {0: _arrive(*(_request(i, 60, 12) for i in range(3)))}, max_num_batched_tokens=24, num_blocks=9
    ),
    "blocks_of_32_tokens_split_a_prompt_elsewhere": _workload(
        {i: _arrive(_request(i, 70, 30, shared_prefix="g1", shared_tokens=66)) for i in range(3)},
        block_size_tokens=32,
        num_blocks=8,
    ),
    "blocks_of_tokens_not_known_yet_have_no_name": _workload(
        {0: _arrive(*(_request(i, 15, 40) for i in range(4)))}, num_blocks=9, async_scheduling=True
    ),
    # Two ask the same at once: both compute it, the third finds the blocks of the first.
    "the_first_of_equal_blocks_is_found": _workload(
        {
            0: _arrive(*(_request(i, 50, 5 + i, shared_prefix="g1", shared_tokens=40) for i in range(2))),
            4: _arrive(_request(2, 50, 5, shared_prefix="g1", shared_tokens=40)),
            20: _arrive(_request(3, 90, 5), _request(4, 40, 5, shared_prefix="g1", shared_tokens=40)),
        },
        num_blocks=12,
    ),
    "the_last_token_of_a_prompt_is_always_computed": _workload(
        {i: _arrive(_request(i, 48, 2, shared_prefix="g1", shared_tokens=48)) for i in range(0, 30, 10)}
    ),
    # Cached blocks that nobody holds stand in the free queue: to take them costs free blocks too.
    "cached_blocks_in_the_free_queue_count_as_taken": _workload(
        {
            0: _arrive(_request(0, 64, 2, shared_prefix="g1", shared_tokens=64)),
            9: _arrive(_request(1, 40, 30), _request(2, 80, 5, shared_prefix="g1", shared_tokens=64)),
        },
        num_blocks=8,
    ),
    "an_answer_that_goes_on_like_another_is_found": _workload(
        {
            0: _arrive(_request(0, 20, 40, shared_prefix="g1", shared_tokens=60)),
            50: _arrive(_request(1, 60, 5, shared_prefix="g1", shared_tokens=60)),
        }
    ),
    "a_low_priority_first_runner_preempts_itself_and_nobody_runs": _workload(
        {
            0: _arrive(_request(0, 30, 60, priority=2)),
            1: _arrive(_request(1, 30, 60, priority=0), _request(2, 30, 60, priority=1)),
        },
        num_blocks=9,
        scheduling_policy="priority",
    ),
    "one_token_prompts_and_answers": _workload({0: _arrive(*(_request(i, 1, 1) for i in range(9)))}),
    "prompt_and_answer_fill_the_model_length": _workload(
        {0: _arrive(_request(0, 127, 1), _request(1, 100, 28), _request(2, 1, 127))}
    ),
    # Passed over for others, and still the first when its adapter finds a place.
    "who_waits_for_an_adapters_place_keeps_its_own": _workload(
        {
            0: _arrive(_request(0, 5, 4, adapter="a")),
            1: _arrive(
                *(_request(i, 5, 6, adapter=adapter) for i, adapter in enumerate(("b", "c", "a", "", "b"), start=1))
            ),
            3: Actions(aborts=("r1",)),
        },
        max_loras=1,
    ),
    # The one whose last token is in flight is not in the next batch: its adapter's place is free before its seat.
    "an_adapters_place_is_free_before_the_seat": _workload(
        {0: _arrive(_request(0, 5, 3, adapter="a"), _request(1, 5, 3, adapter="b"))}, max_loras=1, async_scheduling=True
    ),
    # Admitted by the plan in flight past one that waits, which is aborted before that plan's step has ended.
    "who_was_passed_over_is_aborted": _workload(
        {
            0: _arrive(*(_request(i, 9, 9, adapter=adapter) for i, adapter in enumerate(("a", "b", "c", "", "a")))),
            1: Actions(aborts=("r1",)),
            2: _arrive(_request(5, 9, 9, adapter="a")),
        },
        max_loras=1,
        async_scheduling=True,
    ),
    # Half of the budget while two are there, the threshold while many are.
    "an_adaptive_threshold_grows_to_an_even_share": _workload(
        {0: _arrive(_request(0, 120, 2), _request(1, 120, 2)), 9: _arrive(*(_request(i, 90, 3) for i in range(2, 9)))},
        num_blocks=64,
        long_prefill_token_threshold_tokens=20,
        long_prefill_adaptive=True,
    ),
    # Its prompt is longer than all blocks, of which a window needs few.
    "a_window_gives_back_what_it_has_passed": _workload(
        {0: _arrive(_request(0, 120, 8), _request(1, 90, 30))},
        kv_windows_tokens=(20,),
        max_num_batched_tokens=16,
        num_blocks=6,
    ),
    # Planned while a chunk is in flight, which still reads before the window of the next token.
    "what_is_in_flight_keeps_its_window": _workload(
        {0: _arrive(_request(0, 100, 28), _request(1, 40, 40))},
        kv_windows_tokens=(20, 0),
        max_num_batched_tokens=32,
        num_blocks=18,
        async_scheduling=True,
    ),
    # The second knows four blocks in the group of full attention and none in the other, and leaves there what the third
    # begins with; the fourth begins behind all of the first's prompt.
    "a_prompt_begins_where_every_group_has_what_it_attends_to": _workload(
        {
            0: _arrive(_request(0, 100, 2, shared_prefix="g1", shared_tokens=100)),
            6: _arrive(_request(1, 90, 2, shared_prefix="g1", shared_tokens=64)),
            12: _arrive(_request(2, 90, 2, shared_prefix="g1", shared_tokens=64)),
            18: _arrive(_request(3, 101, 2, shared_prefix="g1", shared_tokens=100)),
        },
        kv_windows_tokens=(0, 20, 20),
        num_blocks=40,
    ),
    # The one that is put back finds its prompt's end, and in a group of windows alone no more than that.
    "a_preempted_request_finds_the_window_of_its_prompts_end": _workload(
        {0: _arrive(_request(0, 60, 60), _request(1, 60, 60), _request(2, 50, 70))},
        kv_windows_tokens=(30, 0),
        num_blocks=22,
    ),
    "drafts_that_are_wrong_leave_their_block": _speculating(
        {0: _arrive(_request(0, 14, 20), _request(1, 30, 20))}, (3, 0, 1.0), num_blocks=7
    ),
    "an_answer_ends_amid_drafts_that_are_right": _speculating(
        {0: _arrive(_request(0, 5, 7), _request(1, 5, 2), _request(2, 5, 12, max_output_tokens=40))}, (3, 3, 1.0)
    ),
    "there_need_not_be_drafts": _speculating(
        {0: _arrive(_request(0, 5, 30), _request(1, 9, 30))}, (0, 0, 1.0), (1, 1, 1.0), (3, 2, 1.0)
    ),
    # Three tokens of budget are left for the second; what it cannot have of its drafts it loses.
    "drafts_are_cut_to_the_budget": _speculating(
        {0: _arrive(_request(0, 5, 20), _request(1, 5, 20))}, (3, 2, 1.0), max_num_batched_tokens=7
    ),
    "drafts_are_cut_to_the_models_length": _speculating(
        {0: _arrive(_request(0, 100, 28), _request(1, 120, 8))}, (3, 1, 1.0), (3, 3, 1.0), num_blocks=24
    ),
    "who_is_preempted_loses_its_drafts_and_gets_those_in_flight": _speculating(
        {0: _arrive(*(_request(i, 30, 40, max_output_tokens=60) for i in range(3)))},
        (3, 1, 1.0),
        (3, 3, 1.0),
        num_blocks=9,
        async_scheduling=True,
    ),
    # One token missing, others decode: it is admitted with as many as they have, or waits for so much budget.
    "who_joins_decoding_is_padded": _speculating(
        {0: _arrive(_request(0, 5, 20)), 3: _arrive(*(_request(i, 1, 6) for i in range(1, 4)))},
        (3, 1, 1.0),
        max_num_batched_tokens=10,
    ),
    "who_joins_a_prefill_is_not_padded": _speculating(
        {0: _arrive(_request(0, 80, 9)), 1: _arrive(_request(1, 1, 6)), 2: _arrive(_request(2, 1, 6))},
        (3, 1, 1.0),
        long_prefill_token_threshold_tokens=20,
        num_blocks=16,
    ),
    "lookahead_needs_room_at_admission_too": _speculating(
        {0: _arrive(_request(0, 30, 30), _request(1, 31, 20), _request(2, 16, 20))},
        (3, 1, 1.0),
        num_lookahead_tokens=3,
        num_blocks=6,
    ),
    "the_last_cached_block_is_computed_anew": _speculating(
        {
            0: _arrive(_request(0, 40, 20, shared_prefix="g1", shared_tokens=40)),
            20: _arrive(*(_request(i, 44, 20, shared_prefix="g1", shared_tokens=40) for i in (1, 2))),
        },
        (3, 2, 1.0),
        num_lookahead_tokens=3,
        drops_cached_block=True,
    ),
}
"""Each under the scheduler it is about; comparisons run all of them under both."""
