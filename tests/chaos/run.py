"""The fault driver: `python -m tests.chaos.run --seconds 120 --seed 7`.

A run is a row of acts, each a fresh world under a mixed load: now one nats-server on a small disk, now a cluster of
three. Faults come one after the other, some at one time, at random and seeded. At the end of an act everything heals,
the load finishes, and the checker says what the history of it proves; of an act in which all was well nothing is kept,
nor of more than a few others, as a run of hours has gigabytes of it. An act that breaks off is not well, and the next
one begins. The exit code is 1 after any violation, anything that did not heal, when nobody has read a run to its end,
or when fewer than `EFFECTIVE` of the faults were seen to take effect.
"""

import argparse
import asyncio
import logging
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import uvloop

from runstream.broker.errors import BrokerError
from tests.chaos.calm import RECOVERY_SECONDS
from tests.chaos.checker import Checker
from tests.chaos.disk import NoSmallDisk
from tests.chaos.excuses import MACHINE
from tests.chaos.faults import Fault, Injected, catalogue
from tests.chaos.history import Fault as FaultRecord
from tests.chaos.history import Recorder
from tests.chaos.load import AGENT, Load
from tests.chaos.starving import waits_noted
from tests.chaos.verdict import Bounds, Figures
from tests.chaos.world import Plan, World, world_running

EFFECTIVE = 0.9
ACT_SECONDS = 600.0
"""Long enough for leases and elections, and short enough for what is stored to have room on the small disk."""
DISK_BYTES = 512 * 2**20
"""Takes what an act stores; filling it up takes a part of a second."""
TOGETHER = 0.25
"""How often one more fault comes at the same time, and one more with that."""
BREATH_SECONDS = (0.2, 3.0)
"""Between faults: what is only ever seen to recover would never be seen to work."""
REST_EVERY = 20
REST_SECONDS = RECOVERY_SECONDS + Bounds().end_told + 2.0
"""Once in so many times, longer than a fault explains anything, which no breath is: in a second that one may explain
nobody is held to a bound."""
KILLS = 10
"""So many times is each kill among the faults for once each other one: of ten, half of all are kills."""
KEPT = 3
"""Of so many acts in which something was wrong histories and logs are kept: what goes wrong in each of a hundred would
fill up the disk, and shows in the first."""
MOST_FILES = 65_536
"""Every connection is two here, and hundreds come at once."""


class Options(argparse.Namespace):
    """What was asked for on the command line."""

    seconds: float
    hours: float
    seed: int
    directory: Path | None
    nodes: list[int]
    only: list[str]
    kills: int
    together: float
    keep: bool


class Score(msgspec.Struct):
    """What all acts came to."""

    acts: int = 0
    injected: int = 0
    effective: int = 0
    kills: int = 0
    figures: Counter[str] = msgspec.field(default_factory=Counter)
    violations: int = 0
    faulty_acts: int = 0
    waits: Counter[str] = msgspec.field(default_factory=Counter)
    """How often the machine let somebody wait: of a run in which it did so all the time little can be said."""
    complaints: list[str] = msgspec.field(default_factory=list)
    """What did not heal, ended by itself, or did not finish."""

    @property
    def is_good(self) -> bool:
        has_proved = self.figures["readers_to_the_end"] > 0 and self.effective >= EFFECTIVE * self.injected > 0
        return has_proved and not self.violations and not self.complaints


