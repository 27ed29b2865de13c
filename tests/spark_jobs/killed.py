"""A task that dies as by `kill -9` at one of its effects: ``killed.py NUMBER before|after|written SCRIPT ARGUMENTS``.

SCRIPT is a job of spark_jobs, or `publish`. Its process kills itself at the NUMBER-th effect, before the effect or
after it; or when `featurize` has written the NUMBER-th chunk. A chunk has two photos.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path

from fruits.run import chunks
from fruits.settings import Settings
from fruits.steps.publish import publish_run
from fruits.stores import effects_watched
from tests.loading import load_file


def main(number: str, moment: str, script: str, *arguments: str) -> int:
    """Run the task until it dies; the exit code of a task that had fewer effects."""
    calls = count(1)

    def die(kind: str, path: str, now: str) -> None:
        if now == moment and next(calls) == int(number):
            os.kill(os.getpid(), signal.SIGKILL)

    chunks._MOST_PHOTOS = 2
    with effects_watched(die):
        if script == "publish":
            publish_run(Settings.load(), arguments[-1])
            return 0
        job = load_file(Path(script), "killed_job")
        if moment == "written":
            write = job.write_outcomes
            job.write_outcomes = lambda *some: (write(*some), die("chunk", "", moment))
        return int(job.main(list(arguments)))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
