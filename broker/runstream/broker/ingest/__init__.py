"""The ingest API: runs that are written over HTTP, by whoever speaks it.

    routes.py       HTTP in, JSON out
    service.py      one request: its chunks, and what may end it before its time
    appending.py    chunks on their way into a log, each at its place
    runs.py         opens, finds, keeps alive and ends runs
    chunks.py       bytes as lines, lines and elements as chunks
    errors.py       the one table of what a writer is told

A broker keeps nothing of a run between two requests that another could not find in the log and the index, so any
broker serves any request of any run.
"""
