"""Writes the pages: `python -m deploy.reference`."""

from deploy.reference import write

if __name__ == "__main__":
    write()
