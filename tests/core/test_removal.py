"""A run that was removed is gone for good, whoever was about to do something to it; and an ended one can be removed."""

import asyncio

import pytest

from runstream.broker import removal
from runstream.broker.ending import STEPS, Ending, Outcome, failed, first_message
from runstream.broker.errors import Fenced, Unavailable
from runstream.broker.publisher import Write
from runstream.broker.rebuild import _Rebuilding
from runstream.broker.removal import Remover
from runstream.broker.survey import survey
from runstream.broker.takeover import TakeOver
from runstream.broker.topology import LogAddress
from runstream.schemas import Kind, RunRecord, encode_chunk, new_conversation_id
from tests.support.core import Core, record_of, request_of, said
from tests.support.faults import replaced, turns

GOOD = Outcome("end_turn")


async def run_up_to(core: Core, steps: int) -> tuple[RunRecord, RunRecord]:
    """A run that has come so many steps of its ending far: its record while it went on, and as it is now."""
    run = record_of(conversation_id=new_conversation_id())
    await core.index.claim(run, request_of(run))
    async with core.publisher(LogAddress(run.id, run.shard)) as publisher:
        first_seq = await publisher.publish_marked(first_message(run))
        begun = await core.index.begin(run, first_seq=first_seq)
        await publisher.publish_marked(Write(Kind.DATA, encode_chunk(said(0), run_id=run.id)))
        ending = Ending(publisher, core.index, begun, GOOD)
        for step in STEPS[:steps]:
            await step(ending)
    return begun, await core.record(run)


def remover_of(core: Core) -> Remover:
    return Remover(core.jetstream, core.index, TakeOver(core.jetstream, core.settings, core.index))


async def is_gone(core: Core, run: RunRecord) -> bool:
    last = await core.jetstream.last_message(f"RUNS_{run.shard}", f"runs.{run.shard}.{run.id}")
    return last is None and await core.index.run(run.tenant, run.id) is None


@pytest.mark.parametrize("has_looked", [True, False])
async def test_who_would_end_it_is_too_late(core: Core, has_looked: bool) -> None:
    """A broker that has read the record of a run that went on, and perhaps its log, does not bring it back."""
    begun, over = await run_up_to(core, len(STEPS))
    taking_over = TakeOver(core.jetstream, core.settings, core.index)
    last = await taking_over.last_of(begun) if has_looked else None
    assert await remover_of(core).remove(over)
    with pytest.raises(Fenced):
        await taking_over.end(begun, last, failed(begun.id, "run_lost"))
    assert await is_gone(core, begun)


async def test_what_is_being_removed_is_not_ended(core: Core) -> None:
    """Its log is gone and its record is not yet: nothing is stored in the log again."""
    begun, _ = await run_up_to(core, len(STEPS))
    await core.purge(LogAddress(begun.id, begun.shard))
    ended = await TakeOver(core.jetstream, core.settings, core.index).end(begun, None, failed(begun.id, "run_lost"))
    assert (ended.stop_reason, ended.is_last) == ("end_turn", False)
    assert await core.stored(LogAddress(begun.id, begun.shard)) == []


async def test_a_record_that_was_lost_with_the_bucket_is_written_again(core: Core) -> None:
    """Nobody has removed it, and it has no mark: who ends the run writes it, though its log is gone."""
    begun, _ = await run_up_to(core, 0)
    await core.purge(LogAddress(begun.id, begun.shard))
    await core.jetstream.purge("KV_RUNSTREAM", f"$KV.RUNSTREAM.run.{begun.tenant}.{begun.id}", through=2**53)
    await TakeOver(core.jetstream, core.settings, core.index).end(begun, None, failed(begun.id, "run_lost"))
    assert (await core.record(begun)).status == "failed"


async def test_a_rebuild_does_not_bring_it_back(core: Core) -> None:
    """Its log was there when the logs were surveyed, and is not any more."""
    _, over = await run_up_to(core, len(STEPS))
    found = await survey(core.jetstream)
    assert await remover_of(core).remove(over)
    await _Rebuilding(core.jetstream, core.index, [run for run in found.runs if run.id == over.id]).run()
    assert await core.index.run(over.tenant, over.id) is None


async def test_one_whose_end_is_not_stored_yet(core: Core) -> None:
    """Its record is terminal, and its writer dead, or slow: its ending is finished, and it is removed."""
    _, over = await run_up_to(core, 2)
    assert over.is_terminal
    assert not await core.is_over(over)
    assert await remover_of(core).remove(over)
    assert await is_gone(core, over)
    assert await core.index.lease(over.id) is None


async def test_a_writer_that_is_about_to_store_the_end(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, and not fenced."""
    monkeypatch.setattr(removal, "SEAL_SECONDS", 30.0)
    run = record_of()
    await core.index.claim(run, request_of(run))
    async with core.publisher(LogAddress(run.id, run.shard)) as publisher:
        first_seq = await publisher.publish_marked(first_message(run))
        ending = Ending(publisher, core.index, await core.index.begin(run, first_seq=first_seq), GOOD)
        await ending.tell()
        await ending.release()
        removing = asyncio.create_task(remover_of(core).remove(await core.record(run)))
        await turns()
        await ending.seal()
        await ending.forget()
        assert await removing
    assert await is_gone(core, run)


async def test_a_run_that_goes_on_is_not_removed(core: Core) -> None:
    """Nothing of it is touched."""
    begun, _ = await run_up_to(core, 0)
    assert not await remover_of(core).remove(begun)
    assert len(await core.stored(LogAddress(begun.id, begun.shard))) == 2


async def test_a_client_that_leaves_in_the_middle(core: Core) -> None:
    """Between the log and the record: the run is removed all the same, before the process is left."""
    _, over = await run_up_to(core, len(STEPS))
    remover = remover_of(core)
    purged, go_on, remove_run = asyncio.Event(), asyncio.Event(), core.index.remove_run

    async def slowly(run: RunRecord) -> None:
        purged.set()
        await go_on.wait()
        await remove_run(run)

    replaced(core.index, "remove_run", slowly)
    client = asyncio.create_task(remover.remove(over))
    await purged.wait()
    client.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client
    go_on.set()
    await remover.close()
    assert await is_gone(core, over)


async def test_a_log_that_does_not_come_to_its_end_is_given_up(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither its writer nor this one can end it, whoever wants it removed is told to try again."""
    _, told = await run_up_to(core, 2)
    taking_over = TakeOver(core.jetstream, core.settings, core.index)
    tries = 0

    async def too_late(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise Fenced(run_id=told.id)

    replaced(taking_over, "end", too_late)
    monkeypatch.setattr(removal, "SEAL_SECONDS", 0.0)
    monkeypatch.setattr(removal, "GIVE_UP_SECONDS", 0.2)
    with pytest.raises(Unavailable):
        await Remover(core.jetstream, core.index, taking_over).remove(told)
    assert tries > 1
    assert not await is_gone(core, told)
