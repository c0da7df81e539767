"""Every setting and every bound of the gateway and of the commands: its unit, its default, the reason for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runstream.broker.settings import Duration

__all__ = ["BrokerServiceSettings", "GatewayServiceSettings", "GatewaySettings", "UpSettings"]

Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]

ORIGIN = re.compile(r"(?!http:.*:80$|https:.*:443$)[a-z][a-z0-9+.-]*://[^/?#@\s*]+")
"""An origin as browsers send it. `null` is none: every sandboxed frame has it."""


def _origins(value: object) -> object:
    """Split origins at commas, and refuse what no browser would ever call an origin: it would match nothing."""
    if not isinstance(value, str):
        return value
    origins = [origin.strip().lower() for origin in value.split(",")]
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin):
            message = (
                "write origins as https://app.example.com or http://localhost:3000, no path, no default port; or *"
            )
            raise ValueError(message)
    return frozenset(origins)


CorsOrigins = Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_origins)]
"""Origins of web pages, written with commas between them."""


class GatewaySettings(BaseSettings):
    """What a gateway needs to know beside what it shares with the broker. `RUNSTREAM_X_Y` sets `x_y`."""

    model_config = SettingsConfigDict(env_prefix="RUNSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True)

    keepalive_seconds: Annotated[Duration, Field(gt=0)] = 20.0
    """Seconds of silence after which a reader gets a ping; a third of the 60 s after which letta-client gives up."""

    max_followers: int = Field(default=10_000, ge=1)
    """Open streams of one gateway, each a few kilobytes and one of `max_connections`; beyond, readers are told to try
    another."""

    tail_chunks: int = Field(default=2048, ge=1)
    """Chunks of a live run kept in memory for readers that come back: half a minute of a fast agent."""

    tail_bytes: int = Field(default=4 * 2**20, ge=2**10)
    """Bytes of a live run's chunks kept in memory, as they are stored: what 2,000 live runs may take stays in the order
    of gigabytes. Each framing that is asked for, `POST`'s and an EventSource's, is one copy more: threefold at most."""

    tail_fill_chunks: int = Field(default=128, ge=0)
    """Chunks a new tail of a run that goes on begins with: one read of the log, which serves all who come back within
    seconds. The first of them waits for it; 128 take some 3 ms."""

    follower_buffer_bytes: int = Field(default=256 * 2**10, ge=2**10)
    """Bytes that may wait in one reader's socket before it is left to go at its own pace."""

    replay_cache_bytes: int = Field(default=64 * 2**20, ge=0)
    """Bytes of what was read of logs for readers who were behind that are kept for those who come next, all runs
    together: some twenty runs of ten thousand chunks. Below 16 MiB, or eight reads of a log, nothing is read ahead of a
    reader; 0: those only share it who come while it is read."""

    write_deadline_seconds: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a write to one reader may stay blocked before its response is cut; it can come back with its cursor."""

    max_answer_bytes: int = Field(default=32 * 2**20, ge=2**10)
    """Bytes, give or take those of one read of the log, that the messages of a run may have to be one body, which is
    made in memory: ten thousand pages of text. A stream has no such bound."""

    concurrent_answers: int = Field(default=4, ge=1)
    """Runs that are made into bodies at one time: each takes the event loop's time, and memory."""

    held_answer_bytes: int = Field(default=128 * 2**20, ge=2**10)
    """Bytes of such bodies that may wait for readers to take them; beyond, nobody else is answered whole. Those that
    are being made come on top."""

    answer_bytes_per_second: int = Field(default=64 * 2**10, ge=1)
    """Bytes a second that the reader of such a body has to take, all in all, `write_deadline_seconds` aside: half a
    megabit, so that the largest is held for nine minutes."""

    max_stream_seconds: Annotated[Duration, Field(gt=0)] = 3600.0
    """Seconds after which a stream is cut, up to a quarter less: readers come back to whichever gateway there is, so
    that one that was added takes a part of those that were there. Streams of foreground runs have no such age."""

    body_seconds: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds a request's body may take to arrive: a megabyte over a slow line. Half a request is none."""

    event_source_retry_seconds: Annotated[Duration, Field(gt=0)] = 1.0
    """Seconds after which a browser's EventSource comes back to a response that has ended, half more or less. By itself
    Chromium waits 3 s. Whom a gateway loses are many, and come to the others, which take back some thousand a second:
    with more readers than that, longer."""

    cors_origins: CorsOrigins = None
    """Origins whose pages may read what is answered, separated by commas; `*`: of any. Unset: no page of another."""

    console: bool = True
    """Whether `/console` is served, and a page may be known by a session's cookie."""

    open_seconds: Annotated[Duration, Field(gt=0)] = 1.5
    """Seconds a request waits for NATS before it is answered 503, so that with all else it takes less than two. Not the
    four to eight that a leader's election takes: who is told to come back is served by the first attempt after it, and
    letta-client makes two more by itself, while one that is kept holds its place for nothing. Only a request that may
    have started a run is kept longer, as it could not be told to come back; and writers have a patience of their own.
    """

    background: Literal["as-asked", "always"] = "as-asked"
    """Which runs can be resumed: those that were asked for in the background, or all of them."""

    upstream: str | None = Field(default=None, repr=False)
    """The Letta platform that answers what runstream does not, by its root; `none`: nobody. Unset, of `runstream up`:
    the agent, if it is such a platform."""

    max_passed_on: int = Field(default=1000, ge=1)
    """Requests that are with the platform at one time, each two sockets and some hundred kilobytes that are on their
    way; beyond, clients are told to try again."""

    upload_silence_seconds: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds in which a client may send nothing of a body that goes to the platform: a body of any size may take any
    time, and half a request is none."""

    upload_bytes_per_second: int = Field(default=256, ge=1)
    """Bytes a second that must come of such a body, all in all, `upload_silence_seconds` aside: a byte now and then is
    no body, and keeps a place."""

    agent_grace_seconds: Annotated[Duration, Field(ge=0)] = 15.0
    """Seconds without a broker that has an agent after which creates are refused. A broker that is replaced is gone
    for less; what is started meanwhile waits for the next."""

    view_runs: int = Field(default=100_000, ge=1)
    """Runs kept in memory for lists, beside those that go on: a day of more than one a second, at 1.2 kB each."""

    view_conversations: int = Field(default=100_000, ge=1)
    """Conversations kept in memory for lists, beside those that are busy, at a kilobyte each. They are kept in NATS for
    ever: those fall out that have not been used for longest."""

    view_bytes: int = Field(default=256 * 2**20, ge=2**20)
    """Bytes of either, as lists show them: there may be less of them if they are large. A run's error may have a
    megabyte, and what a client puts in a conversation."""


class _ListenSettings(BaseSettings):
    """Where a process listens."""

    model_config = SettingsConfigDict(env_prefix="RUNSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True)

    host: str = "127.0.0.1"
    """The address that all ports listen on."""


class _SeparateSettings(_ListenSettings):
    """What both separate services need."""

    metrics_port: Port | None = None
    """A port for `/metrics`, which is then not on the other one, and for probes, which are on both; 0 takes a free
    one."""


class GatewayServiceSettings(_SeparateSettings):
    """What `runstream gateway` needs beside the settings of its parts."""

    port: Port = 8283
    """The gateway's port, Letta's own; 0 takes a free one."""

    workers: int = Field(default=1, ge=1, le=256)
    """Processes that serve the port, on one machine: as many as it has cores to spare, since each uses one. What is set
    of a gateway, limits and bounds of memory included, each of them has for itself."""


class BrokerServiceSettings(_SeparateSettings):
    """What `runstream broker` needs beside the settings of its parts."""

    broker_port: Port = 8284
    """The broker's port, for ingest, health and metrics; 0 takes a free one. Not `port`: a gateway and a broker may
    share an environment."""

    agent: str | None = None
    """What answers messages: `demo`, `module:callable` or a URL. Unset: this broker executes nothing."""


class UpSettings(_ListenSettings):
    """What `runstream up` needs beside the settings of its parts."""

    port: Port = 8283
    """The gateway's port, Letta's own; 0 takes a free one."""

    broker_port: Port = 8284
    """The broker's port, for ingest, health and metrics; 0 takes a free one."""

    nats_port: Port = 0
    """The embedded nats-server's port, on loopback; 0 takes a free one."""

    nats_url: str | None = Field(default=None, repr=False)
    """A NATS that is there already, several servers with commas. Unset: one is embedded."""

    data_dir: Path = Path(".runstream")
    """Where the embedded nats-server keeps its streams, so that runs survive a restart; of one runstream at a time."""

    agent: str = "demo"
    """What answers messages: `demo`, `module:callable` or a URL."""
