"""The README's way to tokens, as it stands: from a secret to a browser that follows one run for ten minutes."""

import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import jwt

from tests.acceptance.test_toy_platform import SOURCE
from tests.support.http import fetch
from tests.support.nats import free_ports
from tests.support.processes import running, runstream
from tests.support.waiting import wait_until

README = Path(__file__).parents[2] / "README.md"
SECTION = re.split(r"^## ", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
TOKENS = next(section for section in SECTION if section.startswith("Who may do what\n"))
SAYS_TOKENS = '\necho; echo "$PLATFORM $BROWSER $RUN"\n'


def blocks(language: str) -> list[str]:
    """The blocks of that language in the section, in order."""
    return re.findall(rf"```{language}\n(.*?)```", TOKENS, flags=re.DOTALL)


async def test_a_browser_gets_its_ten_minutes(tmp_path: Path) -> None:
    """All shell of the section in one shell; then the token that its Python makes; and neither does anything else."""
    env = somewhere_else(tmp_path)
    base = f"http://127.0.0.1:{env['RUNSTREAM_PORT']}"
    async with running("sh", "-c", f"{''.join(blocks('sh'))}{SAYS_TOKENS}wait", env=env, cwd=tmp_path) as shell:
        line = await shell.wait_for_line(r"^ey\S+ ey\S+ run-", 60)
        platform, browser, run_id = line.split()
        said = "\n".join(shell.lines)
        # Once with the header, once by a ticket: the whole of it each time.
        words = re.findall(r'"message_type":"assistant_message".*?"content":"([^"]*)"', said)
        assert len(words) == 16
        assert words[:8] == words[8:]
        assert said.count("data: [DONE]") == 2
        made = namespace(tmp_path)["ten_minutes"](run_id)
        for token in (browser, made):
            claims = jwt.decode(token, options={"verify_signature": False})
            assert (claims["scope"], claims["run_id"], claims["tenant"]) == ("runs:read", run_id, "default")
            assert 590 < claims["exp"] - time.time() <= 600
            assert await status(base, f"/v1/runs/{run_id}", token) == 200
            assert await status(base, "/v1/runs/", token) == 403
            assert await status(base, f"/v1/runs/{run_id}", token, method="DELETE") == 403
        assert await status(base, "/v1/runs/", platform) == 200
        assert await status(base, "/v1/runs/", None) == 401
        nats_url = json.loads((tmp_path / ".runstream" / "endpoints.json").read_text())["nats"]
        async with running(str(tmp_path / "runstream"), "keys", "revoke", made, "--nats-url", nats_url) as revoking:
            assert await revoking.wait(30) == 0, revoking.report()

        async def is_refused() -> bool:
            return await status(base, f"/v1/runs/{run_id}", made) == 401

        await wait_until(is_refused, 10)
        assert await status(base, f"/v1/runs/{run_id}", browser) == 200
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def somewhere_else(directory: Path) -> dict[str, str]:
    """An environment in which the README's fixed ports are free ones, and `runstream` is the source as it lies."""
    port, broker_port = free_ports(2)
    (directory / ".curlrc").write_text(f'connect-to = "localhost:8283:127.0.0.1:{port}"\n')
    command = directory / "runstream"
    command.write_text(f'#!/bin/sh\nexec {shlex.join(runstream())} "$@"\n')
    command.chmod(0o700)
    ports = {"RUNSTREAM_PORT": str(port), "RUNSTREAM_BROKER_PORT": str(broker_port)}
    path = f"{directory}{os.pathsep}{os.environ['PATH']}"
    return {**SOURCE, **ports, "CURL_HOME": str(directory), "PATH": path}


def namespace(directory: Path) -> dict[str, Any]:
    """What the Python of the section defines, where the secret is."""
    (code,) = blocks("python")
    defined: dict[str, Any] = {}
    exec(code.replace('"secret"', repr(os.fspath(directory / "secret"))), defined)  # noqa: S102  # which is the point
    return defined


async def status(base: str, path: str, token: str | None, *, method: str = "GET") -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return (await fetch(base, method, path, headers=headers)).status
