"""A container's health check, ``health.py URL [PART]``: whether a URL answers, or reports a part of Airflow healthy.

Standard library only: Docker runs it every few seconds, so it has to be cheap.
"""

import json
import sys
import urllib.request

_SECONDS = 8


def main(url: str, part: str | None = None) -> int:
    """Ask; returns an exit code, and prints the state, which ``docker inspect`` shows."""
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as answer:  # noqa: S310 -- our own http URL
            state = json.load(answer)[part]["status"] if part else "healthy"
    except (OSError, ValueError, KeyError) as error:
        state = f"{type(error).__name__}: {error}"
    print(f"{url}: {part or ''} {state}")
    return 0 if state == "healthy" else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
