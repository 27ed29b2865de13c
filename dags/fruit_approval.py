"""### Fruit approval: a person decides what a run must not decide

A run of `fruit_features` that would remove or replace much goes on without that part, and asks: more deletions than the
bounds allow, the last photos of a label, a large rebuild or refit, a switch of backbone, required gates that failed.
Each new question starts a run of this DAG, which waits for the answer and holds nothing meanwhile: no worker, no lease.

| task | its story | what it does |
|---|---|---|
| `question` | `fruits/airflow/approvals.py` | looks up the question: the param `digest`, else the newest one; when nothing waits, skips the rest |
| `decide` | Airflow's own ApprovalOperator | waits for *Approve* or *Reject* under *Required Actions*; after seven days it takes *Reject* |
| `record` | `fruits/airflow/approvals.py` | writes down who approved, when and why; skipped on *Reject*, which leaves the question, and when the question needs no answer any more: its log says who approved, or that a run took the question back |

**What an approval does.** The next run of `fruit_features` uses the approval if that run finds exactly the same: the same
missing photos, or the same findings of the same run. Otherwise the run asks again. The publication records the approval.
The log of `record` says what carries the approval out:

| approved | what to do |
|---|---|
| deletions | nothing; the next sweep removes the rows |
| gates | clear the task `validate` of the run that failed |
| rebuild | clear the run that failed from `wait_for_lease` |
| refit | clear the run that failed, if any, from `wait_for_lease`. Otherwise a sweep refits; components of a run's own param need a run with the same param |
| backbone | nothing, if the settings name it; otherwise start a run with the same params |

**When more photos go** before the answer, the question is about another set. It gets a run of this DAG of its own when it
has doubled. Before that, *Approve* of the old set makes `record` red, and starts a run that asks about the set of now.

**What a rejection does.** Nothing: the rows stay as they are, and `fruits status` goes on naming the question. To withdraw
the question, bring the photos back.

`fruits approve` does the same from a terminal. Start this DAG by hand for a question that was rejected or timed out.
"""  # noqa: E501 -- rows of a table

from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import DAG, Param, get_current_context, task

from fruits.airflow.alerts import alert_failure
from fruits.airflow.errors import non_retryable
from fruits.airflow.tasks import TASK_DEFAULTS

PARAMS = {
    "digest": Param(
        None,
        type=["null", "string"],
        title="Digest",
        description="Which question, by the start of its digest: `fruits status` shows it. Empty: the newest one.",
    ),
}


@task.short_circuit
def question() -> dict[str, str]:
    """Look up the question: see fruits/airflow/approvals.py. An empty answer skips the rest of the run."""
    from fruits.airflow.approvals import find_question

    with non_retryable():
        return find_question(get_current_context()["params"]["digest"])


@task
def record(asked: dict[str, str], decision: dict[str, Any]) -> dict[str, Any]:
    """Write the approval down: see fruits/airflow/approvals.py."""
    from fruits.airflow.approvals import record_decision

    with non_retryable():
        return record_decision(asked["digest"], decision)


with DAG(
    dag_id="fruit_approval",
    description="A person approves deletions, failed gates and large rebuilds",
    doc_md=__doc__,
    schedule=None,  # a task that asks starts a run: fruits/airflow/approvals.py
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 -- as in the other DAGs
    catchup=False,
    is_paused_upon_creation=False,  # a question must reach a person, also when nobody has thought of this DAG
    max_active_runs=1_000,  # a run waits for days, and must not hold back another question
    params=PARAMS,
    on_failure_callback=alert_failure,
    tags=["fruits", "approval"],
    default_args=TASK_DEFAULTS,
) as dag:
    asked = question()
    decide = ApprovalOperator(
        task_id="decide",
        subject="{{ ti.xcom_pull(task_ids='question')['subject'] }}",
        body="{{ ti.xcom_pull(task_ids='question')['body'] }}",
        params={"why": Param("", type="string", title="Why", description="The publication keeps the reason.")},
        defaults=ApprovalOperator.REJECT,
        response_timeout=timedelta(days=7),
    )
    asked >> decide
    record(asked, decide.output)  # type: ignore[arg-type]  # Airflow replaces both by their values
