"""The archive of Spark's classes, made in the background: nobody waits for it, and later jobs start sooner."""

import json
import os
import subprocess
from pathlib import Path

from local.airflow import ROOT
from local.stack import jobs_environment


def archive_classes(data: Path) -> None:
    """Start making the archive, at the lowest priority; the program ends at once when there is one.

    A CI machine (``CI`` is set) makes none: it is gone before jobs could use the archive.
    """
    from local.processes import identity  # psutil is in the airflow environment alone

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
    _note(data).write_text(json.dumps(identity(process.pid)))


def stop_archiving(data: Path) -> bool:
    """End what ``archive_classes`` started, if it still runs; returns whether it did. No archive is left half made."""
    from local.processes import end_sessions, process_of, runs

    note = _note(data)
    if not note.is_file():
        return False
    maker = json.loads(note.read_text())
    note.unlink()
    if not runs(process_of(maker)):
        return False
    end_sessions([maker])
    return True


def _note(data: Path) -> Path:
    return data / "classes.json"
