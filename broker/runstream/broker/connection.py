"""One NATS connection that heals: options that matter, a probe, a replacement when it is closed for good.

nats-py reconnects by itself, with three exceptions that this room closes. A connection the server closed over a
protocol violation stays closed: it is replaced, and every subscription made again. A read loop that died of an
exception leaves a connection that looks alive: the probe notices, and forces a reconnect. And a subscriber is told
when messages may have passed it by: every listener is called after each reconnect or replacement.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Protocol, Self

import nats.errors

from runstream.broker.access import NatsAccess
from runstream.broker.client import Client
from runstream.broker.errors import NoResponders, NotLetIn, Refused, Unavailable
from runstream.broker.logs import get_logger
from runstream.broker.outages import NOT_LET_IN, TRANSLATED, WHERE_NATS_IS, reason_of
from runstream.broker.refusals import Refusals
from runstream.broker.settings import without_password
from runstream.broker.tasks import end_stubborn_task, heeding_cancellation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

    from runstream.broker.receiving import Heard, ListeningClient

__all__ = ["Connection", "Message", "Subscription"]

log = get_logger(__name__)

PING_INTERVAL_SECONDS = 5
"""The default of nats-py, two minutes, is how long a dead peer would go unnoticed."""
PROBE_SECONDS = 3.0
"""How long a probe may stay unanswered. With the pause between two of them, a connection that looks alive and is not is
noticed within eight seconds; a server that is only busy answers in one."""
RECONNECT_WAIT_SECONDS = 0.2
"""Short enough that a restarted server is found before a client's keep-alive, long enough not to hammer it."""
CONNECT_TIMEOUT_SECONDS = 2
LISTEN_AGAIN_SECONDS = 30.0
"""How often it is tried to hear what NATS has refused to let this process hear."""
PENDING_BYTES = 4 * 2**20
"""What may be buffered while disconnected; a publish that does not fit fails at once and is retried by its writer."""

UNTOLD_SECONDS = 2.0
"""How long whoever waits for NATS is not told what for: where both are started, it is there by then."""


class Message(Protocol):
    """What a subscriber gets: the part of a nats-py message that runstream reads."""

    subject: str
    reply: str
    data: bytes

    @property
    def headers(self) -> Mapping[str, str] | None:
        """What stands above it, None if nothing does."""


