"""The durable side of runstream: the log, the index, and the runs that are written to them."""

from __future__ import annotations
