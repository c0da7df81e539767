"""What is measured, a file for each, and the two forms of all of it: the whole, and one that is quick."""

from tests.bench.bench import Scenario
from tests.bench.scenarios.burst import Burst
from tests.bench.scenarios.create import Create
from tests.bench.scenarios.fanout import Fanout
from tests.bench.scenarios.idle import Idle
from tests.bench.scenarios.many_runs import ManyRuns
from tests.bench.scenarios.publish import Publish
from tests.bench.scenarios.replay import Replay
from tests.bench.scenarios.slow_readers import SlowReaders
from tests.bench.scenarios.storm import Storm

NAMES = ("fanout", "many-runs", "burst", "replay", "storm", "slow-readers", "idle", "publish", "create")


def whole() -> list[Scenario]:
    """The nine, as large as their targets say."""
    return [Fanout(), ManyRuns(), Burst(), Replay(), Storm(), SlowReaders(), Idle(), Publish(), Create()]


def quick() -> list[Scenario]:
    """The same, in under a minute: small enough for a laptop that does something else, too."""
    return [
        Fanout(followers=(1, 100), compared=100, load_seconds=2),
        ManyRuns(runs=50, per_second=500, load_seconds=2),
        Burst(followers=50, chunks=500),
        Replay(lengths={"short": 100, "long": 2000}, stored=5000, readers=5, resumes=5),
        Storm(followers=100, others=10, calm_seconds=1),
        SlowReaders(followers=20, slow=5, load_seconds=2),
        Idle(followers=200, runs=10, quiet_seconds=2),
        Publish(singly=300, runs=20, chunks=50, uploads=5, batches=5),
        Create(creates=10),
    ]
