"""Forecasts: the future with each candidate beside that without it, summarised over the scenarios."""

from __future__ import annotations

from simcore.compiled import layout as at
from simcore.compiled.block_pool import tells_apart
from simcore.compiled.future.running import admit_candidate, leave, run, start
from simcore.compiled.headroom import clear_from, read_path
from simcore.compiled.layout import Floats, Ints, Shared
from simcore.compiled.windows import asked_blocks
from simcore.kernel_cache import cached, kernel


@kernel
def summarise(values: Floats, n: int, out: Floats, column: int) -> None:
    """Mean, median and 90th percentile (linear between order statistics) of the first `n` values; sorts them."""
    total = 0.0
    for i in range(n):
        x = values[i]
        total += x
        j = i
        while j > 0 and values[j - 1] > x:
            values[j] = values[j - 1]
            j -= 1
        values[j] = x
    out[column] = total / n
    for k, q in ((1, 0.5), (2, 0.9)):
        place = q * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        out[column + k] = values[low] + (place - low) * (values[high] - values[low])


@kernel
def _tell(samples: Floats, scenarios: int, preemptions: float, preempting: float, out: Floats) -> None:
    summarise(samples[0], scenarios, out, at.TTFT)
    summarise(samples[1], scenarios, out, at.TPOT)
    summarise(samples[2], scenarios, out, at.E2E)
    summarise(samples[3], scenarios, out, at.HARM)
    summarise(samples[4], scenarios, out, at.CLEAR)
    out[at.PREEMPTION_COUNT] = preemptions / scenarios
    out[at.PREEMPTION_SHARE] = preempting / scenarios


@kernel
def _leaving(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    shared: Shared,
    base_shared: Shared,
    log: Ints,
    packed: Floats,
    start_s: float,
    finals: Ints,
    scenarios: int,
    candidate: Ints,
    progress: Floats,
    ends: Floats,
    headrooms: Floats,
    ended: Ints,
    samples: Floats,
    out: Floats,
    jumping: bool,
) -> bool:
    """The row of one that is there already: the future with it, which is the baseline, beside that in which it leaves
    now. Arguments as those of `forecast`. False if some future could not go on."""
    base = heads[at.BASE]
    n, capacity = base[at.N_RUNNING] + base[at.N_WAITING], reqs.shape[1]
    leaver = candidate[at.C_LEAVES]
    mine = ends[ends.shape[0] - 1]
    fine = True
    preemptions = preempting = 0.0
    out[at.HEADROOM] = progress[at.BASE, at.SO_FAR_HEADROOM]
    for k in range(at.N_PROGRESS - at.SO_FAR_PATH):
        out[at.HEADROOM_PATH + k] = progress[at.BASE, at.SO_FAR_PATH + k]
    for s in range(scenarios):
        start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, s, 0)
        next_s, _ = run(
            heads, reqs, lists, shared, log, packed, progress, leaver, mine, 0, jumping, headrooms[s], ended[s]
        )
        fine = fine and next_s >= 0.0
        for k in range(ended[s, at.N_ENDED]):
            if ended[s, at.FIRST_ENDED + k] == leaver:
                until_its_end = ended[s, at.FIRST_ENDED + capacity + k]
                preemptions += until_its_end
                preempting += until_its_end > 0
        start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, s, 0)
        leave(
            heads[at.SCRATCH_STATE],
            reqs[at.SCRATCH_STATE],
            lists[at.SCRATCH_STATE],
            shared,
            leaver,
            candidate[at.C_CACHED_HELD],
            n,
        )
        gone_s, _ = run(heads, reqs, lists, shared, log, packed, progress, n, mine, 0, jumping, headrooms[s], ended[s])
        fine = fine and gone_s >= 0.0
        gained_s = 0.0
        for slot in range(n):
            if slot != leaver:
                gained_s += ends[s, slot] - mine[slot]
        after = finals[s, leaver] - reqs[at.BASE, leaver, at.OUT] - 1
        samples[0, s] = next_s
        samples[1, s] = (ends[s, leaver] - next_s) / after if after > 0 else 0.0
        samples[2, s] = ends[s, leaver]
        samples[3, s] = gained_s
        samples[4, s] = 0.0
    _tell(samples, scenarios, preemptions, preempting, out)
    return fine


