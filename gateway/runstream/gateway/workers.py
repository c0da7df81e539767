"""Several gateways on one port: their parent, which starts, watches and ends them, and serves nobody but operators.

Each worker has a listening socket of its own on the port (SO_REUSEPORT). The sockets are the parent's: whoever waits at
that of a worker that has died is answered by the next one (ADR 0019).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from runstream.broker.http import health_operations, metrics_operation, serving
from runstream.broker.http_server import Doors
from runstream.gateway.process import CannotStart, WronglyAsked, bind, check_exposure, end_at_once, url_of
from runstream.gateway.worker import ANSWER_SECONDS, Worker
from runstream.gateway.workers_metrics import WorkersMetrics

if TYPE_CHECKING:
    import signal
    import socket
    from collections.abc import Callable, Sequence

    from runstream.broker.auth.settings import AuthSettings
    from runstream.broker.limits.settings import LimitSettings
    from runstream.gateway.process import Termination
    from runstream.gateway.settings import GatewayServiceSettings

__all__ = ["serve_workers"]

log = structlog.get_logger(__name__)

NEEDS_PORT: Final = (
    "Several workers share the port, where whoever asks for metrics would meet any of them: give the metrics of all a "
    "port of their own with --metrics-port (0: a free one)."
)


async def serve_workers(
    service: GatewayServiceSettings,
    auth: AuthSettings,
    limits: LimitSettings,
    *,
    command: Sequence[str],
    drain_seconds: float,
    termination: Termination,
    ready: Callable[[str], None],
) -> None:
    """Have workers serve one port until cancelled, or told to terminate, and all have drained.

    `command` is that of each, but for its place; what it cannot start with was found out before. `ready` is called once
    all of them have reached NATS.

    Raises `CannotStart`.
    """
    if service.metrics_port is None:
        raise WronglyAsked(NEEDS_PORT)
    with ExitStack() as stack:
        # Taken first, as it is not shared: of two parents that are started at one moment one is refused.
        metrics_listener = stack.enter_context(bind(service.host, service.metrics_port, "metrics port"))
        listeners = _shared(stack, service)
        check_exposure(listeners[0], auth)
        directory = _private(stack)
        workers = [
            Worker(number, command, listener, directory, drain_seconds) for number, listener in enumerate(listeners)
        ]
        for worker in workers:
            stack.callback(worker.close)
        termination.again = _ending(workers, directory)
        url = url_of(listeners[0])
        log.info(
            "listening",
            url=url,
            metrics=url_of(metrics_listener),
            pid=os.getpid(),
            workers=len(workers),
            meaning="each worker has for itself what is set of a gateway: RUNSTREAM_MAX_FOLLOWERS and all limits",
        )
        shown = WorkersMetrics(workers)
        # The parent gives up after whoever it asks does.
        metrics = metrics_operation(shown.registry, before=shown.look, seconds=ANSWER_SECONDS + 1.0)
        health = health_operations(lambda: _unready(workers))
        async with serving([metrics, *health], metrics_listener, Doors(limits, lambda _: None)):
            await _watched(workers, termination, lambda: ready(url))


async def _watched(workers: Sequence[Worker], termination: Termination, ready: Callable[[], None]) -> None:
    """Have the workers live until told to terminate, and until they have ended then. Raises `CannotStart`."""

    async def announce() -> None:
        for worker in workers:
            await worker.ready.wait()
        log.info("ready", workers=len(workers), pid=os.getpid())
        ready()

    try:
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker.live(), name=f"worker {worker.number}")
            announcing = group.create_task(announce(), name="announce")
            try:
                await termination.comes()
            finally:
                for worker in workers:
                    worker.close()
            announcing.cancel()
            log.info("draining", workers=len(workers))
            for worker in workers:
                worker.drain()
    except ExceptionGroup as failed:
        cannot_start = next((each for each in failed.exceptions if isinstance(each, CannotStart)), None)
        raise cannot_start or failed from None


async def _unready(workers: Sequence[Worker]) -> str | None:
    """Say in words which of the workers are not ready, and why; None when all are."""
    said = await asyncio.gather(*(worker.unready() for worker in workers))
    return " ".join(filter(None, said)) or None


def _shared(stack: ExitStack, service: GatewayServiceSettings) -> list[socket.socket]:
    """Take a port for several processes, a socket for each. Raises `CannotStart` when it is taken."""
    # Alone, at first: whoever has it for several processes already would be joined, and not noticed.
    with bind(service.host, service.port, "port") as alone:
        port = alone.getsockname()[1]
    return [stack.enter_context(bind(service.host, port, "port", is_shared=True)) for _ in range(service.workers)]


def _private(stack: ExitStack) -> Path:
    """Have a directory that nobody else reaches: who may ask a worker there may ask without a credential."""
    try:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="runstream-")))
    except OSError as error:
        raise CannotStart(
            f"There is no directory for the sockets by which workers are asked: {error.strerror}. Name one with TMPDIR."
        ) from error


def _ending(workers: Sequence[Worker], directory: Path) -> Callable[[signal.Signals], None]:
    def end(number: signal.Signals) -> None:
        for worker in workers:
            worker.kill()
        shutil.rmtree(directory, ignore_errors=True)
        end_at_once(number)

    return end
