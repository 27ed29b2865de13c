"""Which errors fail a task at once, and which ones Airflow retries."""

from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowFailException

from fruits.errors import FruitsError, TransientError


@contextmanager
def non_retryable() -> Iterator[None]:
    """Fail the task at once on an error that a person must fix: a retry would meet the same error.

    A ``TransientError``, and any error that is not a ``FruitsError``, passes through, so Airflow retries the task.
    """
    from fruits.denials import denials_explained

    try:
        with denials_explained():
            yield
    except TransientError:
        raise
    except FruitsError as error:
        raise AirflowFailException(str(error)) from error
