"""Which errors fail a task at once."""

import pytest

from fruits.errors import FruitsError, TransientError

pytestmark = pytest.mark.airflow


def test_an_error_that_a_person_must_fix_is_not_retried() -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from fruits.airflow.errors import non_retryable

    with pytest.raises(AirflowFailException, match="^fix this$"), non_retryable():
        raise FruitsError("fix this")


def test_an_error_that_may_pass_is_retried() -> None:
    from fruits.airflow.errors import non_retryable

    with pytest.raises(TransientError, match="^wait$"), non_retryable():
        raise TransientError("wait")


def test_a_defect_is_retried() -> None:
    from fruits.airflow.errors import non_retryable

    with pytest.raises(ZeroDivisionError), non_retryable():
        _ = 1 / 0
