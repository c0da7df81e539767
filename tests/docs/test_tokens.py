"""The way to tokens, as the page has it: from a secret to a browser that follows one run for ten minutes."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import jwt

from tests.support.documents import Desk, blocks_below, desk_in
from tests.support.http import fetch
from tests.support.processes import running
from tests.support.waiting import wait_until

SAYS_TOKENS = '\necho; echo "$PLATFORM $BROWSER $RUN"\n'


async def test_a_browser_gets_its_ten_minutes(tmp_path: Path) -> None:
    """All shell of both sections in one shell; then the token that the Python makes; and neither does anything else."""
    start, ask = blocks_below("docs/operate/secure.md", "Tokens", "sh")
    make, follow = blocks_below("docs/operate/secure.md", "A token for one browser, one run and ten minutes", "sh")
    desk = desk_in(tmp_path)
    async with desk.typing(f"{start}{ask}{make}{follow}{SAYS_TOKENS}") as shell:
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
            assert await status(desk, f"/v1/runs/{run_id}", token) == 200
            assert await status(desk, "/v1/runs/", token) == 403
            assert await status(desk, f"/v1/runs/{run_id}", token, method="DELETE") == 403
        assert await status(desk, "/v1/runs/", platform) == 200
        assert await status(desk, "/v1/runs/", None) == 401
        nats_url = json.loads((tmp_path / ".runstream" / "endpoints.json").read_text())["nats"]
        revoke = [str(tmp_path / "bin" / "runstream"), "keys", "revoke", made, "--nats-url", nats_url]
        async with running(*revoke, env=desk.env) as revoking:
            assert await revoking.wait(30) == 0, revoking.report()

        async def is_refused() -> bool:
            return await status(desk, f"/v1/runs/{run_id}", made) == 401

        await wait_until(is_refused, 10)
        assert await status(desk, f"/v1/runs/{run_id}", browser) == 200
    assert (tmp_path / "secret").stat().st_mode & 0o077 == 0


def namespace(directory: Path) -> dict[str, Any]:
    """What the Python of the page defines, where the secret is."""
    (code,) = blocks_below("docs/operate/secure.md", "A token for one browser, one run and ten minutes", "python")
    defined: dict[str, Any] = {}
    exec(code.replace('"secret"', repr(os.fspath(directory / "secret"))), defined)  # noqa: S102  # which is the point
    return defined


async def status(desk: Desk, path: str, token: str | None, *, method: str = "GET") -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return (await fetch(desk.base(), method, path, headers=headers)).status
