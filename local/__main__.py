"""``python -m local run|ui|put|airflow|stop``: what `make` calls for the embedded stack."""

import argparse
import signal
import sys
from pathlib import Path

from fruits.errors import FruitsError
from local.airflow import ROOT


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns an exit code."""
    parser = argparse.ArgumentParser(prog="python -m local", description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of everything the stack keeps")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="photos into the bucket, one run of the DAG, a summary")
    run.add_argument("--images", type=Path, help="folder of your photos; without it, generated ones")
    run.add_argument(
        "--summary", type=Path, default=ROOT / "build" / "summary.json", help="where the summary goes (%(default)s)"
    )
    commands.add_parser("ui", help="S3 server and Airflow with its UI, in the background")
    commands.add_parser("stop", help="end what `ui` started, and the S3 server")
    put = commands.add_parser("put", help="one photo into the bucket, on the stack of `ui`")
    put.add_argument("photo", type=Path)
    put.add_argument("key", help="object key, such as Training/Kiwi/1.jpg")
    airflow = commands.add_parser("airflow", help="Airflow's own command line, on the stack of `ui`")
    airflow.add_argument("arguments", nargs=argparse.REMAINDER, help="such as: backfill create --help")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # run the finally blocks, which end what was started
    try:
        return _command(arguments)
    except FruitsError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nInterrupted; run it again to go on.", file=sys.stderr)
        return 130


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "run":
        from local.run import run

        return run(arguments.images and arguments.images.expanduser(), arguments.data, arguments.summary)
    from local import ui

    if arguments.command == "put":
        return ui.put(arguments.data, arguments.photo, arguments.key)
    if arguments.command == "airflow":
        return ui.airflow_command(arguments.data, arguments.arguments)
    return ui.start(arguments.data) if arguments.command == "ui" else ui.stop(arguments.data)


if __name__ == "__main__":
    sys.exit(main())
