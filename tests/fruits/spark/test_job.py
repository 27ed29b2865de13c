"""How a Spark job ends: each kind of error has an exit code, for engines that see nothing else of a job."""

import pytest

from fruits.errors import ConflictError, ExitCode, FruitsError, GateError, TransientError
from fruits.spark import job


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FruitsError("x"), ExitCode.BAD_INPUT),
        (GateError("x"), ExitCode.GATE_FAILED),
        (ConflictError("x"), ExitCode.CONFLICT),
        (TransientError("x"), ExitCode.TRANSIENT),
        (ZeroDivisionError("x"), ExitCode.UNEXPECTED),
    ],
    ids=lambda value: getattr(value, "name", type(value).__name__),
)
def test_a_job_ends_with_the_code_of_its_error(folder_lake, monkeypatch, error, code):
    def fail(*_):
        raise error

    monkeypatch.setenv("FRUITS_LAKE", folder_lake.lake)
    monkeypatch.setenv("FRUITS_CATALOG_URI", folder_lake.catalog_uri.get_secret_value())
    monkeypatch.setattr(job, "_run", fail)
    assert job.run_job("featurize", "", lambda _: None, ["--run", "x"]) == code
