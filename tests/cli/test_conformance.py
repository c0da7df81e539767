"""`runstream conformance`: green against runstream and against another server, and red for whatever is broken."""

import pytest

from runstream.gateway.commands.checks import CHECKS, GROUPS
from runstream.gateway.commands.client import Client
from runstream.gateway.commands.conformance import FAILING, LONG, SHORT, Result, _results
from runstream.gateway.commands.subject import Inputs
from runstream.schemas import new_agent_id
from tests.support.commands import done
from tests.support.impostor import FLAWS, impostor_running
from tests.support.nats import free_ports
from tests.support.stack import Stack

CAUGHT = {
    "begins without a ping": "first event is a ping",
    "pings always": "include_pings false",
    "cursors repeat the last event": "After any cursor",
    "cursors lose an event": "After any cursor",
    "cursors do not grow": "The cursors of a stream grow",
    "has no cursors": "After the last cursor",
    "resumes from the beginning": "nothing is missing or twice",
    "hangs at the end": "After the last cursor",
    "takes any cursor": "What is no cursor is 422",
    "never says done": "A run that completes ends with",
    "says done before it is": "its status says so by then",
    "two stop reasons": "A run that completes ends with one stop_reason",
    "errors are messages": "A run that fails ends with",
    "otids mean nothing": "The same request again",
    "otids are forgotten": "The same request again",
    "is never busy": "Another message to a conversation that is busy",
    "names no run when busy": "names the run",
    "cancels nothing": "A cancel ends the run",
    "cancels without a stop reason": "A cancel ends the run",
    "keeps the conversation after a cancel": "After a cancel the conversation takes the next message",
    "stops when a client hangs up": "A run goes on when its client hangs up",
    "lists nothing": "is in the list of its agent's runs",
    "knows every run": "A run that is not there is 404",
    "finds what has ended": "A conversation's run is found",
    "resumes the foreground": "A run that was made in the foreground",
}
"""The check that has to notice each flaw; others may."""


async def results_of(url: str, seconds: float = 5.0) -> list[Result]:
    inputs = Inputs(new_agent_id(), SHORT, LONG, FAILING)
    return await _results(Client(url), inputs, seconds, GROUPS, lambda _: None)


async def test_runstream_passes(stack: Stack) -> None:
    """Every check is green, in words and as JSON, and the exit code is 0."""
    checked = await done("conformance", "--url", stack.base)
    assert checked.code == 0, checked
    assert checked.lines[-1] == f"{len(CHECKS)} passed, 0 failed, 0 not supported"
    (results,) = (await done("conformance", "--json", "--only", "cursors", "--url", stack.base)).json
    assert {(each["group"], each["result"]) for each in results} == {("cursors", "pass")}


async def test_another_server_passes() -> None:
    """Nothing that is only runstream's is asked of others: what they do not have is not a failure."""
    async with impostor_running() as url:
        results = await results_of(url)
    assert [each for each in results if each.result == "fail"] == []
    assert [each.check.split(",")[0] for each in results if each.result == "not supported"] == [
        "A browser's EventSource follows a run by GET"
    ]


@pytest.mark.parametrize("flaw", FLAWS)
async def test_what_is_broken_is_found(flaw: str) -> None:
    """Each flaw turns the check red that is about it, which says what it saw."""
    async with impostor_running(flaw) as url:
        results = await results_of(url, seconds=1.0)
    failed = [each for each in results if each.result == "fail"]
    assert [each for each in failed if CAUGHT[flaw] in each.check], results
    assert all(each.detail for each in failed)


async def test_a_failure_is_exit_code_1() -> None:
    """The report says which check failed, and what the server did instead."""
    async with impostor_running("never says done") as url:
        checked = await done("conformance", "--only", "endings", "--url", url)
    assert checked.code == 1
    assert any(line.startswith("fail ") and "A run that completes" in line for line in checked.lines)
    assert any("it ends with" in line for line in checked.lines)
    assert checked.lines[-1].endswith("0 not supported")


async def test_what_cannot_be_checked_is_no_failure() -> None:
    """A server that is not there is 3, in one line, and a group or an agent that there cannot be 2."""
    (port,) = free_ports(1)
    absent = await done("conformance", "--url", f"http://127.0.0.1:{port}")
    assert (absent.code, absent.lines, len(absent.errors)) == (3, [], 1)
    assert (await done("conformance", "--agent", "nonsense")).code == 2
    async with impostor_running() as url:
        unknown = await done("conformance", "--only", "everything", "--url", url)
    assert unknown.code == 2
    assert "There is no group 'everything'" in unknown.complaint
