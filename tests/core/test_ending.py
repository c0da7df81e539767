"""Killed between two steps of an ending: whoever finds the run does what is left."""
