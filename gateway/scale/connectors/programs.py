"""Runs a program to its end, with what it is told and what it says; one that is not waited for any more is killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from typing import NamedTuple

from gateway.scale.connectors.base import ConnectorError

SAID_CHARACTERS = 300
"""Of what a program that failed has said last."""


class Said(NamedTuple):
    """How a program ended."""

    code: int
    output: bytes
    errors: str


async def run_program(words: Sequence[str], given: bytes = b"") -> Said:
    """Raises ConnectorError when it cannot be started. Cancelled: it and all that it has started are killed."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as bad:
        raise ConnectorError(f"{words[0]} cannot be run: {bad.strerror}") from None
    try:
        output, errors = await process.communicate(given)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        raise
    said = " ".join(errors.decode(errors="replace").split())
    return Said(process.returncode or 0, output, said[-SAID_CHARACTERS:])
