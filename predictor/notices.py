"""Log lines of what a node learns about its engine and about its own forecasts."""

from __future__ import annotations

import structlog

from predictor.core.calibration import Calibration
from predictor.core.step_learning import Learned
from simcore.proved import PROVED_VLLM
from simcore.types import EngineConfig

log = structlog.get_logger("predictor")


def log_rules(config: EngineConfig) -> None:
    """Whether forecasts follow the engine's own rules or only come near."""
    if config.outside_rules:
        why = "; ".join(config.outside_rules)
        log.warning("forecasts for this engine are approximate", why=why, proved_vllm=PROVED_VLLM)


def log_learned(learned: Learned, profile: str) -> None:
    """Step times that serve from now on."""
    log.info(
        "step times learned" if learned.is_learned else "step times as told",
        profile=profile,
        error=round(learned.error, 4),
        error_as_told=round(learned.prior_error, 4),
        steps=learned.steps,
        speed_changes=learned.speed_changes,
    )


def log_trust(calibration: Calibration) -> None:
    """Trust in the forecasts was lost or won back."""
    trusted = calibration.trusted
    (log.info if trusted else log.warning)(
        "forecasts are to be trusted again" if trusted else "forecasts are too far off to place by",
        ttft_median_error=round(calibration.ttft.corrected().median_relative, 3),
        tpot_median_error=round(calibration.tpot.corrected().median_relative, 3),
        e2e_under_p90=round(calibration.e2e.corrected().coverage_p90, 3),
    )
