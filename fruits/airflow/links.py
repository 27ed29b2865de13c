"""Links from a task in Airflow's UI to the run's report and to Spark's history server."""

from typing import Any
from urllib.parse import quote

from airflow.sdk import BaseOperatorLink
from airflow.sdk.configuration import conf

from fruits.settings import DagSettings


class ReportLink(BaseOperatorLink):
    """The report of the task's run."""

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 -- Airflow's signature
        """The page's address; the page demands Airflow's session."""
        base = conf.get("api", "base_url", fallback="http://localhost:8080").rstrip("/")
        return f"{base}/fruits/dags/{quote(ti_key.dag_id)}/runs/{quote(ti_key.run_id)}"


class SparkHistoryLink(BaseOperatorLink):
    """Spark's history server, where FRUITS_SPARK_HISTORY names one."""

    name = "Spark history"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 -- Airflow's signature
        """The server's address; empty where there is none."""
        return DagSettings.of_alerts().spark_history or ""
