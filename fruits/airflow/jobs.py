"""How a task treats its Spark job, on any engine: skip a published run, raise the job's own error."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from fruits.airflow import metrics
from fruits.airflow.errors import non_retryable
from fruits.errors import ConflictError
from fruits.settings import Settings

if TYPE_CHECKING:
    from fruits.run.documents import TaskName

log = logging.getLogger("fruits")


def is_published(settings: Settings, job: "TaskName", run: str) -> bool:
    """Whether the run is published already, so that readers have its rows and the job has nothing to do.

    Always false for maintenance, whose job publishes by itself.

    Raises:
        FruitsError: when the run has not been planned.
    """
    from fruits.run.documents import TASKS
    from fruits.steps.publish import published_run

    publication = published_run(settings, run) if job in TASKS else None
    if publication is None:
        return False
    log.info("%s: the run is published already, as %s", job, publication.publication_id)
    return True


def send_metrics(settings: Settings, job: "TaskName", run: str) -> None:
    """Send what a job measured, by its document; a document that cannot be read costs the metrics only."""
    from fruits.run.documents import read_documents

    try:
        metrics.send(metrics.of_job(job, read_documents(settings, run)))
    except Exception as error:  # noqa: BLE001 -- metrics must not fail a job that succeeded
        log.warning("%s: no metrics: %s", job, error)


@contextmanager
def reraise_job_error(settings: Settings, job: "TaskName", run: str, started: datetime) -> Iterator[None]:
    """Re-raise a failed job's own error, from its run document; do not retry an error that a person must fix.

    A job that found that another run had published raises ``ConflictError``. The original exception passes through when
    the job left no error since ``started``: it died before writing its document, or the document is of an earlier
    attempt.
    """
    from fruits.run.documents import read_document

    try:
        yield
    except Exception as error:
        with non_retryable():
            document = read_document(settings, run, job)
        if document is None or document.state != "failed" or document.started_at < started:
            raise
        if document.conflict:
            raise ConflictError(str(document.error)) from error
        exception = AirflowException if document.retryable else AirflowFailException
        raise exception(document.error) from error