class Act:
    """One world, from its start to the verdict on its history."""

    def __init__(self, plan: Plan, options: Options, seconds: float, seed: int, score: Score) -> None:
        self._plan, self._options, self._seconds, self._seed, self._score = plan, options, seconds, seed, score
        self._history = plan.directory / "history"
        self._began = self._latest = time.monotonic()
        """`_latest` is when the last thing was done to the world, or to the load."""

    async def play(self) -> None:
        """Do it all; what goes wrong is in the score."""
        self._score.acts += 1
        faulty_before = self._score.violations + len(self._score.complaints)
        try:
            await self._live()
        except NoSmallDisk:
            raise
        except (AssertionError, BrokerError) as complaint:
            self._complain(str(complaint))
        except Exception as defect:  # noqa: BLE001  # the chaos's own: hours of other acts are not to be lost by it
            self._complain_of(defect)
        try:
            self._judge()
        except Exception as defect:  # noqa: BLE001  # the same; what was broken off may not be whole
            self._complain_of(defect)
        self._tidy(is_well=self._score.violations + len(self._score.complaints) == faulty_before)

    async def _live(self) -> None:
        """Have a world, a load, and faults, and let the load finish."""
        async with world_running(self._plan) as world, Load(world, self._history, self._seed).running() as load:
            with Recorder(self._history, "driver", "faults") as recorder:
                async with waits_noted(lambda: running(world, load), lambda fault: self._note_wait(fault, recorder)):
                    try:
                        await self._disturb(world, load, recorder)
                        await load.finish()
                    except Exception:
                        self._break_off(load, recorder)
                        raise

    def _tidy(self, *, is_well: bool) -> None:
        """Remove what nobody needs any more."""
        self._score.faulty_acts += not is_well
        if not self._options.keep and (is_well or self._score.faulty_acts > KEPT):
            shutil.rmtree(self._plan.directory, ignore_errors=True)

    async def _disturb(self, world: World, load: Load, recorder: Recorder) -> None:
        """Inject faults until the time is over, and let each heal."""
        chance = random.Random(self._seed)
        faults = [fault for fault in catalogue(world) if fault.name.startswith(tuple(self._options.only))]
        assert faults, f"this world has no fault whose name begins with any of {self._options.only}"
        bag = drawn(faults, chance, self._options.kills)
        await world.healed()
        deadline, times = time.monotonic() + self._seconds, 0
        while time.monotonic() < deadline:
            self._latest = time.monotonic()
            if not world.has_room:
                print("           ended early: what is stored has filled the small disk")
                break
            done = await injected_at_once(world, together(bag, chance, self._options.together), chance)
            await world.healed()
            for injected in done:
                self._note(injected, recorder)
            assert not load.dead(), "; ".join(load.dead())
            times += 1
            await asyncio.sleep(pause_after(times, chance))
        self._latest = time.monotonic()

    def _note(self, injected: Injected, recorder: Recorder) -> None:
        """Record a fault, and say so in a line."""
        for kind in injected.kinds:
            record = FaultRecord(
                at=injected.began,
                name=injected.name,
                target=injected.target,
                ended=time.monotonic(),
                effective=injected.effective,
                evidence=injected.evidence,
                kind=kind,
                gone=injected.gone,
                first_seq=injected.first_seq,
            )
            recorder.write(record)
        self._score.injected += 1
        self._score.effective += injected.effective
        self._score.kills += injected.effective and injected.name.startswith("kill ")
        word = "effective" if injected.effective else "NO EFFECT"
        at, lasted = injected.began - self._began, injected.ended - injected.began
        print(f"{at:7.1f} s  {word}  {injected.name:28} {injected.target:24} {lasted:5.1f} s  {injected.evidence}")
        sys.stdout.flush()

    def _break_off(self, load: Load, recorder: Recorder) -> None:
        """Record that from now on nothing is known: what was just done to the services, and how the load will end."""
        for process in (*load.writers, *load.readers):
            gone = f"{process.name}p{process.pid}"
            recorder.write(FaultRecord(at=self._latest, name="break off", target=MACHINE, gone=gone))

    def _note_wait(self, fault: FaultRecord, recorder: Recorder) -> None:
        """Record what the machine has done by itself."""
        recorder.write(fault)
        self._score.waits[fault.name] += 1

    def _judge(self) -> None:
        """Check the history of the act."""
        since = time.monotonic()
        verdict = Checker().check(self._history)
        for violation in verdict.violations:
            print(f"VIOLATION  {violation}")
        self._score.violations += verdict.total
        self._score.figures.update(counted(verdict.figures))
        print(f"           {verdict.figures.deliveries} deliveries checked in {time.monotonic() - since:.1f} s")

    def _complain(self, complaint: str) -> None:
        print(f"NOT WELL   {complaint}")
        self._score.complaints.append(complaint)

    def _complain_of(self, defect: Exception) -> None:
        traceback.print_exception(defect, file=sys.stdout)
        self._complain(f"{type(defect).__name__}: {defect}")


def running(world: World, load: Load) -> dict[str, int | None]:
    """Every process, by the name that faults have for it."""
    nodes = {node.name: node.pid for node in world.nodes}
    return nodes | {service.name: service.pid for service in (*world.services, *load.readers)}


async def injected_at_once(world: World, faults: Sequence[Fault], chance: random.Random) -> list[Injected]:
    """Inject them all, and wait for all of them, whatever becomes of one."""
    chances = [random.Random(chance.random()) for _ in faults]
    doing = (fault.inject(world, own) for fault, own in zip(faults, chances, strict=True))
    done = await asyncio.gather(*doing, return_exceptions=True)
    for outcome in done:
        if isinstance(outcome, BaseException):
            raise outcome
    return [outcome for outcome in done if isinstance(outcome, Injected)]