class Subscription:
    """Interest in one subject, kept over reconnects and replacements until it is closed.

    `begin` subscribes on a client, with the pending limits off: a message dropped there would be a hole nobody sees.
    """

    def __init__(
        self, owner: Connection, subject: str, begin: Callable[[ListeningClient], Awaitable[NatsSubscription]]
    ) -> None:
        self.subject = subject
        self._owner = owner
        self._begin = begin
        self._inner: NatsSubscription | None = None
        self._is_closed = False

    async def attach(self, client: ListeningClient) -> None:
        """Subscribe on `client`, for as long as it is not closed."""
        self._inner = await self._begin(client)
        if self._is_closed:
            await self._detach()  # Whoever closed it did not know of this one.

    async def attach_again(self, client: ListeningClient) -> None:
        """Subscribe anew on the same `client`, which would make both again after a reconnect."""
        await self._detach()
        await self.attach(client)

    async def close(self) -> None:
        """Give the interest up; messages already received but not yet delivered are dropped."""
        self._is_closed = True
        self._owner.forget(self)
        await self._detach()

    def drop(self) -> None:
        """Give the interest up without telling the server, for which there may be no room: what it sends is dropped."""
        self._is_closed = True
        self._owner.forget(self)
        inner, self._inner = self._inner, None
        if inner is not None:
            # What its `unsubscribe` does before it waits.
            inner._stop_processing()  # noqa: SLF001
            inner._conn._remove_sub(inner._id)  # noqa: SLF001

    async def _detach(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            with contextlib.suppress(*TRANSLATED):
                await heeding_cancellation(inner.unsubscribe())


class Connection:
    """A NATS connection for the life of its process. Use as an async context manager.

    Raises `Unavailable` on entry when no server answers within `connect_seconds`. One that is `patient` does not: it
    is entered all the same, goes on trying, and answers `Unavailable` to everything until it is `connected`. Either
    raises it for an empty URL. `access` None: NATS lets everybody in, or the URL has a password.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        patient: bool = False,
        connect_seconds: float = 3.0,
        access: NatsAccess | None = None,
    ) -> None:
        self.name = name
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._patient = patient
        self._connect_seconds = connect_seconds
        self._access = access or NatsAccess()
        self._refusals = Refusals(name)
        self._client = Client(self._access)
        self._next: Client | None = None
        """The client that is being connected to replace the other one."""
        self._subscriptions: set[Subscription] = set()
        self._listeners: list[Callable[[], None]] = []
        self._loss_listeners: list[Callable[[], None]] = []
        self._waiting: dict[asyncio.Timeout, str] = {}
        """Requests that wait for an answer, with their subjects."""
        self._closing = False
        self._lost = asyncio.Event()
        self._established = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._listen_again_at = 0.0
        self._unreachable = ""
        """Why the last attempt to replace the client has failed: an outage says the same at each of them."""
        self._is_told = False
        """Whether the log has been told what is waited for."""
        self.reconnects = 0
        self.last_error: str = ""

    async def __aenter__(self) -> Self:
        if not self._servers:
            # nats-py would look for a server among none, without end and without a pause.
            raise Unavailable("The URL of NATS is empty.")
        if self._patient:
            self._lost.set()  # The keeper connects.
        else:
            await self._connect_now()
        self._keeper = asyncio.create_task(self._keep(), name=f"nats-keeper-{self.name}")
        return self

    async def _connect_now(self) -> None:
        try:
            async with asyncio.timeout(self._connect_seconds):
                await heeding_cancellation(self._connect(self._client))
        except asyncio.CancelledError:
            await self._discard(self._client)
            raise
        except TRANSLATED as error:
            await self._discard(self._client)
            where, reason = self._where(), self.last_error or reason_of(error)
            kind = NotLetIn if reason == NOT_LET_IN else Unavailable
            raise kind(f"Cannot reach NATS at {where}: {reason}") from error
        self._established.set()

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        try:
            if self._keeper is not None:
                await end_stubborn_task(self._keeper)
        finally:
            # Here and not where connecting was cancelled: whoever is cancelled twice would not get to it.
            if self._next is not None:
                await self._discard(self._next)
            if self._established.is_set():
                await self._discard(self._client)
            self._subscriptions.clear()  # Those that lasted as long as the connection are given up with it.

    @property
    def is_connected(self) -> bool:
        """Whether the connection is up, as far as the last probe knows."""
        return self._client.is_connected

    async def connected(self) -> None:
        """Wait until a server was reached for the first time; after some seconds, say what is waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(UNTOLD_SECONDS):
                await self._established.wait()
        if not self._established.is_set() and not self._is_told:
            self._is_told = True
            reason = self.last_error or "it does not answer"
            remedy = {} if reason == NOT_LET_IN else {"remedy": WHERE_NATS_IS}
            log.warning("nats_awaited", connection=self.name, nats=self._where(), error=reason, **remedy)
        await self._established.wait()

    def _where(self) -> str:
        return ", ".join(map(without_password, self._servers))

    def _warn(self, event: str, **facts: object) -> None:
        """Log what goes wrong, unless somebody who does not wait for NATS is told so by an exception."""
        if self._patient or self._established.is_set():
            log.warning(event, connection=self.name, **facts)

    @property
    def is_deaf(self) -> bool:
        """Whether NATS has refused a subscription that is there: it hears nothing, and the log says which it is."""
        return self._refusals.hearing()

    def refuses(self, subject: str) -> bool:
        """Tell whether NATS does not let this process ask for `subject`, or hear any answer."""
        return self._refusals.publishing(subject) or self._refusals.hearing(self._access.inbox_prefix)

    @property
    def server_version(self) -> tuple[int, int, int]:
        """The version of the server at the other end, once there is one."""
        version = self._client.connected_server_version
        return (version.major, version.minor, version.patch)

    @property
    def max_payload(self) -> int:
        """The largest message, headers included, that the server takes, in bytes; NATS's default until it is known."""
        return int(self._client.max_payload)

    def new_inbox(self) -> str:
        """Return a subject nobody else listens to."""
        return str(self._client.new_inbox())

    def on_reconnect(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each reconnect, when messages may have been missed; returns how to stop that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_loss(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` whenever the connection is lost, and with it the answers to what was asked over it.

        That is before another one is there. Returns how to stop it.
        """
        self._loss_listeners.append(listener)
        return lambda: self._loss_listeners.remove(listener)

    async def request(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None, seconds: float
    ) -> Message:
        """Send and wait for the answer. `Unavailable` says nothing about whether the request was carried out.

        A request whose connection is lost fails at once, as its answer is lost too; one that is made while there is
        no connection waits for the next, but where that has to replace the one there was. Raises `NoResponders` when
        nobody listens to `subject`, `Refused` when NATS does not let this process ask.
        """
        self._check_established(subject)
        waiting = asyncio.timeout(seconds)
        try:
            async with waiting:
                self._waiting[waiting] = subject
                answer: Message = await self._client.ask(subject, body, headers)
        except nats.errors.NoRespondersError as error:
            raise NoResponders(f"{subject}.") from error
        except TRANSLATED as error:
            if self.refuses(subject):
                raise Refused(f"{subject}.") from error
            raise Unavailable(f"{subject}: {reason_of(error)}") from error
        finally:
            self._waiting.pop(waiting, None)
        self._refusals.answered(subject, self._access.inbox_prefix)
        return answer

    async def publish(
        self, subject: str, body: bytes, *, reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Send without waiting; nothing says that anybody got it."""
        self._check_established(subject)
        try:
            await heeding_cancellation(self._client.publish(subject, body, reply=reply, headers=_headers(headers)))
        except TRANSLATED as error:
            raise Unavailable(f"{subject}: {reason_of(error)}") from error

    async def subscribe(self, subject: str, callback: Callable[[Message], Awaitable[None]]) -> Subscription:
        """Call `callback` for each message of `subject` until the subscription is closed."""
        return await self._subscribed(
            subject, lambda client: client.subscribe(subject, cb=callback, pending_msgs_limit=0, pending_bytes_limit=0)
        )

    async def listen(self, subject: str, hear: Callable[[Sequence[Heard]], None]) -> Subscription:
        """Call `hear` with all messages of `subject` that came at one time, until the subscription is closed.

        It must not block: whatever else comes over this connection waits for it.
        """
        return await self._subscribed(subject, lambda client: client.listen(subject, hear))

    async def _subscribed(
        self, subject: str, begin: Callable[[ListeningClient], Awaitable[NatsSubscription]]
    ) -> Subscription:
        self._check_established(subject)
        subscription = Subscription(self, subject, begin)
        self._subscriptions.add(subscription)
        try:
            await heeding_cancellation(subscription.attach(self._client))
        except TRANSLATED as error:
            await subscription.close()  # It may be there already, on a connection that replaces this one.
            raise Unavailable(f"{subject}: {reason_of(error)}") from error
        except BaseException:
            subscription.drop()  # Or it is there, and nobody has it who would close it.
            raise
        return subscription

    def _check_established(self, subject: str) -> None:
        if not self._established.is_set():
            raise Unavailable(f"{subject}: NATS has not been reached yet.")

    def forget(self, subscription: Subscription) -> None:
        """Stop making `subscription` again on a new connection."""
        self._subscriptions.discard(subscription)
        self._refusals.forget(subscription.subject)

    async def _connect(self, client: Client) -> None:
        async def on_error(error: Exception) -> None:
            if self._note_refusal(str(error)):
                return
            if self.last_error == NOT_LET_IN and isinstance(error, BrokenPipeError | ConnectionResetError):
                return  # The same again: the server has hung up, and what it said was lost with that.
            # An outage repeats the same error several times a second: said once is enough.
            previous, self.last_error = self.last_error, reason_of(error)
            if self.last_error != previous:
                self._warn("nats_error", error=self.last_error)

        async def on_disconnect() -> None:
            if client is self._client:  # And not one that was replaced meanwhile, or is to replace it.
                self._note_loss()

        async def on_reconnect() -> None:
            self.last_error = ""
            log.info("nats_reconnected", connection=self.name)
            self._announce()

        async def on_close() -> None:
            if client is self._client:
                self._lost.set()

        await client.connect(
            servers=list(self._servers),
            name=f"runstream-{self.name}",
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            closed_cb=on_close,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            reconnect_time_wait=RECONNECT_WAIT_SECONDS,  # type: ignore[arg-type]  # a float works, and is needed
            max_reconnect_attempts=-1,
            ping_interval=PING_INTERVAL_SECONDS,
            max_outstanding_pings=2,
            pending_size=PENDING_BYTES,
            flusher_queue_size=0,  # Without end: of those who wait for a place in it a close lets nobody go.
            inbox_prefix=self._access.inbox_prefix,
        )

    def _note_refusal(self, error: str) -> bool:
        """Note what was refused, if an error says so: nobody waits any longer for what cannot come."""
        in_use = [*self._waiting.values(), *(each.subject for each in self._subscriptions)]
        if self._refusals.note(error, in_use) is None:
            return False
        _give_up(waiting for waiting, subject in self._waiting.items() if self.refuses(subject))
        return True

    def _note_loss(self) -> None:
        if not self._closing:
            self._refusals.clear()
            self._warn("nats_disconnected")
        _give_up(self._waiting)
        for listener in list(self._loss_listeners):
            listener()

    def _announce(self) -> None:
        self.reconnects += 1
        for listener in list(self._listeners):
            listener()

    async def _keep(self) -> None:
        """Probe the connection while it looks alive, replace it when it is closed."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_INTERVAL_SECONDS):
                    await self._lost.wait()
            try:
                await self._look_after()
            except Exception:
                # A defect: the keeping goes on all the same, as nobody else would bring the connection back.
                log.exception("nats_keeper_crashed", connection=self.name)
                await asyncio.sleep(RECONNECT_WAIT_SECONDS)

    async def _look_after(self) -> None:
        if self._lost.is_set():
            await self._replace()
        elif self._client.is_connected:
            await self._probe()
            await self._listen_again()

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):  # The client's own begins when the ping is on its way.
                await heeding_cancellation(self._client.rtt(timeout=PROBE_SECONDS))  # type: ignore[arg-type]
        except TRANSLATED as error:
            if self._client.is_connected:
                log.warning("nats_probe_failed", connection=self.name, error=reason_of(error))
                with contextlib.suppress(*TRANSLATED):
                    await self._client.give_up()

    async def _listen_again(self) -> None:
        """Subscribe again to what was refused, now and then: whoever grants it does not say so."""
        now = time.monotonic()
        if not self.is_deaf or now < self._listen_again_at:
            return
        self._listen_again_at = now + LISTEN_AGAIN_SECONDS
        with contextlib.suppress(*TRANSLATED):
            if self._refusals.hearing(self._access.inbox_prefix):
                await self._client.give_up()  # The one subscription that is the client's own.
                return
            refused = [each for each in self._subscriptions if self._refusals.is_deaf_to(each.subject)]
            for subscription in refused:
                self._refusals.forget(subscription.subject)
                await heeding_cancellation(subscription.attach_again(self._client))
            async with asyncio.timeout(PROBE_SECONDS):  # A refusal comes before the answer to this.
                await heeding_cancellation(self._client.rtt(timeout=PROBE_SECONDS))  # type: ignore[arg-type]
            heard = [each.subject for each in refused if not self._refusals.is_deaf_to(each.subject)]
            for subject in heard:
                self._refusals.heard(subject)
            if heard:
                log.info("nats_heard_again", connection=self.name)
                self._announce()

    async def _replace(self) -> None:
        self._lost.clear()
        self._refusals.clear()
        fresh = self._next = Client(self._access)
        try:
            async with asyncio.timeout(self._connect_seconds):
                await heeding_cancellation(self._connect(fresh))
            for subscription in list(self._subscriptions):
                await heeding_cancellation(subscription.attach(fresh))
        except Exception as error:
            await self._discard(fresh)
            self._next = None
            self._lost.set()
            if not isinstance(error, TRANSLATED):
                raise
            if (reason := self.last_error or reason_of(error)) != self._unreachable:
                log.warning("nats_unreachable", connection=self.name, error=reason)
            self._unreachable = reason
            await asyncio.sleep(RECONNECT_WAIT_SECONDS)
            return
        log.info("nats_connected", connection=self.name)
        self._unreachable = self.last_error = ""
        self._client, self._next = fresh, None
        if fresh.is_closed:  # it closed before it was ours, so its callback was not taken for ours
            self._lost.set()
        if self._established.is_set():
            self._announce()
        self._established.set()

    async def _discard(self, client: Client) -> None:
        with contextlib.suppress(*TRANSLATED):
            await client.close()


def _headers(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(headers) if headers is not None else None


def _give_up(waiting: Iterable[asyncio.Timeout]) -> None:
    now = asyncio.get_running_loop().time()
    for each in list(waiting):
        # One whose time is up cannot be rescheduled, and what is raised here would end the reconnecting.
        if not each.expired():
            each.reschedule(now)


if TYPE_CHECKING:

    def _guard(message: Msg | Heard) -> Message:
        return message
