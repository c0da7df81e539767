"""A platform whose own packages are called as runstream's folders are: both are in one process, and neither notices."""

import os
from pathlib import Path

import pytest

from runstream.broker.agents.demo import demo
from runstream.schemas import new_agent_id
from tests.support.processes import python, running
from tests.support.stack import stack_running

NAMES = ("schemas", "broker", "gateway")
PROGRAM = '''
"""The platform's program: it has a schema, a broker and a gateway of its own."""

import asyncio
import sys

from broker.queue import Queue
from gateway import serve
from schemas import Message

import schemas
from runstream.broker.runs import Runs
from runstream.schemas import AssistantMessage


async def main(url, agent_id):
    queue = Queue([Message("one "), Message("two "), {"message_type": "assistant_message", "content": "three "}])
    async with Runs(url) as runs, runs.open(agent_id=agent_id) as run:
        for said in queue:
            await run.publish(AssistantMessage(content=said.text) if isinstance(said, Message) else said)
    print("served", serve(run.run_id))
    assert schemas.__file__.startswith(sys.path[0]), schemas.__file__


asyncio.run(main(*sys.argv[1:]))
'''
OWN = {
    "schemas/__init__.py": "class Message:\n    def __init__(self, text):\n        self.text = text\n",
    "broker/__init__.py": "",
    "broker/queue.py": "class Queue(list):\n    pass\n",
    "gateway/__init__.py": "def serve(run_id):\n    return run_id\n",
    "program.py": PROGRAM,
}


@pytest.mark.parametrize("by", ["its directory", "PYTHONPATH"])
async def test_a_platform_keeps_its_own_packages(tmp_path: Path, nats_url: str, by: str) -> None:
    """Its own come first on its path, the library is installed beside them, and what it writes is served."""
    for name, text in OWN.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    inherited = os.environ.get("PYTHONPATH", "")
    argv, env = python("program.py"), {}
    if by == "PYTHONPATH":
        argv = python("-m", "program")
        env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), inherited]).rstrip(os.pathsep)}
    async with stack_running(nats_url, agent=demo) as stack:
        async with running(*argv, nats_url, new_agent_id(), cwd=tmp_path, env=env) as process:
            run_id = (await process.wait_for_line("^served ", 30)).split()[1]
            assert await process.wait() == 0, process.report()
        async with stack.resume(run_id) as stream:
            events = await stream.rest()
    said = [event.json["content"] for event in events if not event.is_done and "content" in event.json]
    assert said == ["one ", "two ", "three "]
