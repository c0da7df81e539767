"""The console: pages that show runs, served as they lie in `assets/`. They use the public API and nothing else."""

from runstream.gateway.console.pages import console_routes, no_such_page

__all__ = ["console_routes", "no_such_page"]
