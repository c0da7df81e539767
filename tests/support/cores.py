"""How long processes waited for a core that others had: what a busy machine adds to the time that something takes."""

from pathlib import Path


def waited_for_cores(*pids: int) -> float:
    """Seconds that the threads of processes could have run, since they were started, and did not: all of them added up.

    The second figure of Linux's `schedstat`. Threads that take turns on too few cores wait for one another as well.
    """
    files = (path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int(path.read_text(encoding="ascii").split()[1]) for path in files) / 1e9
