"""`--workers N`: N gateway processes behind one pair of ports, and one process that keeps them alive.

The kernel spreads connections over the workers (SO_REUSEPORT). The supervisor holds the ports, starts the workers with
its own command line, restarts one that dies, hands signals on and takes no part in anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import structlog
from prometheus_client import multiprocess

from gateway.config import GatewayConfig
from gateway.listen import bound_socket, check_free, port_of
from gateway.ready import write_ready
from gateway.workers.slot import WorkerSlot
from protos.runtime.addresses import parse_address
from protos.runtime.config import ConfigError
from protos.runtime.log import log_json_lines
from protos.runtime.ready_file import check_ready_file
from protos.runtime.signals import live_through

log = structlog.get_logger("gateway.workers.supervisor")

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 3.0
STEADY_S = 5.0
"""A worker that has lived this long died of something new: it is started again at once."""
STOP_MARGIN_S = 5.0
"""What workers get to stop beyond their drain grace."""
READY_POLL_S = 0.05
PARENT_PID_VARIABLE = "ASTROLABE_PARENT_PID"
"""Whoever starts `astrolabe` with this set is not outlived by it."""


class WorkerFailed(ConfigError):
    """A worker has ended before all were ready; it has said why itself."""


class Supervisor:
    """`run` until a signal says stop."""

    def __init__(self, config: GatewayConfig, folder: Path, listen: str, http_listen: str) -> None:
        self._config = config
        self._folder = folder
        self._listen = listen
        self._http_listen = http_listen
        self._workers: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._all_ready = False

    async def run(self) -> None:
        """Raises WorkerFailed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._signal, signal.SIGHUP)
        live_through()
        keepers = [asyncio.create_task(self._keep(index)) for index in range(self._config.workers)]
        ready = asyncio.create_task(self._announce())
        try:
            await asyncio.gather(ready, *keepers)
        finally:
            for task in (ready, *keepers):
                task.cancel()
            self._signal(signal.SIGKILL)
            await asyncio.gather(ready, *keepers, return_exceptions=True)

    def _stop(self) -> None:
        """The first time workers finish what they run; who asks again does not want to wait."""
        number = signal.SIGKILL if self._stopping.is_set() else signal.SIGTERM
        self._stopping.set()
        self._signal(number)

    def _signal(self, number: int) -> None:
        for process in self._workers.values():
            if process.returncode is None:
                process.send_signal(number)

    async def _keep(self, index: int) -> None:
        pause_s = FIRST_PAUSE_S
        is_restart = False
        while not self._stopping.is_set():
            began_s = time.monotonic()
            process = self._workers[index] = await self._start(index, is_restart=is_restart)
            code = await self._ended(process)
            # Gauges of a process that is no more must not count.
            multiprocess.mark_process_dead(process.pid, str(self._folder / "metrics"))  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                return
            if not self._all_ready:
                raise WorkerFailed(f"worker {index} ended with code {code} before it served; its log says why")
            pause_s = FIRST_PAUSE_S if time.monotonic() - began_s > STEADY_S else min(LAST_PAUSE_S, pause_s * 2)
            log.error("a worker has died and is started again", worker=index, code=code, pause_s=pause_s)
            is_restart = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause_s)

    async def _start(self, index: int, *, is_restart: bool) -> asyncio.subprocess.Process:
        slot = WorkerSlot(
            index=index,
            count=self._config.workers,
            folder=str(self._folder),
            listen=self._listen,
            http_listen=self._http_listen,
            is_restart=is_restart,
        )
        slot.ready_file.unlink(missing_ok=True)
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *sys.orig_argv[1:],
            stdin=asyncio.subprocess.DEVNULL,
            env={**os.environ, **slot.environment(), PARENT_PID_VARIABLE: str(os.getpid())},
            # Ctrl-C reaches the supervisor alone, which hands it on once.
            start_new_session=True,
        )

    async def _ended(self, process: asyncio.subprocess.Process) -> int:
        stopping = asyncio.create_task(self._stopping.wait())
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait((stopping, ended), return_when=asyncio.FIRST_COMPLETED)
            try:
                return await asyncio.wait_for(asyncio.shield(ended), self._stop_s() if stopping.done() else None)
            except TimeoutError:
                log.error("a worker does not stop and is killed", pid=process.pid)
                process.kill()
                return await ended
        finally:
            stopping.cancel()

    def _stop_s(self) -> float:
        return self._config.lame_duck_s + self._config.drain_grace_s + STOP_MARGIN_S

    async def _announce(self) -> None:
        """Tells that the gateway serves once all workers do."""
        files = [self._folder / f"worker-{index}.ready" for index in range(self._config.workers)]
        while not all(file.exists() for file in files):
            if self._stopping.is_set():
                return
            await asyncio.sleep(READY_POLL_S)
        self._all_ready = True
        log.info("gateway is listening", address=self._listen, http=self._http_listen, workers=self._config.workers)
        if self._config.ready_file:
            write_ready(Path(self._config.ready_file), self._listen, self._http_listen)


async def supervise(config: GatewayConfig) -> None:
    """Runs the workers until SIGTERM or SIGINT. Raises ConfigError at start."""
    check_ready_file(config.ready_file)
    log_json_lines(config.log_level)
    folder = Path(tempfile.mkdtemp(prefix="astrolabe-gateway-"))
    (folder / "metrics").mkdir()
    try:
        with (
            _held(config.listen, "listen") as listen,
            _held(config.http_listen, "http_listen") as http_listen,
            _held(config.ext_proc.listen, "ext_proc_listen"),
        ):
            await Supervisor(config, folder, listen, http_listen).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _held(address: str, key: str) -> Iterator[str]:
    """The address with its port, which nobody but our workers can take meanwhile. Empty stays empty."""
    if not address:
        yield ""
        return
    wanted = parse_address(address, any_port=True)
    check_free(wanted, key=key)
    # Bound and never listening: it gets no connections, but the port is ours.
    with bound_socket(wanted, key=key, shared=True) as taken:
        yield str(wanted._replace(port=port_of(taken)))
