"""Which release of Fruits a process runs. A worker of another release would make other rows, and nobody would notice.

Two comparisons, by two digests of our sources:

- Executors compare ``release()`` with their driver. It covers ``EXECUTOR_SOURCES``: what executors import, so what
  makes rows there. An edit of the command line or of a gate's message leaves the workers of a cluster in use.
- The driver of a job elsewhere compares ``library_release()`` with Airflow. It covers all that a driver may run: a
  driver fits the PCA, commits to the tables, and exchanges documents with Airflow's tasks.
"""

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
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
"""The variable with which Airflow gives its own library's release to the driver of a job elsewhere."""

EXECUTOR_SOURCES = (
    "__init__.py",
    *("analysis/__init__.py", "analysis/labels.py", "analysis/moments.py", "analysis/pca.py"),
    "analysis/shrinkage.py",
    *("backbones/__init__.py", "backbones/card.py", "backbones/runtime.py", "backbones/stage.py"),
    "backbones/weights.py",
    *("denials.py", "disks.py", "errors.py"),
    *("lake/__init__.py", "lake/files.py", "lake/places.py", "lake/schemas.py"),
    *(
        "photos/__init__.py",
        "photos/boxes.py",
        "photos/decode.py",
        "photos/entry.py",
        "photos/featurize.py",
        "photos/fetch.py",
        "photos/headers.py",
        "photos/ignore.py",
        "photos/keys.py",
    ),
    "photos/quarantine.py",
    *("run/__init__.py", "run/manifest.py"),
    "settings.py",
    *("spark/__init__.py", "spark/executors.py", "spark/release.py"),
    "stores.py",
    "text.py",
)
"""The files of ``fruits`` that an executor imports: ``spark/executors.py`` and all that it needs."""

NOT_A_DRIVERS = ("__main__.py", "airflow/", "cli/", "serve/", "steps/")
"""The parts of ``fruits`` that no job imports (contract `jobs` in pyproject.toml)."""


@cache
def release() -> Mapping[str, str]:
    """What decides the rows of an executor, by name: our sources there, Python, and what does the arithmetic."""
    import pyspark

    return {
        "fruits": _versioned(source_digest(files(fruits), EXECUTOR_SOURCES)),
        "Python": "{}.{}".format(*sys.version_info),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "Pillow": PIL.__version__,
        "pi-heif": _version("pi-heif"),
        "ai-edge-litert": _version("ai-edge-litert"),
        "pyspark": pyspark.__version__,  # not its metadata: a cluster's executors have it from their Spark
    }


@cache
def library_release() -> str:
    """The version of ``fruits`` with a digest of what a job's driver may run: two checkouts may have one version."""
    package = files(fruits)
    return _versioned(source_digest(package, driver_sources(package)))


def _versioned(digest: str) -> str:
    return f"{fruits.__version__}+{digest}"


def check_release(environment: Mapping[str, str]) -> None:
    """Compare a job's code with the release that started the job. Skip the check when no expected release is set.

    Raises:
        FruitsError: with both releases and what to upload again.
    """
    expected = environment.get(EXPECTED_RELEASE)
    if expected and expected != library_release():
        raise FruitsError(
            f"Airflow has fruits {expected}, but FRUITS_EMR_CODE has {library_release()}; upload jobs-env.tar.gz and "
            "spark_jobs/ of Airflow's release there (docs/emr-serverless.md)"
        )


def same_release(function: BatchFunction) -> BatchFunction:
    """Wrap ``function`` for executors: an executor of the driver's release runs it, any other refuses.

    A Python worker computes its release once. After that a task costs a comparison.
    """
    from pyspark import cloudpickle

    driver, packed = dict(release()), cloudpickle.dumps(function)  # type: ignore[no-untyped-call]

    # `checked` travels by value and imports what it uses: a worker may lack our library, and what `function` refers to.
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


def source_digest(package: Traversable, names: Iterable[str]) -> str:
    """The first digits of a sha256 over the named files of a package, in a folder or in an archive."""
    total = hashlib.sha256()
    for name in sorted(names):
        content = package.joinpath(name).read_bytes()
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


def driver_sources(package: Traversable) -> list[str]:
    """The Python files of the library that the driver of a job may import."""
    return [name for name in _sources(package, "") if not name.startswith(NOT_A_DRIVERS)]


def _sources(folder: Traversable, path: str) -> Iterator[str]:
    for item in folder.iterdir():
        if item.is_dir():
            yield from _sources(item, f"{path}{item.name}/")
        elif item.name.endswith(".py"):
            yield f"{path}{item.name}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
