"""A note on each ended run of ours: what it published, its counts, or why it failed. A listener of Airflow's plugin.

Airflow (3.3) lets no task write the note of its run. So the scheduler writes the note when the run ends, or the API
server when a person ends the run, from the XComs of the run's tasks. A person's note stays.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from airflow.listeners import hookimpl

from fruits.run import DAG_ID

_COUNTS, _ERROR, _PINNED, _PUBLISHED, _WAITS = "counts", "error", "pinned", "return_value", "waits"
_MAX_CHARACTERS = 900  # of Airflow's 1,000


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """Note what a run published, or that there was nothing to do."""
    _write(dag_run)


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """Note why a run failed."""
    _write(dag_run)


def _write(dag_run: Any) -> None:
    """Write the note in the session that ends the run; `airflow dags test` ends a run outside of one."""
    session = session_of(dag_run)
    if session is None or dag_run.dag_id != DAG_ID:
        return
    written = dag_run.dag_run_note
    if written is not None and written.user_id is not None:
        return
    if text := note(xcoms(dag_run, session), again=dag_run.clear_number or 0):
        dag_run.note = text


def session_of(dag_run: Any) -> Any:
    """The database session that a run belongs to; None without one."""
    from sqlalchemy.orm import object_session

    return object_session(dag_run)


def xcoms(dag_run: Any, session: Any) -> dict[tuple[str, str], Any]:
    """What the tasks of a run left, by task and key."""
    from airflow.models.xcom import XComModel

    query = XComModel.get_many(run_id=dag_run.run_id, dag_ids=dag_run.dag_id)
    keys = {_COUNTS, _ERROR, _PINNED, _PUBLISHED, _WAITS}
    rows: Iterable[Any] = session.scalars(query)
    return {(row.task_id, row.key): XComModel.deserialize_value(row) for row in rows if row.key in keys}


def note(values: Mapping[tuple[str, str], Any], *, again: int) -> str:
    """The note of a run: its publication, the pin or its errors, its counts, what waits, how often it was cleared."""
    counts = values.get(("plan", _COUNTS)) or {}
    published = values.get(("publish", _PUBLISHED)) or {}
    waiting = dict.fromkeys(question for (_, key), asked in values.items() if key == _WAITS for question in asked)
    parts = [
        str(published["publication_id"]) if "publication_id" in published else "",
        str(values.get(("plan", _PINNED)) or ""),
        ", ".join(f"{count:,} {action}" for action, count in counts.items() if count),
        *(f"waits for an approval: {question}" for question in waiting),
        *(f"{task}: {error}" for (task, key), error in values.items() if key == _ERROR),
        f"planned again: cleared {again} times" if again and counts else "",
    ]
    return "\n".join(part for part in parts if part)[:_MAX_CHARACTERS]
