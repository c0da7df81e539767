"""`python -m runstream.gateway`: the command line where no script is installed."""

from __future__ import annotations

from runstream.gateway.cli import main

main()
