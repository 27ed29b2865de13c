"""``make run``: photos into the bucket, one run of the DAG, a summary."""

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from threading import Thread

from fruits.errors import ExitCode, FruitsError
from fruits.run import DAG_ID
from fruits.run.lease import current_lease, release_lease
from fruits.run.state import run_key
from fruits.serve.summary import as_text, read_summary
from fruits.settings import Settings, holds_secret
from local.airflow import migrate, run_dag
from local.classes import archive_classes
from local.mirror import mirror
from local.stack import environment_of, in_use, running_stack


def run(images: Path | None, data: Path, summary_path: Path) -> int:
    """Bring the tables up to date with a folder of photos; returns an exit code.

    The summary and the report replace those of the run before when they are whole. Each names its run.
    """
    from local.ui import running_ui

    start = time.perf_counter()
    report_path = summary_path.with_name("report.html")
    with in_use(data) as alone, running_stack(data) as stack, environment_of(stack):
        settings = Settings.load()
        if alone and not running_ui(stack.data) and (lease := current_lease(settings)):  # a killed run's
            release_lease(settings, lease.run)
        _say(f"S3 server on {stack.endpoint}, data in {stack.data}")
        log = stack.data / "logs" / f"run-{time.strftime('%Y%m%dT%H%M%S')}.log"
        log.parent.mkdir(exist_ok=True)

        imports = Thread(target=_import_report)

        def get_ready() -> None:
            with ThreadPoolExecutor(1) as beside:
                migrated = beside.submit(migrate, stack)
                _upload(images or _generated(data / "photos"), settings)
                migrated.result()
            imports.start()  # this process has nothing to do while Airflow works
            _say(f"running the DAG {DAG_ID} through Airflow; full log in {log}")

        conf = {"settle_seconds": 0, "allow_deletes": True, **_requested()}
        ended = run_dag(stack, DAG_ID, conf, log, _say, before=get_ready)
        imports.join()
        reported = ended.run_id is not None and _write_report(settings, run_key(ended.run_id), report_path)
        if not ended.succeeded or ended.run_id is None:
            for error in ended.errors or (f"the run failed; see {log}",):
                print(f"\n{error}", file=sys.stderr)
            if reported:
                print(f"\nWhat the run did until then: {report_path}", file=sys.stderr)
            if summary_path.exists():
                print(f"\n{summary_path} is that of an earlier run; `run_id` in it names that run.", file=sys.stderr)
            return ExitCode.BAD_INPUT if ended.errors else ExitCode.UNEXPECTED
        summary = read_summary(settings, run_key(ended.run_id))
    summary["wall_seconds"] = round(time.perf_counter() - start, 1)
    _replace(summary_path, json.dumps(summary, indent=2) + "\n")
    print(f"\n{as_text(summary)}")
    print(f"  summary     {summary_path}")
    if reported:
        print(f"  report      {report_path} (open it in a browser)")
    archive_classes(data)
    print("\nNext: `make run IMAGES=/your/folder` for your own photos, `make ui` for Airflow's UI,")
    print("docs/data.md to query the tables. `make stop` ends the S3 server.")
    return ExitCode.OK


def _import_report() -> None:
    """Import what the report takes."""
    for name in ("fruits.serve.report", "pyiceberg.catalog.sql", "pyiceberg.io.pyarrow"):
        import_module(name)


def _write_report(settings: Settings, slug: str, path: Path) -> bool:
    """Write the run's page; False when there is none. A page that fails must not hide how the run itself ended."""
    from fruits.serve.report import UnknownRunError, read_run, render

    try:
        page = render(read_run(settings, slug))
    except UnknownRunError:  # the run ended before its plan
        return False
    except FruitsError as error:
        _say(f"There is no report: {error}")
        return False
    _replace(path, page)
    return True


def _replace(path: Path, text: str) -> None:
    """Write a file by one rename: a reader meets the old file or the new file, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _requested() -> dict[str, str]:
    """The backbone, weights and precision of the shell: `FRUITS_BACKBONE=MobileNetV2 make run`."""
    names = {name: f"FRUITS_{name.upper()}" for name in ("backbone", "weights", "precision")}
    given = {name: os.environ.get(variable, "") for name, variable in names.items()}
    # Airflow keeps params. The run finds an address with a signature in its environment.
    return {name: value for name, value in given.items() if value and not holds_secret(value)}


def _generated(folder: Path) -> Path:
    from sample_photos import generate

    drawn = folder.with_name("photos-drawn")
    if not drawn.exists():  # draw once only: photos that a person adds, replaces or deletes there stay so
        _say(f"drawing photos into {folder} (IMAGES=/some/folder takes your own)")
        generate(folder, progress=_every_second("photos drawn"))
        drawn.touch()
    return folder


def _upload(photos: Path, settings: Settings) -> None:
    done = mirror(photos, settings, _every_second("photos compared with the bucket"))
    _say(
        f"{photos} -> s3://{settings.bucket}/{settings.prefix}: {done.uploaded:,} uploaded, {done.removed:,} removed, "
        f"{done.unchanged:,} as they were"
    )
    if done.removed:  # the person chose the folder, so nobody else has to approve
        _say(f"photos that are not in {photos}, so their rows leave the tables: {done.removed:,}")
    for line in done.folder.remarks():
        _say(f"  {line}")


def _every_second(unit: str) -> Callable[[int, int], None]:
    last: float | None = None
    shown = False

    def report(done: int, total: int) -> None:
        nonlocal last, shown
        now = time.monotonic()
        if last is None:  # the clock starts with the first photo, not with the listing before
            last = now
        if now - last > 1 or (shown and done == total):
            last, shown = now, True
            _say(f"  {done:,}/{total:,} {unit}")

    return report


def _say(line: str) -> None:
    print(line, flush=True)
