"""Bounds under load: what a stalled reader may cost, and what clients and writers that leave may leave behind."""
