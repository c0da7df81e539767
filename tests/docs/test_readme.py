"""README alone leads to a resumable stream, and to a browser's token: its shell, from the first line to the last."""

import json
import re
from pathlib import Path

from runstream.broker.agents.demo import DEFAULT_TEXT
from tests.support.documents import blocks_below, desk_in, making
from tests.support.http import fetch

WORDS = [f"{word} " for word in DEFAULT_TEXT.split()[:8]]


def said_in(text: str) -> list[str]:
    """What the agent said, event by event."""
    return re.findall(r'"message_type":"assistant_message".*?"content":"([^"]*)"', text)


async def test_two_minutes(tmp_path: Path) -> None:
    """`make run` serves. A stream is left in its middle; the rest of it is the same whenever it is asked for."""
    (make,) = blocks_below("README.md", "Two minutes", "sh")
    begin, resume, again = blocks_below("README.md", "With curl", "sh")
    desk = desk_in(tmp_path)
    async with making(make, desk) as up:
        assert (await up.wait_for_line("^ready ", 60)).split()[1] == desk.base()
        async with desk.typing(f"{begin}{resume}{again}") as shell:
            assert await shell.wait(40) == 0, shell.report()
    before = said_in((tmp_path / "first").read_text(encoding="utf-8"))
    after = said_in("\n".join(shell.lines))[len(before) :]
    assert 0 < len(before) < len(WORDS)
    assert before + after[: len(after) // 2] == WORDS
    assert after[: len(after) // 2] == after[len(after) // 2 :]
    assert shell.lines.count("data: [DONE]") == 2
    run = json.loads(shell.lines[-1])
    assert (run["status"], run["background"]) == ("completed", True)


async def test_a_token_for_one_browser(tmp_path: Path) -> None:
    """It reads its run, with the header and by a ticket, and nothing else; who has none reads nothing."""
    start, give, ticket = blocks_below("README.md", "A token for one browser", "sh")
    desk = desk_in(tmp_path)
    async with desk.typing(f'{start}{give}{ticket}\necho; echo "$BROWSER $RUN"\n') as shell:
        browser, run_id = (await shell.wait_for_line(r"^ey\S+ run-", 60)).split()
        assert said_in("\n".join(shell.lines)) == 2 * WORDS
        asked = ((f"/v1/runs/{run_id}", browser, 200), ("/v1/runs/", browser, 403), ("/v1/runs/", None, 401))
        for path, token, status in asked:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            assert (await fetch(desk.base(), "GET", path, headers=headers)).status == status
