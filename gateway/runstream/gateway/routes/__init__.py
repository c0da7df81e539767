"""The HTTP surface, one room per resource."""

from __future__ import annotations
