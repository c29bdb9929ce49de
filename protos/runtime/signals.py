"""Signals that mean nothing to a daemon and would end it all the same: rotators of logs and supervisors send them."""

from __future__ import annotations

import asyncio
import signal

import structlog

log = structlog.get_logger("signals")


def live_through(*numbers: signal.Signals) -> None:
    """From now on these, SIGUSR1 and SIGUSR2 are told in the log and end nothing. Needs the running loop."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGUSR1, signal.SIGUSR2, *numbers):
        loop.add_signal_handler(number, _tell, number)


def _tell(number: signal.Signals) -> None:
    log.info("signal passed over", signal=number.name)
