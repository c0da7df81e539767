"""What every service does as a process: it takes its ports, and runs until SIGINT or SIGTERM.

Ctrl-C is somebody who waits: it stops a service at once. SIGTERM is whoever replaces the process, and waits for it to
end by itself: a service that knows how first gives up, bit by bit, what others can go on with.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from runstream.gateway.descriptors import allow_descriptors
from runstream.gateway.memory import keep_memory_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from runstream.broker.auth.settings import AuthSettings

__all__ = [
    "CannotStart",
    "Termination",
    "WronglyAsked",
    "bind",
    "check_elsewhere",
    "check_exposure",
    "end_at_once",
    "until_stopped",
    "url_of",
]

log = structlog.get_logger(__name__)


class CannotStart(Exception):
    """runstream cannot start as it was asked to."""


class WronglyAsked(CannotStart):
    """And never could: it has to be asked otherwise."""


def bind(host: str, port: int, what: str, *, is_shared: bool = False, listens: bool = True) -> socket.socket:
    """Take a port for `what`. Raises `CannotStart` when it is taken, or the address is not this machine's.

    One that `is_shared` may be taken again in the same way, and among the sockets that listen there the kernel divides
    who connects; one that does not listen yet has none of them.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with ExitStack() as undo:
            listener = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind((host, port))
            # Listening is what makes a second process fail at once instead of sharing the port unheard.
            if listens:
                listener.listen()
            undo.pop_all()
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else "it is no name of a host"
        raise CannotStart(f"The host {host} is not known: {reason}. Choose another with --host.") from error
    except OSError as error:
        flag = what.replace(" ", "-")
        raise CannotStart(
            f"The {what} {host}:{port} cannot be taken: {error.strerror}. Choose another with --{flag} (0: a free one)."
        ) from error
    return listener


def check_exposure(listener: socket.socket, settings: AuthSettings) -> None:
    """Refuse to serve strangers everything: without authentication a port is on loopback. Raises `WronglyAsked`."""
    if settings.auth != "none" or ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        return
    if not settings.insecure:
        raise WronglyAsked(
            f"Without authentication (--auth none) no port is served that others may reach, as {url_of(listener)} is: "
            "say --auth static or --auth jwt, or --insecure if something else keeps strangers out."
        )
    log.warning("insecure", url=url_of(listener), meaning="whoever reaches this port may do everything")


async def check_elsewhere(address: tuple[str, int], listener: socket.socket) -> None:
    """Refuse to ask for answers at the socket that is asked for them. Raises `WronglyAsked`.

    A host whose name is not known yet is not refused: it is looked up again for each run.
    """
    host, port = listener.getsockname()[:2]
    if address[1] != port:
        return
    try:
        found = await asyncio.get_running_loop().getaddrinfo(*address, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    own = ipaddress.ip_address(host)
    for family, *_, place in found:
        if ipaddress.ip_address(str(place[0])) == own or (own.is_unspecified and _is_here(family, str(place[0]))):
            raise WronglyAsked(
                f"The agent's address, {address[0]}:{port}, is this runstream's own: give it the platform's, or "
                "another port to listen on (runstream up --port 8300 --agent http://localhost:8283)."
            )


def _is_here(family: int, host: str) -> bool:
    """Whether an address is this machine's: no socket can be bound to any other."""
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        try:
            trial.bind((host, 0))
        except OSError:
            return False
    return True


def url_of(listener: socket.socket) -> str:
    """Return where a socket listens."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Termination:
    """SIGTERM, as a service waits for it. To one that does not it is as SIGINT."""

    def __init__(self) -> None:
        self.again: Callable[[signal.Signals], None] = end_at_once
        """What a second signal does, whichever both are."""
        self._came: asyncio.Future[None] | None = None

    @property
    def has_come(self) -> bool:
        """Whether it was waited for, and has come."""
        return self._came is not None and self._came.done()

    async def comes(self) -> None:
        """Wait for the signal. Whoever then returns has ended the process."""
        self._came = asyncio.get_running_loop().create_future()
        await self._came

    def tell(self) -> bool:
        """Say that the signal has come; False if nobody waits for it."""
        if self._came is None or self._came.done():
            return False
        self._came.set_result(None)
        return True


def end_at_once(number: signal.Signals) -> None:
    """End the process, with nothing given back."""
    os._exit(128 + number)


async def until_stopped(service: Coroutine[None, None, None], termination: Termination | None = None) -> None:
    """Run `service` until SIGINT or SIGTERM, then cancel it and wait until it has given everything back.

    One that waits for its `termination` is not cancelled by SIGTERM: it ends by itself. A second signal ends the
    process at once, unless `termination` has it do something else. Raises what the service raises; one that returns
    ends this.
    """
    keep_memory_whole()
    allow_descriptors()
    waiting = termination or Termination()
    running = asyncio.create_task(service, name="service")
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if stopped.is_set():
            waiting.again(number)
            return
        stopped.set()
        if number != signal.SIGTERM or not waiting.tell():
            running.cancel()
        log.info("stopping", signal=number.name)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await running
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
