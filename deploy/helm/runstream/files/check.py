"""What `helm test` runs: store a run, stream it, cut, store more, resume, and compare.

It needs no agent: it writes the run itself, by the broker's ingest API. Ends with 0, or with the reason why not.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from itertools import islice
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = ["what ", "is ", "said ", "is ", "stored ", "first"]
SEEN_BEFORE_THE_CUT = 3

GATEWAY = os.environ["GATEWAY_URL"]
BROKER = os.environ["BROKER_URL"]
HEADERS = {"Authorization": f"Bearer {token}"} if (token := os.environ.get("TOKEN")) else {}


def opened(client: httpx.Client) -> str:
    """Open a run."""
    asked = {"agent_id": f"agent-{uuid.uuid4()}"}
    return str(client.post(f"{BROKER}/ingest/v1/runs", json=asked).raise_for_status().json()["run_id"])


def say(client: httpx.Client, run_id: str, first: int, words: list[str]) -> None:
    """Store words, the first of which is the run's chunk number `first`."""
    for index, word in enumerate(words, first):
        client.post(
            f"{BROKER}/ingest/v1/runs/{run_id}/chunks",
            json={"id": "message-check", "message_type": "assistant_message", "content": word},
            headers={"Expected-Index": str(index)},
        ).raise_for_status()


def stream(client: httpx.Client, run_id: str, after: int) -> Iterator[dict[str, Any]]:
    """Follow a run after a cursor: its events, until `[DONE]`."""
    asked = {"starting_after": after}
    with client.stream("POST", f"{GATEWAY}/v1/runs/{run_id}/stream", json=asked) as answer:
        if answer.is_error:
            answer.read()
            message = f"the gateway answered {answer.status_code}: {answer.text}"
            raise AssertionError(message)
        for line in answer.iter_lines():
            if line == "data: [DONE]":
                return
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))
    message = "the stream ended without [DONE]"
    raise AssertionError(message)


def words(events: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out what is not said by the run: pings, its stop reason."""
    return (event for event in events if event["message_type"] == "assistant_message")


def check() -> str:
    """Do all of it. Raises `AssertionError` or `httpx.HTTPError`."""
    with httpx.Client(headers=HEADERS, timeout=30, trust_env=False) as client:
        run_id = opened(client)
        say(client, run_id, 0, WORDS[:SEEN_BEFORE_THE_CUT])
        following = stream(client, run_id, 0)
        seen = list(islice(words(following), SEEN_BEFORE_THE_CUT))
        following.close()  # type: ignore[attr-defined]  # a generator: its connection is cut
        say(client, run_id, SEEN_BEFORE_THE_CUT, WORDS[SEEN_BEFORE_THE_CUT:])
        end = client.post(f"{BROKER}/ingest/v1/runs/{run_id}/end", json={"stop_reason": "end_turn"})
        end.raise_for_status()
        seen += words(stream(client, run_id, seen[-1]["seq_id"]))
        whole = list(words(stream(client, run_id, 0)))
    if seen != whole or [event["content"] for event in whole] != WORDS:
        message = f"seen across the cut: {seen}; stored: {whole}; said: {WORDS}"
        raise AssertionError(message)
    after = len(WORDS) - SEEN_BEFORE_THE_CUT
    return f"{run_id}: {len(seen)} chunks, {after} of them after the cut; none is missing, none was seen twice"


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{check()}\n")
    except (AssertionError, httpx.HTTPError) as error:
        sys.exit(f"runstream does not work: {error!r}")
