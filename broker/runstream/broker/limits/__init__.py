"""Limits: how much of everything one tenant, one key and one address may have of a process.

Each process counts what it is asked for itself, and tells no other
(docs/adr/0017-limits-are-counted-by-each-process.md).
"""