def together(bag: Iterator[Fault], chance: random.Random, share: float = TOGETHER) -> list[Fault]:
    """Draw what comes next: one fault, or several that are at different places."""
    faults = [next(bag)]
    while chance.random() < share:
        another = next(bag)
        faults += [another] * all(another.place != fault.place for fault in faults)
    return faults


def pause_after(times: int, chance: random.Random) -> float:
    """How long everything is left alone when something was done to it for the `times`-th time."""
    return chance.uniform(*BREATH_SECONDS) + (REST_SECONDS if times % REST_EVERY == 0 else 0)


def drawn(faults: Sequence[Fault], chance: random.Random, kills: int = KILLS) -> Iterator[Fault]:
    """Give faults for ever: all of them in some order, then all of them in another."""
    while True:
        bag = [fault for fault in faults for _ in range(kills if fault.name.startswith("kill ") else 1)]
        chance.shuffle(bag)
        yield from bag


def counted(figures: Figures) -> dict[str, int]:
    """Those that can be added up."""
    return {name: value for name, value in msgspec.structs.asdict(figures).items() if isinstance(value, int)}


async def play(options: Options, directory: Path, score: Score) -> None:
    """Play act after act, until the time is over."""
    total = options.hours * 3600 or options.seconds
    count = max(len(options.nodes), round(total / ACT_SECONDS))
    for number in range(count):
        nodes = options.nodes[number % len(options.nodes)]
        plan = Plan(
            directory / f"act-{number}",
            nodes=nodes,
            agent=AGENT,
            disk_bytes=DISK_BYTES if nodes == 1 else 0,
        )
        plan.directory.mkdir(parents=True)
        print(f"-- act {number + 1} of {count}: {nodes} nats-server{'s' * (nodes > 1)}, {total / count:.0f} s")
        await Act(plan, options, total / count, options.seed + number, score).play()


def tell(score: Score, seed: int) -> None:
    """Print what all came to."""
    figures = score.figures
    share = score.effective / score.injected if score.injected else 0
    print(f"-- seed {seed}, {score.acts} acts")
    print(f"faults       {score.injected}, {share:.0%} of them effective, {score.kills} kills survived")
    print(f"checked      {figures['runs']} runs, {figures['chunks']} chunks, {figures['deliveries']} deliveries")
    print(f"             {figures['acknowledged']} chunks were acknowledged to their writers")
    print(f"readers      {figures['readers']}, which came back {figures['reconnects']} times")
    print(f"violations   {score.violations}")
    stood_still, starved = score.waits["stand still"], score.waits["starve"]
    print(f"machine      stood still {stood_still} times, and let one of the processes wait {starved} times")
    for complaint in score.complaints:
        print(f"not well     {complaint}")


def fraction(text: str) -> float:
    """Read how often something is to be; never always, as that would never end. Raises `ValueError`."""
    value = float(text)
    if not 0 <= value < 1:
        raise ValueError(text)
    return value


def parsed(argv: Sequence[str] | None = None) -> Options:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=120, help="how long faults are injected [120]")
    parser.add_argument("--hours", type=float, default=0, help="the same, in hours")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="repeats the same faults [the time]")
    parser.add_argument("--directory", type=Path, help="where histories and logs go [a new one in the temporary one]")
    parser.add_argument(
        "--nodes", type=int, nargs="+", choices=(1, 3), default=[1, 3], help="nats-servers, act by act [1 3]"
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="NAME", help="faults whose names begin so [all there are]"
    )
    parser.add_argument(
        "--kills", type=int, default=KILLS, help=f"how often each kill comes for once each other fault [{KILLS}]"
    )
    parser.add_argument(
        "--together", type=fraction, default=TOGETHER, help=f"how often one more comes at the same time [{TOGETHER}]"
    )
    parser.add_argument("--keep", action="store_true", help="keep histories and logs also where all was well")
    return parser.parse_args(argv, namespace=Options())


def main() -> int:
    """Play, and say what it came to."""
    options = parsed()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="runstream-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=directory / "driver.log", level=logging.INFO)
    print(f"-- seed {options.seed}, histories and logs in {directory}")
    allow_files(MOST_FILES)
    score, is_broken_off = Score(), False
    try:
        uvloop.run(play(options, directory, score))
    except NoSmallDisk as missing:
        print(missing, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        is_broken_off = True
    tell(score, options.seed)
    return 130 if is_broken_off else 0 if score.is_good else 1


def allow_files(most: int) -> None:
    """Let this process, and all that it starts, have as many files open as it may, up to so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
