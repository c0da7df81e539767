"""Every setting and every bound of the durable side, each with its unit, its default and the reason for it."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from runstream.broker.access import NatsAccess, read_authorities, read_certificate, read_credentials, read_key
from runstream.broker.auth.principal import is_tenant
from runstream.broker.errors import InvalidSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic_core import ErrorDetails

__all__ = ["LONGEST_LEASE_SECONDS", "OTHER_TENANTS", "BrokerSettings", "Duration", "resolved", "without_password"]

Settings = TypeVar("Settings", bound=BaseSettings)

LONGEST_LEASE_SECONDS = 3600.0
_UNIT_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def _seconds(value: object) -> object:
    """Turn `24h`, `90s`, `250ms` or a bare number into seconds; anything else is left for pydantic to refuse."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\s*", value)
        if match is None:
            message = "write a duration as 24h, 90s, 250ms or a number of seconds"
            raise ValueError(message)
        return float(match[1]) * _UNIT_SECONDS[match[2]]
    return value


Duration = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, written as `24h`, `90s`, `250ms` or a bare number."""


def without_password(urls: str) -> str:
    """Return URLs of NATS, with commas between them, as they may be shown: what is more than an address is left out."""
    return ",".join(map(_address, _split(urls)))


def _split(urls: str) -> list[str]:
    return [url for part in urls.split(",") if (url := part.strip())]


def _parsed(url: str) -> SplitResult:
    """Read one URL; without a scheme it is NATS's own. Raises `ValueError`."""
    return urlsplit(url if "://" in url else f"nats://{url}")


