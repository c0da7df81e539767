"""Starts runstream with the demo agent, and a server of files for the page: `make example-browser`."""

from __future__ import annotations

from pathlib import Path

from examples.together import LOOPBACK, PORT, Together


def main() -> None:
    """Serve until Ctrl-C."""
    origins = f"http://{LOOPBACK}:{PORT},http://localhost:{PORT}"
    with Together() as together:
        runstream = together.runstream(RUNSTREAM_CORS_ORIGINS=origins)
        files = ["-m", "http.server", "--bind", LOOPBACK, "--directory", str(Path(__file__).parent), str(PORT)]
        page = together.server(*files)
        together.rest(f"page {page}/?gateway={runstream['gateway']}", f"gateway {runstream['gateway']}")


if __name__ == "__main__":
    main()
