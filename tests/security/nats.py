"""A nats-server as `deploy/nats/` configures it, with certificates and keys of its own, and who may do what there."""

import contextlib
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from runstream.broker.access import NatsAccess
from runstream.broker.connection import Connection
from runstream.broker.embedded import find_binary
from runstream.broker.settings import BrokerSettings
from runstream.gateway.natskeys import make_keys
from tests.support.nats import answers, free_ports
from tests.support.processes import RunningProcess, running
from tests.support.waiting import wait_until

CONFIGURATION = Path(__file__).parents[2] / "deploy" / "nats" / "nats-server.conf"
SHORT: dict[str, Any] = {"shards": 2, "lease_seconds": 1.0, "silence_seconds": 0.3}


@dataclass(frozen=True)
class GuardedNats:
    """A nats-server that lets in four roles, with TLS."""

    port: int
    directory: Path
    process: RunningProcess

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        return self.directory / "ca.pem"

    def key(self, role: str) -> Path:
        return self.directory / "keys" / f"{role}.nk"

    def settings(self, role: str, **more: Any) -> BrokerSettings:
        """What a process of that role is told."""
        return BrokerSettings(nats_url=self.url, nats_ca=self.ca, nats_nkey=self.key(role), **{**SHORT, **more})

    def environment(self, role: str) -> dict[str, str]:
        """The same for a process that is started."""
        return {
            "RUNSTREAM_NATS_URL": self.url,
            "RUNSTREAM_NATS_CA": str(self.ca),
            "RUNSTREAM_NATS_NKEY": str(self.key(role)),
            "RUNSTREAM_SHARDS": str(SHORT["shards"]),
        }

    def access(self, role: str) -> NatsAccess:
        return self.settings(role).nats_access(role)

    def connection(self, role: str) -> Connection:
        """A connection as that role's process has it."""
        return Connection(self.url, name=f"test-{role}", access=self.access(role))

    def violations(self) -> list[str]:
        """What the server says that somebody was refused, so far."""
        return [line.partition("[ERR] ")[2] for line in self.process.errors if "Violation" in line]

    async def all_violations(self) -> list[str]:
        """The same, once everything that was refused until now has been said: one refusal more comes after those."""
        mark = f"mark.{next(_MARKS)}"
        async with self.connection("writer") as connection:
            await connection.publish(mark, b"")
            await wait_until(lambda: any(mark in said for said in self.violations()), 5, "nothing was refused")
        return [said for said in self.violations() if "mark." not in said]


_MARKS = itertools.count()


def write_certificates(directory: Path, *, name: str = "127.0.0.1") -> trustme.CA:
    """Make an authority, and the certificate of a server that is reached by that name."""
    authority = trustme.CA()
    certificate = authority.issue_cert(name)
    authority.cert_pem.write_to_path(directory / "ca.pem")
    certificate.private_key_pem.write_to_path(directory / "server.key")
    certificate.cert_chain_pems[0].write_to_path(directory / "server.pem")
    return authority


@contextlib.asynccontextmanager
async def guarded_nats(directory: Path) -> AsyncIterator[GuardedNats]:
    """Start nats-server with the configuration that is shipped, as it is."""
    (port,) = free_ports(1)
    write_certificates(directory)
    make_keys(directory / "keys", tell=lambda _: None)
    said = (directory / "keys" / "nats.env").read_text().splitlines()
    environment = {
        **dict(line.split("=", 1) for line in said),
        "NATS_HOST": "127.0.0.1",
        "NATS_PORT": str(port),
        "NATS_STORE_DIR": str(directory / "store"),
        "NATS_CERTIFICATE": str(directory / "server.pem"),
        "NATS_CERTIFICATE_KEY": str(directory / "server.key"),
    }
    async with running(str(find_binary()), "-c", str(CONFIGURATION), env=environment) as process:
        await wait_until(lambda: answers(f"nats://127.0.0.1:{port}"), 20, "nats-server does not start")
        yield GuardedNats(port, directory, process)
