"""What Spark says of workers and masters, in words for a person."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from fruits.errors import EXECUTOR_ERROR, DeniedError, FruitsError, TransientError
from fruits.spark.cluster import (
    _check_reachable,
    _where_to_look,
    executor_errors,
    explain_failure,
    use_executors_python,
)

TASK = "Task 0 in stage 1.0 failed 4 times: Lost task 0.3 in stage 1.0 (TID 7) (10.0.0.5 executor 1): "
PYTHON = (
    "PySparkRuntimeError: [PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.12 than that in driver: "
    "3.11, PySpark cannot run with different minor versions."
)
PACKAGE = "PySparkImportError: [PACKAGE_NOT_INSTALLED] PyArrow >= 15.0.0 must be installed; however, it was not found."
SPARK = (
    "java.io.InvalidClassException: org.apache.spark.rdd.RDD; local class incompatible: stream classdesc "
    "serialVersionUID = 1, local class serialVersionUID = 2"
)


def test_executors_start_the_python_that_spark_submit_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/driver/python")
    use_executors_python({})  # `get` is all that it needs
    assert os.environ["PYSPARK_PYTHON"] == "/driver/python"
    use_executors_python({"spark.pyspark.python": "./environment/bin/python"})
    assert os.environ["PYSPARK_PYTHON"] == "./environment/bin/python"


@pytest.mark.parametrize(
    ("account", "told"),
    [
        (
            PYTHON,
            "worker 10.0.0.5: its Python is 3.12, the driver's is 3.11; executors need the jobs environment",
        ),
        (
            'java.io.IOException: Cannot run program "./environment/bin/python": error=2, No such file or directory',
            "worker 10.0.0.5: there is no Python at ./environment/bin/python; executors need the jobs environment",
        ),
        (
            "Traceback ...\nModuleNotFoundError: No module named 'pyarrow'\n",
            "worker 10.0.0.5: No module named 'pyarrow'; executors need the jobs environment",
        ),
        (
            PACKAGE,
            "worker 10.0.0.5: PyArrow >= 15.0.0 must be installed; however, it was not found. executors need",
        ),
        (
            SPARK,
            "worker 10.0.0.5: its Spark is of another version than the driver's (org.apache.spark.rdd.RDD; local class",
        ),
        (f"Traceback ...\n{EXECUTOR_ERROR}bucket 'x' is not there\nmore", "bucket 'x' is not there"),
    ],
)
def test_an_executor_that_cannot_be_used_is_a_sentence(account: str, told: str) -> None:
    error = explain_failure(TASK + account)
    assert error is not None
    assert not isinstance(error, TransientError)
    assert str(error).startswith(told)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("account", "told"),
    [
        (
            "Job aborted due to stage failure: Master removed our application: FAILED",
            "cluster: executors could not be started, or ended again and again (FAILED); the reason is in",
        ),
        ("Master removed our application: KILLED", "cluster: the application was killed, maybe on the master's page"),
        (
            "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\nat ...",
            "cluster: the master did not take the application, or ended it.",
        ),
        (
            f'{TASK}java.io.IOException: Cannot run program "python": error=12, Cannot allocate memory\nat ...',
            'worker 10.0.0.5: Cannot run program "python": error=12, Cannot allocate memory',
        ),
        (
            "Traceback ...\nfruits.errors.TransientError: S3 server x: it does not answer\nmore",
            "S3 server x: it does not answer",
        ),
        (
            (
                "org.apache.iceberg.jdbc.UncheckedSQLException: Failed to connect: jdbc:postgresql://db\nCaused by: "
                "org.postgresql.util.PSQLException: Connection to db:5432 refused.\n\tat org.postgresql"
            ),
            "catalog database: Connection to db:5432 refused. Check FRUITS_CATALOG_URI",
        ),
        (
            "org.postgresql.util.PSQLException: FATAL: terminating connection due to administrator command\n\tat org",
            "catalog database: FATAL: terminating connection due to administrator command",
        ),
        (
            "org.postgresql.util.PSQLException: ERROR: could not serialize access due to concurrent update\n\tat org",
            "catalog database: ERROR: could not serialize access due to concurrent update",
        ),
        (
            "org.sqlite.SQLiteException: [SQLITE_BUSY] The database file is locked (database is locked)\n\tat",
            "catalog database: [SQLITE_BUSY] The database file is locked (database is locked)",
        ),
        (
            f'{TASK}java.io.IOException: Cannot run program "python": error=13, Permission denied',
            'worker 10.0.0.5: Cannot run program "python": error=13, Permission denied',
        ),
    ],
)
def test_what_may_pass_is_tried_again(account: str, told: str) -> None:
    error = explain_failure(account)
    assert isinstance(error, TransientError)
    assert str(error).startswith(told)
    with pytest.raises(TransientError), executor_errors():
        raise RuntimeError(account)


@pytest.mark.parametrize(
    ("master", "place"), [("spark://host:7077", "the master's page"), ("yarn", "the cluster manager")]
)
def test_who_waits_for_executors_is_sent_to_what_there_is(master: str, place: str) -> None:
    told = _where_to_look(master)
    assert told.startswith(f"See {place}: ")
    assert ("work/<application>" in told) == (master != "yarn")


def test_a_denial_of_an_executor_stays_one() -> None:
    error = explain_failure(f"{TASK}Traceback ...\nfruits.errors.DeniedError: S3 server x: it denies s3:GetObject\n")
    assert isinstance(error, DeniedError)
    assert str(error) == "S3 server x: it denies s3:GetObject"


def test_a_defect_stays_one() -> None:
    assert explain_failure(f"{TASK}java.lang.NullPointerException") is None
    assert explain_failure('org.postgresql.util.PSQLException: ERROR: relation "iceberg_tables" does not exist') is None
    with pytest.raises(ZeroDivisionError), executor_errors():
        _ = 1 / 0


def test_an_error_of_ours_on_the_driver_stays_as_it_is() -> None:
    with pytest.raises(TransientError, match="^not now$"), executor_errors():
        raise TransientError("not now")


@pytest.fixture
def listening() -> Iterator[str]:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_one_of_several_masters_is_enough(listening: str, refusing: str) -> None:
    _check_reachable("spark://...", [refusing, listening])


def test_a_master_that_does_not_answer_may_do_so_later(refusing: str) -> None:
    with pytest.raises(
        TransientError, match=rf"spark://{refusing} does not answer \({refusing}: Connection refused\).*spark_d"
    ):
        _check_reachable(f"spark://{refusing}", [refusing])


@pytest.mark.parametrize("address", ["spark-master", "spark-master:", ":7077", "spark-master:web"])
def test_an_address_without_host_or_port_is_mendable(address: str) -> None:
    with pytest.raises(FruitsError, match="expected spark://host:port; correct the connection spark_default") as error:
        _check_reachable(f"spark://{address}", [address])
    assert not isinstance(error.value, TransientError)
