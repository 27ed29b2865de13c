"""A run that another publication has overtaken plans again, once: it clears itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from airflow.sdk import Context
from airflow.sdk.exceptions import AirflowException

from fruits.errors import ConflictError

log = logging.getLogger("fruits")


@contextmanager
def replan_on_conflict(context: Context) -> Iterator[None]:
    """Clear the task's run when another run has published since its plan, so that it starts anew with the same conf.

    Once: the conflict of a run that was cleared before, by this or by a person, passes through and fails the task.

    Raises:
        AirflowException: when the run was cleared. Airflow ends this task's process, and starts the task again in its
            turn (Airflow 3.3: a running task that is cleared is "restarting").
    """
    try:
        yield
    except ConflictError as error:
        run = context["dag_run"]
        if run.clear_number:
            raise
        log.warning("%s", error)
        clear_run(run.dag_id, run.run_id)
        raise AirflowException("another run published first; this run was cleared and plans again") from error


def clear_run(dag_id: str, run_id: str) -> None:
    """Clear all tasks of a run, from inside a task: Airflow resets a run that is triggered under an id that exists."""
    from airflow.sdk.execution_time import task_runner  # its connection to Airflow exists only while a task works
    from airflow.sdk.execution_time.comms import TriggerDagRun

    task_runner.SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag_id, run_id=run_id, conf={}, reset_dag_run=True))
