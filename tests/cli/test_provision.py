"""`runstream provision --plan` and `--apply`: what would change is shown, and changed when it is asked for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runstream.broker.connection import Connection
from runstream.broker.errors import Unavailable
from runstream.broker.jetstream import JetStream
from runstream.broker.settings import BrokerSettings, resolved
from runstream.broker.topology import written
from runstream.gateway.commands.telling import ending
from tests.security.nats import guarded_nats
from tests.support.commands import done
from tests.support.nats import NatsServer
from tests.support.services import service
from tests.support.waiting import wait_until


@pytest_asyncio.fixture(autouse=True)
async def jetstream(nats_server: NatsServer) -> AsyncIterator[JetStream]:
    """A connection of the test's own to a server without any stream."""
    await nats_server.wait_ready()
    async with Connection(nats_server.url, name="test") as connection:
        opened = JetStream(connection, timeout_seconds=2)
        for name in (await opened.api("STREAM.NAMES", None))["streams"] or []:
            await opened.api(f"STREAM.DELETE.{name}", None)
        yield opened
        await opened.close()


async def test_a_plan_shows_what_is_absent_and_changes_nothing(nats_url: str, jetstream: JetStream) -> None:
    """Of an empty server: everything. The exit code is 1, as there is something to do."""
    plan = await done("provision", "--plan", "--nats-url", nats_url, "--shards", "2")
    assert plan.code == 1
    streams = ["RUNS_0", "RUNS_1", "KV_RUNSTREAM", "RUNSTREAM_WORK", "KV_RUNSTREAM_REVOKED"]
    assert plan.lines == [f"+ {name}" for name in [*streams, "RUNSTREAM_WORK consumer workers"]]
    assert not (await jetstream.api("STREAM.NAMES", None))["streams"]


async def test_a_plan_shows_what_differs_and_apply_changes_it(nats_url: str, jetstream: JetStream) -> None:
    """Both values, as people write them; then there is nothing to do, and the plan is 0."""
    where = ("--nats-url", nats_url)
    made = await done("provision", *where)
    assert (made.code, "made RUNS_0" in made.lines) == (0, True)
    assert made.errors == [], "what was made is said twice"
    other = (*where, "--retention", "2h", "--lease-seconds", "1500ms", "--max-run-messages", "1000")
    plan = await done("provision", "--plan", *other)
    assert plan.code == 1
    assert plan.lines[:5] == [
        "~ RUNS_0",
        "  - max_age: 24h",
        "  + max_age: 2h",
        "  - max_msgs_per_subject: 200000",
        "  + max_msgs_per_subject: 1000",
    ]
    assert plan.lines[-4:-1] == [
        "~ RUNSTREAM_WORK consumer workers",
        "  - ack_wait: 10s",
        "  + ack_wait: 1500ms",
    ]
    (told,) = (await done("provision", "--plan", "--json", *other)).json
    assert told["differing"][0] == {"where": "RUNS_0", "field": "max_age", "found": 24 * 3600e9, "wanted": 2 * 3600e9}
    applied = await done("provision", "--apply", *other)
    assert applied.code == 0
    assert "changed RUNS_0.max_age from 24h to 2h" in applied.lines
    assert applied.errors == [], "what was done is said twice"
    assert (await jetstream.api("STREAM.INFO.RUNS_0", None))["config"]["max_age"] == 2 * 3600e9
    again = await done("provision", "--plan", *other)
    assert (again.code, again.lines) == (0, ["nothing to do: everything is there, and as this configuration says"])


async def test_who_may_not_make_streams_is_told_who_may(tmp_path: Path) -> None:
    """As another role it is 4, and the remedy is another user, and not another NATS."""
    async with guarded_nats(tmp_path) as server:
        env = {**server.environment("writer"), "RUNSTREAM_NATS_INBOX_PREFIX": "_INBOX_writer"}
        refused = await done("provision", env=env)
    assert refused.code == 4
    assert "Run it as a user of NATS who may, which is that of the role provision" in refused.complaint
    assert "$JS.API.STREAM." in refused.complaint


async def test_a_key_is_revoked_only_where_that_can_be_kept(nats_url: str) -> None:
    """In a NATS without streams it is said how they are made."""
    refused = await done("keys", "revoke", "rsk_0123456789ab", "--nats-url", nats_url)
    assert (refused.code, refused.lines) == (3, [])
    said = "What runstream needs is not in this NATS. Run `runstream provision` first, which makes it."
    assert refused.errors == [f"runstream: {said}"]


def test_what_is_in_the_way_of_nats_is_said_once() -> None:
    """And not also what else an outage may be."""
    told, code = ending(Unavailable("Cannot reach NATS at nats://n: connection refused"))
    assert told.startswith(
        "Cannot reach NATS at nats://n: connection refused. --nats-url or RUNSTREAM_NATS_URL says where"
    )
    assert code == 3


def test_a_nats_that_answers_late_is_not_looked_for() -> None:
    """It is where it was said to be."""
    told, code = ending(Unavailable("no answer within 2 s"))
    assert ("--nats-url" in told, "Try again" in told, code) == (False, True, 3)


@pytest.mark.parametrize(
    ("seconds", "said"), [(7 * 86400, "7d"), (86400, "24h"), (5400, "90m"), (120, "2m"), (90, "90s"), (0.25, "250ms")]
)
def test_durations_are_written_as_people_write_them(seconds: float, said: str) -> None:
    """And as a setting may be written; what is no duration stays as it was."""
    assert written("max_age", int(seconds * 1e9), repr) == said
    assert resolved(BrokerSettings, {"silence_seconds": said}).silence_seconds == seconds
    assert written("max_bytes", int(seconds * 1e9), repr) == str(int(seconds * 1e9))


async def test_the_page_shows_what_a_plan_shows(nats_url: str) -> None:
    """Its example is what comes, line by line."""
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    said, *expected = page.partition("$ runstream provision ")[2].partition("\n```")[0].splitlines()
    assert (await done("provision", "--nats-url", nats_url)).code == 0
    plan = await done("provision", *said.split(), "--nats-url", nats_url, env={"COLUMNS": "80"})
    assert plan.lines == expected


@pytest.mark.parametrize("args", [("--plan", "--apply"), ("--plan", "--rebuild-index"), ("--json",)])
async def test_what_contradicts_itself_is_refused(nats_url: str, args: tuple[str, ...]) -> None:
    """A plan changes nothing, so it is not asked to."""
    refused = await done("provision", "--nats-url", nats_url, *args)
    assert refused.code == 2
    assert refused.lines == []


async def test_a_broker_logs_what_differs_and_leaves_it(nats_url: str, jetstream: JetStream) -> None:
    """Of a NATS that is not its own, in the words of `provision`."""
    assert (await done("provision", "--nats-url", nats_url)).code == 0
    async with service("broker", nats_url, env={"RUNSTREAM_RETENTION": "2h"}) as broker:
        await broker.is_ready()
        said = "RUNS_0.max_age is 24h, this configuration says 2h"
        await wait_until(lambda: any("topology_drift" in line and said in line for line in broker.process.errors), 10)
    assert (await jetstream.api("STREAM.INFO.RUNS_0", None))["config"]["max_age"] == 24 * 3600e9
