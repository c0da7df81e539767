"""Debian's Prometheus, unpacked and not installed: promtool, and the server itself, on a free port."""

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from tests.deploy.tools import ROOT, prometheus
from tests.support.http import fetch
from tests.support.nats import free_ports
from tests.support.waiting import wait_until

RULES = ROOT / "deploy" / "helm" / "runstream" / "files" / "rules.yaml"
SCRAPE_SECONDS = 1


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    return subprocess.run([prometheus("promtool"), *arguments], capture_output=True, text=True, check=False)


def groups(path: Path = RULES) -> dict[str, list[dict[str, Any]]]:
    """The rules of a file, by group."""
    return {group["name"]: group["rules"] for group in msgspec.yaml.decode(path.read_bytes())["groups"]}


class Prometheus:
    """A Prometheus that serves."""

    def __init__(self, base: str) -> None:
        self.base = base

    async def ask(self, query: str) -> list[dict[str, Any]]:
        """The result of an instant query: a list of series."""
        reply = await fetch(self.base, "GET", f"/api/v1/query?query={quote(query)}")
        assert reply.json["status"] == "success", (query, reply.json)
        data = reply.json["data"]
        return [{"value": data["result"]}] if data["resultType"] == "scalar" else list(data["result"])


@contextlib.asynccontextmanager
async def prometheus_running(directory: Path, targets: Sequence[str]) -> AsyncIterator[Prometheus]:
    """A real Prometheus that scrapes `targets` and evaluates the shipped rules, both every second."""
    (port,) = free_ports(1)
    config = {
        "global": {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "runstream", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yml").write_bytes(msgspec.json.encode(config))
    with (directory / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            prometheus("prometheus"),
            f"--config.file={directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            stdout=log,
            stderr=log,
        )
        try:
            running = Prometheus(f"http://127.0.0.1:{port}")

            async def is_ready() -> bool:
                with contextlib.suppress(OSError):
                    return (await fetch(running.base, "GET", "/-/ready")).status == 200
                return False

            await wait_until(is_ready, 20, "Prometheus does not become ready")
            yield running
        finally:
            process.terminate()
            await process.wait()
