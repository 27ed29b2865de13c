"""``python -m sample_photos``: draw a folder of photos."""

import argparse
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

from fruits.errors import ExitCode, FruitsError
from sample_photos.folder import DEFAULT_START, generate
from sample_photos.recipes import FRUITS


def main(argv: Sequence[str] | None = None) -> int:
    """Draw a folder of photos from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_photos", description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to write; made when missing")
    parser.add_argument("--train", type=int, default=24, help="photos of each kind under Training (%(default)s)")
    parser.add_argument("--test", type=int, default=8, help="photos of each kind under Test (%(default)s)")
    parser.add_argument("--kinds", type=int, default=len(FRUITS), help="kinds of fruit (%(default)s, all)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other photos (%(default)s)")
    parser.add_argument("--no-broken", action="store_true", help="leave out the files that belong in quarantine")
    parser.add_argument("--dated", action="store_true", help="put the photos under dt=<date>/ folders")
    parser.add_argument("--start", type=date.fromisoformat, default=DEFAULT_START, help="first date (%(default)s)")
    parser.add_argument("--days", type=int, default=7, help="number of dates (%(default)s)")
    args = parser.parse_args(argv)
    try:
        written = generate(
            args.folder,
            kinds=args.kinds,
            per_kind_train=args.train,
            per_kind_test=args.test,
            broken=not args.no_broken,
            seed=args.seed,
            layout="dated" if args.dated else "plain",
            start=args.start,
            days=args.days,
            progress=_show,
        )
    except FruitsError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stderr.write(f"\n{args.folder}: {written} written, the others were there already.\n")
    return ExitCode.OK


def _show(done: int, total: int) -> None:
    if done % 16 == 0 or done == total:
        sys.stderr.write(f"\r{done} of {total} files")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
