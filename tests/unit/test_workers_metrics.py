"""What the parent of workers shows: what each of them says, to whoever asks, however many ask at one time."""

import asyncio
from contextlib import suppress

from prometheus_client import generate_latest

from runstream.gateway.workers_metrics import WorkersMetrics


class Asked:
    """A worker that answers each time it is asked once it is let."""

    is_alive = True
    restarts = 0

    def __init__(self, number: int) -> None:
        self.number = number
        self.answers: list[asyncio.Future[str | None]] = []

    async def metrics(self) -> str | None:
        answer: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self.answers.append(answer)
        return await answer

    def answer(self, time: int) -> None:
        """Answer what it was asked at that time."""
        self.answers[time].set_result(f"# TYPE runstream_followers gauge\nrunstream_followers {time}\n")


async def scrape(metrics: WorkersMetrics, seconds: float = 5) -> str:
    """What `/metrics` does: look, for so long, and show what is there in the same turn of the loop."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await metrics.look()
    return generate_latest(metrics.registry).decode()


async def test_two_who_ask_at_one_time_are_shown_everything() -> None:
    """Two Prometheis do: neither is shown what has come for the other until then."""
    workers = [Asked(0), Asked(1)]
    metrics = WorkersMetrics(workers)
    first, second = (asyncio.create_task(scrape(metrics)) for _ in range(2))
    while sum(len(worker.answers) for worker in workers) < 4:
        await asyncio.sleep(0)
    for time, scraping in enumerate((first, second)):
        for worker in workers:
            worker.answer(time)
        shown = await scraping
        assert "runstream_workers_shown 2.0" in shown
        assert [f'runstream_followers{{worker="{number}"}} {time}.0' in shown for number in (0, 1)] == [True, True]


async def test_who_gives_up_waiting_is_shown_what_has_come() -> None:
    """One that does not answer takes nothing away of the others."""
    workers = [Asked(0), Asked(1)]
    metrics = WorkersMetrics(workers)
    scraping = asyncio.create_task(scrape(metrics, 0.1))
    while not all(worker.answers for worker in workers):
        await asyncio.sleep(0)
    workers[0].answer(0)
    shown = await scraping
    assert "runstream_workers_shown 1.0" in shown
    assert 'runstream_followers{worker="0"}' in shown
    assert 'runstream_followers{worker="1"}' not in shown
