"""Starts runstream, and the platform beside it: `make example-library`."""

from __future__ import annotations

from examples.together import PORT, Together


def main() -> None:
    """Serve until Ctrl-C."""
    with Together() as together:
        runstream = together.runstream()
        addresses = {"NATS_URL": runstream["nats"], "GATEWAY_URL": runstream["gateway"]}
        uvicorn = ["-m", "uvicorn", "examples.library.app:app", "--port", str(PORT), "--log-level", "warning"]
        platform = together.server(*uvicorn, **addresses)
        together.rest(
            f"platform {platform}", f"gateway {runstream['gateway']}", "What to try: examples/library/README.md"
        )


if __name__ == "__main__":
    main()
