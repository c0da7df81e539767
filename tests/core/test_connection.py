"""The connection heals: it says when it cannot, and is replaced when nats-py would not bring it back."""

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial

import pytest
import pytest_asyncio
from nats.aio.subscription import Subscription as NatsSubscription
from structlog.testing import capture_logs

from runstream.broker.client import Client
from runstream.broker.connection import Connection, Message, Subscription
from runstream.broker.errors import NoResponders, Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.receiving import Heard, ListeningClient
from tests.support.faults import turns
from tests.support.nats import NatsServer, free_ports
from tests.support.outages import paused, stopped
from tests.support.waiting import wait_until

SUBJECT = "tests.connection"


class Ear:
    """A subscription and what it has heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.subscription: Subscription | None = None

    async def on_message(self, message: Message) -> None:
        self.heard.append(message.data)

    async def hears(self, by: Connection, said: bytes) -> None:
        """Wait until what `by` says arrives; said again and again, as the ear may only just be there again."""

        async def arrived() -> bool:
            await by.publish(SUBJECT, said)
            return said in self.heard

        await wait_until(arrived, 10, f"{said!r} was not heard")


@pytest_asyncio.fixture
async def connection(nats_server: NatsServer) -> AsyncIterator[Connection]:
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="test") as made:
        yield made


@pytest_asyncio.fixture
async def other(nats_server: NatsServer) -> AsyncIterator[Connection]:
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="other") as made:
        yield made


@pytest_asyncio.fixture
async def ear(connection: Connection) -> Ear:
    made = Ear()
    made.subscription = await connection.subscribe(SUBJECT, made.on_message)
    return made


async def provoke(connection: Connection) -> None:
    """Make the server close this connection for good, as it does over a message that is too long."""
    client = connection._client
    length = connection.max_payload + 1
    assert client._transport is not None
    client._transport.write(f"PUB {SUBJECT} {length}\r\n".encode())
    await wait_until(lambda: client.is_closed, 5, "the server did not close the connection")


# -- replacing ----------------------------------------------------------------------------------------------------


async def test_a_connection_closed_for_good_is_replaced(connection: Connection, other: Connection, ear: Ear) -> None:
    """After a protocol violation everything works again on a new connection, and listeners are told."""
    told: list[int] = []
    connection.on_reconnect(lambda: told.append(connection.reconnects))
    await ear.hears(other, b"before")
    first = connection._client
    await provoke(connection)
    await wait_until(lambda: told, 5, "no listener was called")
    assert connection._client is not first
    assert connection.is_connected
    assert told == [1]
    await ear.hears(other, b"after")
    answer = await connection.request("$JS.API.INFO", b"", seconds=2)
    assert b"account_info_response" in answer.data


@pytest.mark.parametrize("is_unsent", [False, True], ids=["all sent", "some unsent"])
async def test_one_that_breaks_while_it_is_closed_is_replaced(*, is_unsent: bool) -> None:
    """A server that ends it over a violation, and hangs up on what is left: who waits for an answer hears of it."""
    accepted: list[asyncio.StreamWriter] = []
    served: list[asyncio.StreamWriter] = []
    violated = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)
        writer.write(b'INFO {"server_id":"x","version":"2.12.0","headers":true,"max_payload":1048576}\r\n')
        with contextlib.suppress(OSError):
            while data := await reader.read(2**16):
                writer.write(b"PONG\r\n" * data.count(b"PING\r\n"))
                if b"PUB said" in data:  # It reads nothing more: what is written waits.
                    await violated.wait()
                    writer.write(b"-ERR 'Maximum Payload Violation'\r\n")
                    await wait_until(lambda: client.is_closed, 10, "the client goes on")
                    break
        writer.transport.abort()
        served.append(writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with Connection(url, name="test") as connection:
            client = connection._client
            waits_to_be_written = client._transport._io_writer.transport.get_write_buffer_size  # type: ignore[union-attr]
            told: list[str] = []
            connection.on_loss(lambda: told.append("lost"))
            connection.on_reconnect(lambda: told.append("reconnected"))
            asking = asyncio.create_task(connection.request("asked", b"", seconds=60))
            saying = [asyncio.create_task(connection.publish("said", b"x" * 2**13)) for _ in range(2000)]
            await wait_until(waits_to_be_written, 10)
            if is_unsent:
                saying.append(asyncio.create_task(connection.publish("said", b"x")))
                await wait_until(lambda: client._pending_data_size, 10)
            violated.set()
            await wait_until(lambda: "reconnected" in told, 10, "it was not replaced")
            assert told == ["lost", "reconnected"]
            assert len(accepted) == 2
            with pytest.raises(Unavailable):
                await asyncio.wait_for(asking, 10)
            async with asyncio.timeout(10):
                await asyncio.gather(*saying, return_exceptions=True)
        await wait_until(lambda: len(served) == len(accepted), 10)


async def test_it_is_replaced_as_often_as_it_takes(connection: Connection, other: Connection, ear: Ear) -> None:
    """The replacement is watched like the connection before it."""
    for times in (1, 2, 3):
        await provoke(connection)
        await wait_until(lambda times=times: connection.reconnects == times, 5)  # type: ignore[misc]
        await ear.hears(other, b"%d" % times)


async def test_a_replacement_waits_for_the_server(
    connection: Connection, other: Connection, ear: Ear, nats_server: NatsServer
) -> None:
    """Closed for good while no server is there, it is replaced when one comes back."""
    async with stopped(nats_server):
        await connection._client.close()
        with pytest.raises(Unavailable):
            await connection.request("$JS.API.INFO", b"", seconds=0.5)
        assert not connection.is_connected
    await wait_until(lambda: connection.is_connected, 10, "it was not replaced")
    await ear.hears(other, b"back")


async def test_a_server_that_stays_away_is_logged_once(
    connection: Connection, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it is tried to reach it: an outage of a night does not fill the log."""
    attempts, connect = 0, connection._connect

    async def counted(client: Client) -> None:
        nonlocal attempts
        attempts += 1
        await connect(client)

    monkeypatch.setattr(connection, "_connect", counted)
    with capture_logs() as logs:
        async with stopped(nats_server):
            with monkeypatch.context() as hasty:
                hasty.setattr(connection, "_connect_seconds", 0.1)
                await connection._client.close()
                await wait_until(lambda: attempts >= 3, 10)
        await wait_until(lambda: connection.is_connected, 10)
    assert [line["event"] for line in logs].count("nats_unreachable") == 1


