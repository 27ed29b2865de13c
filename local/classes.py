"""The archive of Spark's classes, made in the background: nobody waits for it, and later jobs start sooner."""

import json
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

from local.airflow import ROOT
from local.stack import jobs_environment

_STOP_SECONDS = 20


def archive_classes(data: Path) -> None:
    """Start making the archive, at the lowest priority; the program ends at once when there is one.

    A CI machine (``CI`` is set) makes none: it is gone before jobs could use the archive.
    """
    import psutil  # of the airflow environment

    if os.environ.get("CI"):
        return
    log = data / "logs" / "classes.log"
    log.parent.mkdir(exist_ok=True)
    python = jobs_environment() / "bin" / "python"
    if not python.exists():
        return
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 -- our own program
            ["nice", "-n", "19", python, ROOT / "scripts" / "archive_classes.py"],  # noqa: S607
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    started = psutil.Process(process.pid).create_time()
    _note(data).write_text(json.dumps({"pid": process.pid, "started": started}))


def stop_archiving(data: Path) -> bool:
    """End what ``archive_classes`` started, if it still runs; returns whether it did. No archive is left half made."""
    import psutil

    note = _note(data)
    if not note.is_file():
        return False
    maker = json.loads(note.read_text())
    note.unlink()
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(maker["pid"])
        ended = process.status() == psutil.STATUS_ZOMBIE
        if not ended and abs(process.create_time() - maker["started"]) < 1:
            os.killpg(process.pid, signal.SIGTERM)
            psutil.wait_procs([process], timeout=_STOP_SECONDS)
            return True
    return False


def _note(data: Path) -> Path:
    return data / "classes.json"
