"""`compiled.fleet`, kept compiled on disk (see `compiled.entry`)."""

from __future__ import annotations

from collections.abc import Callable

from simcore.compiled import fleet
from simcore.compiled.fingerprint import fingerprint_of
from simcore.compiled.fleet import Floats, Ints
from simcore.kernel_cache import cached


def _compile(fingerprint: int) -> Callable[..., tuple[float, float, float, float]]:
    @cached
    def run_fleet(
        group_of: Ints,
        ready_s: Floats,
        tables: Floats,
        paces: Floats,
        limits: Floats,
        left_tokens: Floats,
        left_node: Ints,
        kv_tokens: Floats,
        prefill_s: Floats,
        coming_s: Floats,
        prompts: Floats,
        answers: Floats,
        mean_answer: float,
        window_from_s: float,
        window_to_s: float,
        ttft_s: float,
        tpot_s: float,
        e2e_s: float,
    ) -> tuple[float, float, float, float]:
        """`compiled.fleet.run_fleet`."""
        assert fingerprint >= 0
        return fleet.run_fleet(
            group_of,
            ready_s,
            tables,
            paces,
            limits,
            left_tokens,
            left_node,
            kv_tokens,
            prefill_s,
            coming_s,
            prompts,
            answers,
            mean_answer,
            window_from_s,
            window_to_s,
            ttft_s,
            tpot_s,
            e2e_s,
        )

    return run_fleet


run = _compile(fingerprint_of(_compile))