def _address(url: str) -> str:
    try:
        parts = _parsed(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "(no URL)"  # Nor a part of it: where its password ends is not known.
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{'' if port is None else f':{port}'}"


def _nats_urls(value: str) -> str:
    """Refuse what can never be reached: whoever waits for NATS would wait for ever."""
    if not _split(value):
        message = "The URL of NATS is empty: write it as nats://host:4222"
        raise ValueError(message)
    for url in _split(value):
        try:
            parts = _parsed(url)
            is_one = parts.scheme in {"nats", "tls", "ws", "wss"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # The port is no number.
            is_one = False
        # A password with a slash in it: what seems to be the host is the user.
        if not is_one or "@" in f"{parts.path}{parts.query}{parts.fragment}":
            # nats-py takes a password as it stands: to write %2F for a slash would be another password.
            message = "write the URL of NATS as nats://host:4222, several with commas; no password has / ? # or a comma"
            raise ValueError(message)
    return value


MOST_TENANTS = 50
OTHER_TENANTS = "other"


def _tenants(value: object) -> object:
    """Split tenants at commas, and refuse what no tenant is called, and more than Prometheus should be given."""
    if not isinstance(value, str):
        return value
    tenants = [tenant.strip() for tenant in value.split(",")]
    for tenant in tenants:
        if not is_tenant(tenant) or tenant == OTHER_TENANTS:
            message = f"name tenants as acme,globex; `{OTHER_TENANTS}` stands for all that are not named"
            raise ValueError(message)
    if len(tenants) > MOST_TENANTS:
        message = f"{MOST_TENANTS} tenants may be named: each is a series more for everything that is counted of it"
        raise ValueError(message)
    return frozenset(tenants)


def _looked_at(read: Callable[[Path], object]) -> AfterValidator:
    """Have a file looked at: what is wrong with it is told at start, and not by who waits for NATS for ever."""

    def look(path: Path) -> Path:
        read(path)
        return path

    return AfterValidator(look)


class BrokerSettings(BaseSettings):
    """What a broker, and whoever reads the log, needs to know. `RUNSTREAM_X_Y` sets `x_y`."""

    model_config = SettingsConfigDict(env_prefix="RUNSTREAM_", frozen=True, extra="ignore", env_ignore_empty=True)

    nats_url: Annotated[str, AfterValidator(_nats_urls)] = Field(default="nats://127.0.0.1:4222", repr=False)
    """Where NATS is; several servers of one cluster are separated by commas. It may have a password in it,
    `nats://user:password@host`, or a token, `nats://token@host`, without a comma and without one of `/?#`. No log
    shows it."""

    nats_credentials: Annotated[Path, _looked_at(read_credentials)] | None = None
    """A `.creds` file, as `nsc` writes it: a user's JWT and the seed of its nkey."""

    nats_nkey: Annotated[Path, _looked_at(read_key)] | None = None
    """A file with the seed of a user's nkey. The server knows its public key, and what it may do. One of this,
    `nats_credentials`, and a password in `nats_url`."""

    nats_ca: Annotated[Path, _looked_at(read_authorities)] | None = None
    """A file with the certificates, in PEM, of those who may sign that of NATS; unset: those that the system trusts.
    With this or one of the next three set, as with `tls://`, a server without TLS is told nothing."""

    nats_certificate: Path | None = None
    """A file with the certificate, in PEM, that NATS is shown."""

    nats_certificate_key: Path | None = None
    """A file with its key, in PEM, without a password."""

    nats_server_name: str | None = Field(default=None, min_length=1)
    """The name that NATS's certificate must be for; unset: the host of the URL."""

    nats_inbox_prefix: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")
    """What the subjects of answers begin with; unset: `_INBOX_` and the role, one of `broker`, `gateway`, `writer` and
    `provision`, so that NATS can keep each from reading the others' answers."""

    shards: int = Field(default=1, ge=1, le=8)
    """Streams the runs are spread over. One is enough for a laptop. There may be more later: a run keeps the shard it
    started in."""

    replicas: int = Field(default=1, ge=1, le=5)
    """Copies JetStream keeps of every stream: 1 on a single server, 3 on a cluster."""

    retention: Annotated[Duration, Field(gt=0)] = 24 * 3600.0
    """How long a chunk is kept, in seconds. A day covers a laptop closed overnight."""

    max_log_bytes: int = Field(default=-1, ge=-1)
    """Bytes one shard may hold before it refuses writes; -1 leaves it to the server's own limit."""

    max_run_messages: int = Field(default=200_000, ge=16)
    """Messages one run may have: an agent at 100 chunks/s for half an hour. A guard against a run that never stops."""

    lease_seconds: Annotated[Duration, Field(ge=1, le=LONGEST_LEASE_SECONDS)] = 10.0
    """Seconds without a sign of life after which a run's writer counts as dead. Renewed every third of it."""

    request_timeout_seconds: Annotated[Duration, Field(gt=0)] = 2.0
    """Seconds one request to NATS may take before it is repeated. Far above what a leader takes."""

    write_patience_seconds: Annotated[Duration, Field(gt=0)] = 120.0
    """Seconds a writer goes on trying to store one chunk: a NATS outage of half a minute must not lose a run."""

    read_patience_seconds: Annotated[Duration, Field(gt=0)] = 60.0
    """Seconds a reader waits for NATS to return before its clients are cut, to come back with their cursor."""

    writer_queue_chunks: int = Field(default=1024, ge=1)
    """Chunks that may wait in one run's writer: ten seconds of a fast agent, as long as a leader election takes."""

    writer_queue_bytes: int = Field(default=8 * 2**20, ge=2**20)
    """Bytes that may wait in one run's writer, so that large chunks cannot take the process's memory."""

    concurrent_catchups: int = Field(default=16, ge=1)
    """Long reads of the log at one time: each holds a consumer on the server and a batch in memory."""

    catchup_chunks: int = Field(default=2000, ge=1)
    """Chunks one such read takes at most before its slot goes to the next reader."""

    catchup_bytes: int = Field(default=2**20, ge=2**10)
    """Bytes one such read takes at most, a chunk that is larger aside: what a slow client may hold in the gateway's
    memory."""

    silence_seconds: Annotated[Duration, Field(gt=0)] = 2.0
    """Seconds a live run may be silent before its tip is compared with the leader's."""

    sweep_seconds: Annotated[Duration, Field(gt=0)] = 600.0
    """Seconds between two sweeps of the index by one broker: a hundredth of a day's retention, so that what is left of
    old runs stays little, and a sweep has little to remove."""

    worker_concurrency: int = Field(default=1000, ge=1)
    """Runs one broker executes at one time."""

    metrics_tenants: Annotated[frozenset[str] | None, NoDecode, BeforeValidator(_tenants)] = None
    """Tenants whose runs and streams are counted apart, in a label `tenant`, with commas between them; all others are
    counted as `other`. Named one by one, at most 50, as each is a series more. Unset: there is no such label."""

    tracing: bool = False
    """Record what becomes of runs as OpenTelemetry's spans, and send them where its own variables (`OTEL_…`) say. It
    has to be installed (`runstream[otel]`)."""

    drain_seconds: Annotated[Duration, Field(ge=0)] = 15.0
    """Seconds that a gateway takes to send its readers away, and a broker gives its runs to end, after SIGTERM. What
    each has to do then takes a second or two, and ten more while NATS is away or agents do not stop: all in all within
    the thirty after which Kubernetes kills. Docker kills after ten unless it is told otherwise."""

    body_seconds: Annotated[Duration, Field(gt=0)] = 30.0
    """Seconds the body of a request to the ingest API may take to arrive, an upload's aside; as at the gateway."""

    ingest_body_bytes: int = Field(default=8 * 2**20, ge=2**10)
    """Bytes of a JSON body at the ingest API: it is in memory as a whole, and nothing of it is stored before all of it
    was checked. As many as may wait in one run's writer; more is for an upload, line by line."""

    ingest_requests: int = Field(default=256, ge=1)
    """Requests of the ingest API that one broker serves at one time, beside uploads: each may have its whole body in
    memory, so that they take 2 GiB at worst. Beyond, writers are told to come again: each takes milliseconds."""

    ingest_uploads: int = Field(default=1000, ge=1)
    """Uploads that may be open at one broker, each a run that goes on, as many as one broker executes itself: a socket,
    and what waits to be stored. Counted by themselves, so that a run can be ended whatever is open."""

    ingest_silence_seconds: Annotated[Duration, Field(gt=0)] = 300.0
    """Seconds an upload may bring no complete line, as long as a platform may be silent: half of a connection must not
    keep a run alive for ever."""

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        """Refuse what contradicts itself."""
        parsed = [_parsed(url) for url in _split(self.nats_url)]
        ways = (self.nats_credentials, self.nats_nkey, any(url.username for url in parsed) or None)
        if sum(way is not None for way in ways) > 1:
            message = "nats_credentials, nats_nkey and a password in nats_url: set one of them"
            raise ValueError(message)
        if (self.nats_certificate is None) != (self.nats_certificate_key is None):
            message = "nats_certificate and nats_certificate_key: set both or none"
            raise ValueError(message)
        if self.nats_certificate is not None and self.nats_certificate_key is not None:
            read_certificate(self.nats_certificate, self.nats_certificate_key, ssl.create_default_context())
        if self.nats_access("").wants_tls and any(url.scheme == "ws" for url in parsed):
            message = "nats_url: ws:// is without TLS, which other settings ask for; write wss://"
            raise ValueError(message)
        return self

    def nats_access(self, role: str) -> NatsAccess:
        """Give what `role` needs to be let in by NATS."""
        return NatsAccess(
            credentials=self.nats_credentials,
            key=self.nats_nkey,
            authorities=self.nats_ca,
            certificate=self.nats_certificate,
            certificate_key=self.nats_certificate_key,
            server_name=self.nats_server_name,
            inbox_prefix=self.nats_inbox_prefix or f"_INBOX_{role}",
        )


def resolved(kind: type[Settings], given: Mapping[str, object] | None = None) -> Settings:
    """Resolve settings: what is given (None: not) over the environment over the default. Raises `InvalidSettings`."""
    values: dict[str, Any] = {name: value for name, value in (given or {}).items() if value is not None}
    try:
        return kind(**values)
    except ValidationError as error:
        raise InvalidSettings("; ".join(_complaint(kind, found, values) for found in error.errors())) from error
    except SettingsError as error:
        # Its text names the field and not the variable, and nothing of the value.
        name = next((name for name in kind.model_fields if f'"{name}"' in str(error)), "a setting")
        raise InvalidSettings(f"{_variable(kind, name)}: this setting is JSON, and what it is set to is not") from error


def _complaint(kind: type[BaseSettings], found: ErrorDetails, given: Mapping[str, object]) -> str:
    """Say which setting is wrong, as whoever set it calls it, and what it is: unless no `repr` shows it, as secrets."""
    where, shown = "", ""
    if found["loc"]:
        name, *inner = map(str, found["loc"])
        field = kind.model_fields.get(name)
        shown = f", not {found['input']!r}" if field is not None and field.repr else ""
        where = ".".join([_called(kind, name) if name in given else _variable(kind, name), *inner]) + ": "
    # pydantic begins with words of its own what a validator of ours says.
    return f"{where}{found['msg'].removeprefix('Value error, ')}{shown}"


def _called(kind: type[BaseSettings], name: str) -> str:
    """Give what a setting is called where it is given by hand, as options and errors of the code itself call it."""
    return f"{kind.model_config['env_prefix']}{name}".removeprefix("RUNSTREAM_").lower()


def _variable(kind: type[BaseSettings], name: str) -> str:
    return f"{kind.model_config['env_prefix']}{name}".upper()
