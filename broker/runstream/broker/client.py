"""nats-py's client, as a connection needs it: closed whatever the server does, and never with two sockets."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.transport import TcpTransport

from runstream.broker.receiving import ListeningClient
from runstream.broker.tasks import end_stubborn_task

if TYPE_CHECKING:
    from runstream.broker.access import NatsAccess

__all__ = ["Client"]

CLOSE_SECONDS = 2.0
"""How long a server that hangs may keep a process from leaving; one that is there takes a millisecond."""


class _Transport(TcpTransport):
    """nats-py's transport, but that a write to a connection that has just broken is an outage on every event loop.

    uvloop raises RuntimeError then, which would end whatever of nats-py's has met it: its reconnecting, too.
    """

    def __bool__(self) -> bool:
        """Whether it is there, also before it is connected: nats-py would make another one in its place."""
        return True

    def write(self, payload: bytes) -> None:
        """Write at once."""
        try:
            super().write(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionResetError(str(error)) from error

    def writelines(self, payload: list[bytes]) -> None:
        """Write all of it at once."""
        try:
            super().writelines(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionResetError(str(error)) from error


class Client(ListeningClient):
    """nats-py's client, which closes whatever the server does, and keeps one socket.

    Keys and certificates are read anew for each connection, and a server without TLS is told nothing where TLS is
    wanted: nats-py's own would do without, and whoever is in between need only leave it out of what the server says.
    """

    def __init__(self, access: NatsAccess) -> None:
        super().__init__()
        self._access = access
        self._is_ours_to_close = False

    async def close(self) -> None:
        """Close it, and what is reconnecting it; what a server does not take within `CLOSE_SECONDS` is dropped."""
        if self._reconnection_task is not None:
            await end_stubborn_task(self._reconnection_task)
        self._is_ours_to_close = True
        aborting = asyncio.get_running_loop().call_later(CLOSE_SECONDS, self._abort)
        try:
            await super().close()
        finally:
            aborting.cancel()

    async def _close(self, status: int, do_cbs: bool = True) -> None:  # noqa: FBT001, FBT002  # as nats-py has it
        if not self._is_ours_to_close:
            # The server's last word: it takes nothing more. nats-py would write what is left, in a task that nobody
            # waits for, and where that breaks or never ends tell nobody that it is closed.
            self._pending, self._pending_data_size = [], 0
            self._abort()
        try:
            await super()._close(status, do_cbs)
        finally:
            self._release()

    def _release(self) -> None:
        """Let go whoever waits for something to be written, and what hands messages on: nats-py would not."""
        while self._flush_queue is not None and not self._flush_queue.empty():
            written = self._flush_queue.get_nowait()
            if not written.done():
                written.set_exception(nats.errors.ConnectionClosedError())
                written.exception()  # Nobody may be waiting, which is no defect to be reported.
        for subscription in self._subs.values():
            subscription._stop_processing()  # noqa: SLF001  # as its own `_close` does, unless a write breaks there
        self._subs.clear()

    async def give_up(self) -> None:
        """Reconnect, whatever waits to be written: nats-py would first wait until the other end has taken that."""
        self._abort()
        await self.force_reconnect()

    async def _connect_to_server(self, s: Any) -> None:
        self._abort()  # The try before this one, if it was not finished: its socket would stay open for ever.
        try:
            self._read_access()
        except ValueError as error:
            raise OSError(str(error)) from error
        if self._transport is None and s.uri.scheme not in {"ws", "wss"}:
            self._transport = _Transport()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)

    def _read_access(self) -> None:
        access = self._access
        identity = access.identity()
        if identity is not None:
            jwt = identity.jwt
            self._public_nkey = identity.public_key
            self._signature_cb = identity.sign
            self._user_jwt_cb = None if jwt is None else jwt.encode
        if access.authorities is not None or access.certificate is not None:
            self.options["tls"] = access.tls()
        if access.server_name is not None:
            self.options["tls_hostname"] = access.server_name

    def _connect_command(self) -> bytes:
        # The first that is said over TLS, and before the server has let this client in, or has not.
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None and writer.get_extra_info("ssl_object") is not None:
            # nats-py does not say so to the stream that it makes, and asyncio warns of it at each connection's end.
            writer._protocol._over_ssl = True  # noqa: SLF001
        command: bytes = super()._connect_command()
        return command

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002  # as nats-py has it
        if initial_connection and self._current_server is not None:
            scheme = self._current_server.uri.scheme
            if scheme == "tls" or (scheme == "nats" and self._access.wants_tls):
                if not (info.get("tls_required") or info.get("tls_available")):
                    raise nats.errors.Error("it offers no TLS, without which it is told nothing")
                info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _abort(self) -> None:
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            # In Python 3.11.2, Debian's, a TLS transport that was closed twice has nothing left that it could abort.
            with contextlib.suppress(AttributeError):
                writer.transport.abort()
