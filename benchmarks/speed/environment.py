"""The machine and the software under a benchmark, and how busy the machine was with other things."""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.speed.photos import REAL
from fruits import __version__

PACKAGES = ("pyspark", "ai-edge-litert", "numpy", "pyarrow", "pyiceberg", "obstore", "pillow", "keras")


@contextmanager
def write_environment(path: Path) -> Iterator[None]:
    """Write what is known before the block, and after it the load of the machine as well."""
    known: dict[str, Any] = {
        "fruits": __version__,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "photos": "real" if REAL.is_dir() else "drawn",
        "load_before": os.getloadavg(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")
    try:
        yield
    finally:
        known |= {"load_after": os.getloadavg(), "finished_at": datetime.now(UTC).isoformat(timespec="seconds")}
        path.write_text(json.dumps(known, indent=2) + "\n")


def processor() -> str:
    """The processor's name as Linux knows it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
