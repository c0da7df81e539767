"""Runs that are written over HTTP, on the broker's port, and read through a gateway."""
