"""The console: pages that show runs, served as they lie in `assets/`. They use the public API and nothing else."""

from runstream.gateway.console.pages import console_routes

__all__ = ["console_routes"]
