"""Starts the platform as it is, and runstream in front of it: `make example-capture`."""

from __future__ import annotations

from examples.together import PORT, Together


def main() -> None:
    """Serve until Ctrl-C."""
    with Together() as together:
        uvicorn = ["-m", "uvicorn", "examples.capture.app:app", "--port", str(PORT), "--log-level", "warning"]
        platform = together.server(*uvicorn)
        runstream = together.runstream("--agent", f"{platform}/chat")
        together.rest(
            f"platform {platform}", f"gateway {runstream['gateway']}", "What to try: examples/capture/README.md"
        )


if __name__ == "__main__":
    main()