async def test_a_dead_read_loop_is_noticed(other: Connection, nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that looks alive and reads nothing any more is noticed, and made to reconnect."""
    monkeypatch.setattr("runstream.broker.connection.PING_INTERVAL_SECONDS", 0.2)
    async with Connection(nats_url, name="deaf") as deaf:
        ear = Ear()
        await deaf.subscribe(SUBJECT, ear.on_message)
        await ear.hears(other, b"before")
        client = deaf._client
        assert client._reading_task is not None
        client._reading_task.cancel()
        await asyncio.wait([client._reading_task])
        assert deaf.is_connected
        await ear.hears(other, b"after")
        assert deaf.reconnects == 1


def closed(*_: object) -> None:
    """Write as uvloop's transports do to a socket that has just broken."""
    raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")


async def test_a_write_to_a_connection_that_has_just_broken(
    connection: Connection, other: Connection, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an outage, however the event loop says so: uvloop's transports raise RuntimeError."""
    client = connection._client
    assert client._flusher_task is not None
    client._flusher_task.cancel()
    await asyncio.wait([client._flusher_task])
    for write in ("write", "writelines"):
        monkeypatch.setattr(client._transport._io_writer, write, closed)  # type: ignore[union-attr]
    with pytest.raises(Unavailable):
        await connection.request("$JS.API.INFO", b"", seconds=0.5)
    with pytest.raises(Unavailable):
        await connection.publish(SUBJECT, b"lost")
    with pytest.raises(Unavailable):
        await connection.subscribe("another", ear.on_message)
    with pytest.raises(ConnectionResetError):
        await client.rtt()
    client._abort()
    await ear.hears(other, b"back")


async def test_a_reconnect_that_breaks_at_once_is_tried_again(
    connection: Connection, other: Connection, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it breaks between the server's greeting and the answer to it, uvloop has its own error for that as well."""
    really, tries = asyncio.StreamWriter.write, 0

    def broken_once(writer: asyncio.StreamWriter, data: bytes) -> None:
        nonlocal tries
        tries += data.startswith(b"CONNECT")
        if data.startswith(b"CONNECT") and tries == 1:
            closed()
        really(writer, data)

    monkeypatch.setattr(asyncio.StreamWriter, "write", broken_once)
    connection._client._abort()
    await ear.hears(other, b"back")
    assert tries == 2


async def test_a_defect_in_keeping_a_connection_is_not_its_end(
    nats_url: str, other: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is logged, and a connection that is closed for good is replaced all the same."""
    monkeypatch.setattr("runstream.broker.connection.PING_INTERVAL_SECONDS", 0.2)

    async def stumble() -> None:
        raise ZeroDivisionError

    async with Connection(nats_url, name="kept") as kept:
        ear = Ear()
        await kept.subscribe(SUBJECT, ear.on_message)
        monkeypatch.setattr(kept, "_probe", stumble)
        with capture_logs() as logs:
            await wait_until(lambda: [line for line in logs if line["event"] == "nats_keeper_crashed"], 5)
            await provoke(kept)
            await ear.hears(other, b"after")


# -- reconnecting -------------------------------------------------------------------------------------------------


async def test_a_restarted_server_is_found(
    connection: Connection, other: Connection, ear: Ear, nats_server: NatsServer
) -> None:
    """After a restart, however long it took, subscriptions work again and each listener is called once."""
    told: list[str] = []
    connection.on_reconnect(lambda: told.append("one"))
    stop = connection.on_reconnect(lambda: told.append("no"))
    connection.on_reconnect(lambda: told.append("two"))
    stop()
    async with stopped(nats_server):
        await wait_until(lambda: not connection.is_connected, 5)
    await wait_until(lambda: told, 10, "no listener was called")
    await ear.hears(other, b"after")
    assert told == ["one", "two"]


async def test_a_request_fails_with_its_connection(connection: Connection, nats_server: NatsServer) -> None:
    """A request that is in flight when the connection is lost fails then, and not at the end of its time."""
    await nats_server.pause()
    asking = asyncio.create_task(connection.request("$JS.API.INFO", b"", seconds=60))
    await wait_until(lambda: connection._waiting)
    started = time.monotonic()
    await nats_server.kill()
    with pytest.raises(Unavailable):
        await asking
    assert time.monotonic() - started < 10


async def test_a_request_without_a_connection_waits_for_one(connection: Connection, nats_server: NatsServer) -> None:
    """A request that is made while there is no connection is answered when there is one again, or times out."""
    with capture_logs() as logs:
        await nats_server.stop(signal.SIGKILL)
        await wait_until(lambda: [line for line in logs if line["event"] == "nats_disconnected"], 5)
    async with stopped(nats_server):
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await connection.request("$JS.API.INFO", b"", seconds=0.3)
        assert 0.2 < time.monotonic() - started < 5
        asking = asyncio.create_task(connection.request("$JS.API.INFO", b"", seconds=60))
        await wait_until(lambda: connection._waiting)
    assert b"account_info_response" in (await asking).data


async def test_a_request_that_runs_out_as_the_connection_breaks(
    connection: Connection, other: Connection, ear: Ear, nats_server: NatsServer
) -> None:
    """A request whose time is up at the moment at which the connection is lost does not keep it from healing."""
    loop = asyncio.get_running_loop()
    await nats_server.pause()
    asking = asyncio.create_task(connection.request("$JS.API.INFO", b"", seconds=60))
    (waiting,) = await wait_until(lambda: set(connection._waiting))
    disconnected = connection._client._disconnected_cb
    assert disconnected is not None

    async def just_then() -> None:
        connection._client._disconnected_cb = disconnected
        waiting.reschedule(loop.time())
        await asyncio.sleep(0)  # One turn: the time is up, and the request has not heard it yet.
        assert waiting.expired()
        assert not asking.done()
        await disconnected()

    connection._client._disconnected_cb = just_then
    await nats_server.kill()
    with pytest.raises(Unavailable):
        await asking
    await nats_server.wait_ready()
    await ear.hears(other, b"healed")


@pytest.mark.parametrize("subject", ["$JS.API.INFO", "tests.nobody"])
async def test_a_cancellation_that_comes_with_the_answer_is_heeded(
    connection: Connection, nats_server: NatsServer, subject: str
) -> None:
    """A task that is cancelled in the very moment in which its answer arrives, or its refusal, is cancelled."""
    async with paused(nats_server):
        asking = asyncio.create_task(connection.request(subject, b"", seconds=60))
        (answer,) = await wait_until(lambda: list(connection._client._unanswered.values()))
        listeners = connection._client._listeners
        ((sid, hear),) = listeners.items()

        def just_then(messages: list[Heard]) -> None:
            hear(messages)
            asking.cancel()

        listeners[sid] = just_then
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert answer.done()
    assert not answer.cancelled()


@contextlib.contextmanager
def no_room(connection: Connection) -> Iterator[None]:
    """Have whatever is sent meanwhile wait to be written, as where a server takes nothing any more."""
    client = connection._client
    queue, most = client._flush_queue, client._max_pending_size
    client._flush_queue, client._max_pending_size = asyncio.Queue(), 1  # Which nobody empties.
    try:
        yield
    finally:
        client._flush_queue, client._max_pending_size = queue, most


async def test_a_cancellation_while_there_is_no_room_is_heeded(connection: Connection, ear: Ear) -> None:
    """A task that is cancelled while what it sends or asks, or the interest it declares, waits to be written is.

    Nothing is left of its interest: nobody has it who could give it up.
    """
    with no_room(connection):
        waiting = [
            asyncio.create_task(connection.publish(SUBJECT, b"said")),
            asyncio.create_task(connection.subscribe("tests.other", ear.on_message)),
            asyncio.create_task(connection.request(SUBJECT, b"asked", seconds=60)),
        ]
        await turns()
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting, timeout=5)
    assert [task.cancelled() for task in waiting] == [True, True, True]
    assert connection._subscriptions == {ear.subscription}
    assert "tests.other" not in {each.subject for each in connection._client._subs.values()}


async def test_a_request_that_waits_to_be_written_has_its_time(connection: Connection) -> None:
    """It fails when that is up, the first one as any other: nothing else would ever end it, were the answer lost."""
    with no_room(connection):
        for _ in range(2):
            async with asyncio.timeout(5):
                with pytest.raises(Unavailable):
                    await connection.request("$JS.API.INFO", b"", seconds=0.1)
    assert b"account_info_response" in (await connection.request("$JS.API.INFO", b"", seconds=5)).data


async def test_nobody_listening_is_said_at_once(connection: Connection) -> None:
    """A request that nobody answers on the server's side is `Unavailable` without waiting."""
    async with asyncio.timeout(5):
        with pytest.raises(NoResponders, match=r"tests\.nobody\."):
            await connection.request("tests.nobody", b"", seconds=60)


# -- subscriptions ------------------------------------------------------------------------------------------------


async def test_a_closed_subscription_stays_closed(
    connection: Connection, other: Connection, ear: Ear, nats_server: NatsServer
) -> None:
    """It hears nothing more, and is not made again after a reconnect or a replacement."""
    await ear.hears(other, b"before")
    assert ear.subscription is not None
    await ear.subscription.close()
    await ear.subscription.close()
    await nats_server.kill()
    await wait_until(lambda: connection.reconnects == 1 and other.is_connected, 10)
    await provoke(connection)
    await wait_until(lambda: connection.reconnects == 2, 10)
    # No responders: the server itself knows of nobody who listens.
    with pytest.raises(NoResponders):
        await other.request(SUBJECT, b"", seconds=5)
    assert not connection._subscriptions


async def test_a_listener_is_handed_at_once_what_came_at_once(connection: Connection, other: Connection) -> None:
    """Messages that one read brings are handed on together, in order, each subject's to its own listener."""
    heard: dict[str, list[list[bytes]]] = {"tests.one": [], "tests.two": []}
    for subject, batches in heard.items():
        await connection.listen(subject, lambda some, to=batches: to.append([message.data for message in some]))  # type: ignore[misc]
    await connection.request("$JS.API.INFO", b"", seconds=2)
    said = [b"%d" % number for number in range(100)]
    for data in said:
        for subject in heard:
            await other.publish(subject, data)
    await wait_until(lambda: all(sum(map(len, batches)) == len(said) for batches in heard.values()))
    for batches in heard.values():
        assert [data for batch in batches for data in batch] == said
        assert len(batches) < len(said)


async def test_a_listener_is_there_again_after_a_replacement(connection: Connection, other: Connection) -> None:
    """A connection that is replaced takes its listeners along, and one that was closed hears nothing any more."""
    ear, gone = Ear(), Ear()
    await connection.listen(SUBJECT, lambda some: ear.heard.extend(message.data for message in some))
    closed = await connection.listen(SUBJECT, lambda some: gone.heard.extend(message.data for message in some))
    await ear.hears(other, b"before")
    await closed.close()
    heard = len(gone.heard)
    await provoke(connection)
    await wait_until(lambda: connection.reconnects == 1, 5)
    await ear.hears(other, b"after")
    assert len(gone.heard) == heard


async def test_what_is_closed_in_the_middle_of_a_replacement_is_closed(
    connection: Connection, other: Connection, ear: Ear
) -> None:
    """Whoever closes a subscription that is just being made again knows of the old one only."""
    begun, may_go_on = asyncio.Event(), asyncio.Event()

    async def slowly(client: ListeningClient) -> NatsSubscription:
        begun.set()
        await may_go_on.wait()
        return await client.subscribe("tests.closed")

    closed = Subscription(connection, "tests.closed", slowly)
    connection._subscriptions.add(closed)
    await provoke(connection)
    await wait_until(begun.is_set, 5)
    await closed.close()
    may_go_on.set()
    await ear.hears(other, b"after")
    await connection.request("$JS.API.INFO", b"", seconds=5)  # The server has heard all that came before.
    with pytest.raises(NoResponders):
        await other.request("tests.closed", b"", seconds=5)


def _has_all(said: bytes, *heard: list[bytes]) -> bool:
    return all(said in each for each in heard)


async def test_what_a_listener_raises_is_its_own(connection: Connection, other: Connection) -> None:
    """A defect in a listener is neither its end nor anybody else's."""
    heard: list[bytes] = []

    def stumble(messages: Sequence[Message]) -> None:
        heard.extend(message.data for message in messages)
        raise ZeroDivisionError

    also = Ear()
    await connection.listen(SUBJECT, stumble)
    await connection.listen(SUBJECT, lambda some: also.heard.extend(message.data for message in some))
    await connection.request("$JS.API.INFO", b"", seconds=2)
    for said in (b"1", b"2"):
        await other.publish(SUBJECT, said)
        await wait_until(partial(_has_all, said, heard, also.heard))
    assert connection.is_connected


async def test_what_a_callback_raises_is_its_own(connection: Connection, other: Connection) -> None:
    """A defect in one message's callback is not the end of the subscription."""
    heard: list[bytes] = []

    async def stumble(message: Message) -> None:
        if message.data == b"stumble":
            raise ZeroDivisionError
        heard.append(message.data)

    await connection.subscribe(SUBJECT, stumble)
    answered = JetStream(connection, timeout_seconds=2)
    await answered.api("INFO", None)
    for said in (b"1", b"stumble", b"2"):
        await other.publish(SUBJECT, said)
    await wait_until(lambda: heard == [b"1", b"2"])


async def test_leaving_ends_its_tasks(nats_url: str) -> None:
    """A connection that is left has no task and no transport any more."""
    before = asyncio.all_tasks()
    async with Connection(nats_url, name="short") as short:
        await short.subscribe(SUBJECT, Ear().on_message)
        await short.request("$JS.API.INFO", b"", seconds=2)
    await wait_until(lambda: asyncio.all_tasks() <= before, 5, "a task is left")
    assert not short.is_connected


def at_a_refusal(leave: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> "asyncio.Future[None]":
    """Call `leave` in the very moment in which the next attempt to connect is refused; done when it has returned."""
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    leaving: list[asyncio.Task[None]] = []
    really = asyncio.open_connection

    async def leave_now() -> None:
        await leave()
        left.set_result(None)

    async def refused(*_: object, **__: object) -> None:
        monkeypatch.setattr(asyncio, "open_connection", really)
        await asyncio.sleep(0)  # A turn in which whoever connects begins to wait.
        # It begins before whoever connects hears of the refusal, and after it has come.
        leaving.append(asyncio.create_task(leave_now(), name="leaving"))
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio, "open_connection", refused)
    return left


async def test_leaving_while_connecting_is_refused_is_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancellation that meets a refusal is not forgotten: what tries to connect is ended, and nothing is left."""
    before = asyncio.all_tasks()
    (port,) = free_ports(1)
    connection = Connection(f"nats://127.0.0.1:{port}", name="patient", patient=True, connect_seconds=60)
    left = at_a_refusal(connection.__aexit__, monkeypatch)
    await connection.__aenter__()
    await asyncio.wait_for(left, 5)
    await wait_until(lambda: asyncio.all_tasks() <= before, 5, "a task is left")


async def test_leaving_while_reconnecting_is_refused_is_leaving(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same of one that had been connected: what reconnects it is ended, too."""
    async with Connection(nats_server.url, name="test") as connection:
        client = connection._client
        async with stopped(nats_server):
            await wait_until(lambda: not connection.is_connected)
            await asyncio.wait_for(at_a_refusal(client.close, monkeypatch), 5)
            assert client._reconnection_task is not None
            assert client._reconnection_task.done()


@pytest.mark.parametrize("patient", [True, False])
async def test_leaving_while_connecting_hangs_up(patient: bool) -> None:
    """Left, or cancelled on entry, while a server takes its time, a connection keeps neither socket nor task."""
    greeted, hung_up = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.set()
        await reader.read()
        hung_up.set()
        writer.close()

    before = asyncio.all_tasks()
    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        url = f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        connection = Connection(url, name="left", patient=patient)
        entering = asyncio.create_task(connection.__aenter__())
        await asyncio.wait_for(greeted.wait(), 5)
        if patient:
            await entering
            await connection.__aexit__()
        else:
            entering.cancel()
            with pytest.raises(asyncio.CancelledError):
                await entering
        await asyncio.wait_for(hung_up.wait(), 1)
    await wait_until(lambda: asyncio.all_tasks() <= before, 5, "a task is left")


async def test_leaving_a_server_that_hangs_is_leaving(nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be written to a server that takes nothing any more does not keep anybody waiting."""
    monkeypatch.setattr("runstream.broker.client.CLOSE_SECONDS", 0.2)
    before = asyncio.all_tasks()
    connection = Connection(nats_server.url, name="test")
    await connection.__aenter__()
    await connection.subscribe(SUBJECT, Ear().on_message)
    client = connection._client
    client._flush_timeout = 0.05  # How long each message that does not fit would wait.
    async with paused(nats_server):
        while client._pending_data_size < 2**22:
            await connection.publish("tests.large", b"x" * 900_000)
        await asyncio.wait_for(connection.__aexit__(), 5)
        await wait_until(lambda: asyncio.all_tasks() <= before, 5, "a task is left")


# -- a server that is not there -----------------------------------------------------------------------------------


async def test_a_wrong_url_is_said_soon() -> None:
    """Where nobody listens, entering fails within five seconds and names the address."""
    (port,) = free_ports(1)
    started = time.monotonic()
    with pytest.raises(Unavailable, match=rf"Cannot reach NATS at nats://127\.0\.0\.1:{port}: "):
        async with Connection(f"nats://127.0.0.1:{port}", name="test"):
            raise AssertionError
    assert time.monotonic() - started < 5


async def test_all_addresses_are_named() -> None:
    """Of several servers none of which is there, all are named."""
    one, two = free_ports(2)
    with pytest.raises(Unavailable, match=rf"nats://127\.0\.0\.1:{one}, nats://127\.0\.0\.1:{two}: "):
        async with Connection(f"nats://127.0.0.1:{one}, nats://127.0.0.1:{two}", name="test", connect_seconds=0.3):
            raise AssertionError


async def test_one_of_several_addresses_is_enough(nats_url: str) -> None:
    """A cluster's servers are tried one after the other."""
    (port,) = free_ports(1)
    async with Connection(f"nats://127.0.0.1:{port},{nats_url}", name="test") as connection:
        assert connection.is_connected


async def test_something_that_is_no_server_is_said_soon() -> None:
    """A port that takes connections and says nothing is not waited for longer than five seconds."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Unavailable, match="Cannot reach NATS at"):
            async with Connection(url, name="test", connect_seconds=0.3):
                raise AssertionError
        assert time.monotonic() - started < 5
