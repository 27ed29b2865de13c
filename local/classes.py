"""The archive of Spark's classes, made in the background: nobody waits for it, and later jobs start sooner."""

import os
import subprocess
from pathlib import Path

from local.airflow import ROOT
from local.stack import jobs_environment


def archive_classes(data: Path) -> None:
    """Start making the archive, at the lowest priority; the program ends at once when there is one."""
    log = data / "logs" / "classes.log"
    log.parent.mkdir(exist_ok=True)
    python = jobs_environment() / "bin" / "python"
    if not python.exists():
        return
    with log.open("wb") as file:
        subprocess.Popen(  # noqa: S603 -- our own program
            ["nice", "-n", "19", python, ROOT / "scripts" / "archive_classes.py"],  # noqa: S607
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
