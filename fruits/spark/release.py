"""Which release of the jobs a process runs: workers of another one would make other rows without anybody noticing."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from importlib.resources.abc import Traversable

import numpy as np
import PIL
import pyarrow as pa

import fruits
from fruits.errors import EXECUTOR_ERROR, FruitsError

Batches = Iterator[pa.RecordBatch]
BatchFunction = Callable[[Batches], Batches]

EXPECTED_RELEASE = "FRUITS_RELEASE"
"""The variable by which the driver of a job elsewhere is told the release of Airflow's library."""


@cache
def release() -> Mapping[str, str]:
    """What decides the rows that a process makes, by name: our own sources, Python, and what does the arithmetic."""
    import pyspark

    return {
        "fruits": library_release(),
        "Python": "{}.{}".format(*sys.version_info),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "Pillow": PIL.__version__,
        "ai-edge-litert": _version("ai-edge-litert"),
        "pyspark": pyspark.__version__,  # not its metadata: a cluster's executors have it from their Spark
    }


@cache
def library_release() -> str:
    """The version of ``fruits`` with a digest of its sources: two checkouts may have one version."""
    return f"{fruits.__version__}+{source_digest(files(fruits))}"


def check_release(environment: Mapping[str, str]) -> None:
    """See that a job's code is of the release that started it; where nobody told the job, there is nothing to see.

    Raises:
        FruitsError: with both releases and what to upload again.
    """
    asked = environment.get(EXPECTED_RELEASE)
    if asked and asked != library_release():
        raise FruitsError(
            f"Airflow has fruits {asked}, but FRUITS_EMR_CODE has {library_release()}; upload jobs-env.tar.gz and "
            "spark_jobs/ of Airflow's release there (docs/emr-serverless.md)"
        )


def same_release(function: BatchFunction) -> BatchFunction:
    """A function for executors that runs ``function`` where the release is the driver's, and refuses elsewhere.

    A Python worker finds out what it is once; after that a task costs a comparison.
    """
    from pyspark import cloudpickle

    driver, packed = dict(release()), cloudpickle.dumps(function)  # type: ignore[no-untyped-call]

    # It travels by value and imports what it uses: a worker may lack anything of ours, and what `function` refers to.
    def checked(batches: Batches) -> Batches:
        import socket

        from pyspark import cloudpickle

        try:
            from fruits.spark.release import release

            worker = dict(release())
        except ImportError as error:
            worker = {**driver, "fruits": f"none that can be asked ({error})"}
        other = [name for name in driver if worker.get(name) != driver[name]]
        if other:
            there = ", ".join(f"{name} {worker.get(name)}" for name in other)
            here = ", ".join(f"{name} {driver[name]}" for name in other)
            raise RuntimeError(
                f"{EXECUTOR_ERROR}worker {socket.gethostname()} is of another release than the driver: it has {there}; "
                f"the driver has {here}. Rebuild the workers' image (make up) or pack their environment again (make "
                "package)."
            )
        yield from cloudpickle.loads(packed)(batches)

    return checked


def source_digest(package: Traversable) -> str:
    """The first digits of a sha256 over the Python files of a package, in a folder or in an archive."""
    total = hashlib.sha256()
    for name, file in sorted(_sources(package, "")):
        content = file.read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


def _sources(folder: Traversable, path: str) -> Iterator[tuple[str, Traversable]]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _sources(item, f"{path}{item.name}/")
        elif item.name.endswith(".py"):
            yield f"{path}{item.name}", item


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