@cached
def forecast(
    heads: Ints,
    reqs: Ints,
    lists: Ints,
    shared: Shared,
    base_shared: Shared,
    hashes: Ints,
    log: Ints,
    packed: Floats,
    start_s: float,
    finals: Ints,
    base_scenarios: int,
    base_done: bool,
    candidates: Ints,
    n_candidates: int,
    progress: Floats,
    ends: Floats,
    headrooms: Floats,
    headroom_rows: Ints,
    ended: Ints,
    samples: Floats,
    out: Floats,
    jumping: bool,
) -> bool:
    """One row of `out` (layout TTFT...) per candidate. `base_done`: the baseline is in `ends`, the headrooms, the
    checkpoints and, the fewest free blocks over all scenarios, the progress of the base.

    `samples` is scratch (5, scenarios), `ends` (scenarios + 1, slots), `progress` (states, N_PROGRESS), `headrooms`
    (scenarios, most rows, N_HEADROOM_COLS), `ended` (scenarios, 1 + slots). Where the node tells blocks apart,
    `shared` is scratch like `base_shared` with the names of both, in which the first unused row takes those of a
    candidate from `hashes` (candidates, most names). False if some future could not go on.
    """
    base = heads[at.BASE]
    n = base[at.N_RUNNING] + base[at.N_WAITING]
    skipping = (
        jumping
        and (shared is None or not tells_apart(shared))
        and base[at.BY_PRIORITY] == 0
        and base[at.LONG_PREFILL] == 0
    )
    # Whoever comes may pass those that wait for a LoRA adapter's place.
    skipping = skipping and base[at.MAX_LORAS] == 0
    fine = True
    if not base_done:
        for i in range(at.SO_FAR_HEADROOM, at.N_PROGRESS):
            progress[at.BASE, i] = base[at.TOTAL_BLOCKS]
        for s in range(base_scenarios):
            start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, s, 0)
            checkpoint = at.FIRST_CHECKPOINT + s if skipping else 0
            progress[at.FIRST_CHECKPOINT + s, at.NOW] = -1.0
            first_s, headroom_rows[s] = run(
                heads,
                reqs,
                lists,
                shared,
                log,
                packed,
                progress,
                -1,
                ends[s],
                checkpoint,
                jumping,
                headrooms[s],
                ended[s],
            )
            fine = fine and first_s >= 0.0
            for i in (at.FIRST_PREEMPTED, at.HEAD_STARTS):
                progress[at.FIRST_CHECKPOINT + s, i] = progress[at.SCRATCH_STATE, i]
            lowest = progress[at.SCRATCH_STATE, at.SO_FAR_HEADROOM]
            progress[at.BASE, at.SO_FAR_HEADROOM] = min(progress[at.BASE, at.SO_FAR_HEADROOM], lowest)
            read_path(progress[at.SCRATCH_STATE], progress[at.BASE, at.SO_FAR_PATH :])
    mine = ends[ends.shape[0] - 1]
    for c in range(n_candidates):
        candidate = candidates[c]
        if candidate[at.C_LEAVES] >= 0:
            fine = fine and _leaving(
                heads,
                reqs,
                lists,
                shared,
                base_shared,
                log,
                packed,
                start_s,
                finals,
                base_scenarios,
                candidate,
                progress,
                ends,
                headrooms,
                ended,
                samples,
                out[c],
                jumping,
            )
            continue
        scenarios = candidate[at.C_SCENARIOS]
        preemptions = preempting = 0.0
        if shared is not None:
            for i in range(candidate[at.C_HASHES]):
                shared[2][n, i] = hashes[c, i]
        for i in range(at.HEADROOM, at.N_FORECAST):
            out[c, i] = base[at.TOTAL_BLOCKS]
        for s in range(scenarios):
            final = candidate[at.C_FINALS + s]
            of = min(s, base_scenarios - 1)
            for slot in range(n):
                mine[slot] = ends[of, slot]
            checkpoint = at.FIRST_CHECKPOINT + of if skipping else 0
            start(heads, reqs, lists, shared, base_shared, progress, start_s, finals, of, checkpoint)
            admit_candidate(
                heads[at.SCRATCH_STATE],
                reqs[at.SCRATCH_STATE],
                lists[at.SCRATCH_STATE],
                shared,
                n,
                candidate,
                final,
            )
            first_s, _ = run(
                heads, reqs, lists, shared, log, packed, progress, n, mine, 0, jumping, headrooms[of], ended[of]
            )
            fine = fine and first_s >= 0.0
            harm_s = 0.0
            for slot in range(n):
                harm_s += mine[slot] - ends[of, slot]
            samples[0, s] = first_s
            samples[1, s] = (mine[n] - first_s) / (final - 1) if final > 1 else 0.0
            samples[2, s] = mine[n]
            samples[3, s] = harm_s
            # As `limits.check_fits` counts them.
            unsure = base[at.SPECULATIVE] * (1 + base[at.ASYNC]) + base[at.LOOKAHEAD]
            tokens = candidate[at.C_PROMPT] + final - 1
            tokens = max(tokens, min(tokens + unsure, base[at.MAX_LEN]))
            blocks = asked_blocks(base, tokens)
            samples[4, s] = clear_from(headrooms[of], headroom_rows[of], blocks)
            mine_so_far = progress[at.SCRATCH_STATE]
            preemptions += mine_so_far[at.SO_FAR_PREEMPTIONS]
            preempting += mine_so_far[at.SO_FAR_PREEMPTIONS] > 0
            out[c, at.HEADROOM] = min(out[c, at.HEADROOM], mine_so_far[at.SO_FAR_HEADROOM])
            read_path(mine_so_far, out[c, at.HEADROOM_PATH :])
        _tell(samples, scenarios, preemptions, preempting, out[c])
    return fine
