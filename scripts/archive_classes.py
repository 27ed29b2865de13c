"""Make the archive of Spark's classes that ``spark-submit`` of the jobs environment maps, so that a job starts sooner.

A driver loads some 19,000 classes from 290 jars, and checks each. A JVM that maps them from an archive starts a job in
about half the time of the CPU. The archive is what one JVM had loaded after all three jobs of a run over drawn photos,
with an S3 server and a lake of its own. That takes a minute or two; `make ui` and `make run` start it in the background
when there is none. ``scripts/setup.py`` binds its name to Java and jars.
"""

import fcntl
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SUBMIT = ROOT / ".venvs" / "jobs" / "bin" / "spark-submit"
LIGHT = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_PHOTOS = 24
_JOBS = "jobs"


def main() -> int:
    """Make the archive unless it is there, or another process makes it. SIGTERM, of `make stop`, leaves nothing."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    archive = archive_of(SUBMIT)
    with (archive.parent / "classes.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        return 0 if archive.exists() else make(archive)


def archive_of(submit: Path) -> Path:
    """The archive that a ``spark-submit`` of ours maps, whether it is there or not."""
    line = re.search(r"^export FRUITS_CLASS_ARCHIVE=(.+)$", submit.read_text(), re.MULTILINE)
    if line is None:
        raise SystemExit(f"{submit}: it names no archive of classes; run `make setup`")
    return Path(shlex.split(line[1])[0])


def make(archive: Path) -> int:
    """Run the jobs in a JVM that leaves its classes; the archive appears whole or not at all."""
    from local.stack import environment_of, temporary_stack

    part = archive.with_suffix(".part")
    part.unlink(missing_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="fruits-classes-") as folder,
        temporary_stack(Path(folder)) as stack,
        environment_of(stack),
    ):
        options = ["--master", "local[2]", "--conf", "spark.ui.enabled=false", "--driver-java-options", LIGHT]
        variables = {name: value for name, value in os.environ.items() if name != "SPARK_CONF_DIR"}
        variables |= {"SPARK_SUBMIT_OPTS": f'"-XX:ArchiveClassesAtExit={part}"', "PYTHONPATH": str(ROOT)}
        done = subprocess.run([SUBMIT, *options, __file__, _JOBS], env=variables, check=False)  # noqa: S603 -- our own program
    if done.returncode == 0 and part.exists():
        part.replace(archive)
        return 0
    part.unlink(missing_ok=True)
    return done.returncode or 1


def run_jobs() -> None:
    """The jobs of two runs in this process: all photos, then a new, an overwritten and a deleted photo."""
    from pyspark import SparkContext

    from fruits.backbones.stage import stage
    from fruits.lake.catalog import Lake, spark_configuration
    from fruits.settings import Settings
    from fruits.spark.session import start_session
    from fruits.stores import photo_store, write_bytes
    from sample_photos import LABELS, draw

    settings = Settings.load()
    stage(settings)
    Lake.open(settings)
    store = photo_store(settings)

    def put(number: int, drawn: int) -> str:
        label = LABELS[number % 3]
        key = f"{'Test' if number % 4 == 0 else 'Training'}/{label}/{number}.jpg"
        write_bytes(store, key, draw(label, "Training", drawn, size=(100, 100)))
        return key

    spark = start_session("fruits classes", spark_configuration(settings))
    keys = [put(number, number) for number in range(_PHOTOS)]
    run_once(settings, "first")
    put(1, _PHOTOS)
    put(_PHOTOS + 1, _PHOTOS + 1)
    store.delete(keys[2])
    run_once(settings, "second")
    spark.stop()
    gateway: Any = SparkContext._gateway  # noqa: SLF001 -- PySpark has no public way to wait for its JVM
    gateway.proc.stdin.close()
    gateway.proc.wait()  # it writes the archive as it ends


def run_once(settings: "Settings", run_id: str) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Plan, all three jobs as they are, and publish."""
    from fruits.run.request import resolve_request
    from fruits.run.state import run_key
    from fruits.steps.plan import plan_run
    from fruits.steps.publish import publish_run

    plan_run(settings, resolve_request({"allow_deletes": True}, settings), run_id)
    for job in ("featurize", "pca", "validate"):
        if code := runpy.run_path(str(ROOT / "spark_jobs" / f"{job}.py"))["main"](["--run", run_key(run_id)]):
            raise SystemExit(code)
    publish_run(settings, run_key(run_id))


if __name__ == "__main__":
    if sys.argv[1:] == [_JOBS]:  # submitted by `make`
        run_jobs()
    else:
        sys.exit(main())
