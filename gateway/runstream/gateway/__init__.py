"""The edge of runstream: HTTP in, resumable Server-Sent Events out."""

from __future__ import annotations
