"""What every DAG of the project keeps to, so that the person in front of Airflow's UI can rely on it."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.environments import ROOT, unconfigured

pytestmark = pytest.mark.airflow

DAGS = ROOT / "dags"
CHAIN = [
    "prepare", "wait_for_images", "uploads_settled", "wait_for_lease",
    "plan", "featurize", "pca", "validate", "publish",
]  # fmt: skip
HEAVY = {"tensorflow", "keras", "pyspark", "pyiceberg", "sklearn", "pandas", "scipy", "ai_edge_litert", "matplotlib"}

PARSE = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
bag = DagBag(sys.argv[1])
print(json.dumps({"dags": sorted(bag.dags), "errors": bag.import_errors, "modules": sorted(sys.modules)}))
"""


def bare_environment(home: Path) -> dict[str, str]:
    """An environment in which nothing of ours is configured but where Airflow finds DAGs and plugins."""
    return unconfigured(
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        AIRFLOW_HOME=str(home),
        AIRFLOW__CORE__DAGS_FOLDER=str(DAGS),
        AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
    )


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process that parses dags/ and does nothing else ends up with."""
    home = tmp_path_factory.mktemp("parsed")
    done = subprocess.run(
        [sys.executable, "-c", PARSE, str(DAGS)],
        env=bare_environment(home), cwd=home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The DAGs of dags/, by id."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in bare_environment(tmp_path_factory.mktemp("airflow")).items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(ROOT / "plugins"))
        from airflow.dag_processing.dagbag import DagBag

        bag = DagBag(str(DAGS))
        assert bag.import_errors == {}
        return dict(bag.dags)


@pytest.fixture
def chain(dags: dict[str, Any]) -> Any:
    """The DAG fruit_features."""
    return dags["fruit_features"]


def test_every_dag_file_parses_without_any_setting(parsed: dict[str, Any]) -> None:
    assert parsed["errors"] == {}
    assert set(parsed["dags"]) == {path.stem for path in DAGS.glob("*.py")}


def test_parsing_imports_nothing_heavy(parsed: dict[str, Any]) -> None:
    assert HEAVY & {name.partition(".")[0] for name in parsed["modules"]} == set()


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("fruit_approval", ("airflow.providers.amazon.aws.hooks", "fruits.settings")),
        ("fruit_maintenance", ("airflow.providers.amazon.aws.hooks",)),
        ("fruit_watchdog", ("airflow.providers.apache.spark.operators", "fruits.settings")),
    ],
)
def test_a_dag_file_imports_nothing_that_only_other_dags_need(
    tmp_path: Path, name: str, absent: tuple[str, ...]
) -> None:
    """Airflow parses each file in a process of its own. The plugin has imports of its own."""
    program = f"import sys, {name}; print(*(module for module in {absent} if module in sys.modules))"
    changed = {"AIRFLOW__CORE__PLUGINS_FOLDER": str(tmp_path), "PYTHONPATH": f"{DAGS}:{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=bare_environment(tmp_path) | changed, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == []


def test_every_dag_says_whose_it_is_and_what_it_does(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.tags, dag.dag_id
        assert dag.description, dag.dag_id
        assert len(dag.doc_md) > 200, f"{dag.dag_id}: doc_md is the operator's manual"
        for task in dag.tasks:
            assert task.owner not in ("", "airflow"), task.task_id


def test_the_manual_names_every_task(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert [task for task in dag.task_ids if f"`{task}`" not in dag.doc_md] == [], dag.dag_id


def test_every_task_is_tried_again_with_growing_pauses_and_ends_some_day(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for task in dag.tasks:
            assert task.retries >= 1, task.task_id
            assert task.retry_exponential_backoff, task.task_id
            assert timedelta(0) < task.retry_delay <= task.max_retry_delay <= timedelta(hours=1), task.task_id
            assert task.execution_timeout is not None, task.task_id
            assert task.execution_timeout > timedelta(0), task.task_id


def test_no_dag_catches_up_by_itself(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        assert dag.catchup is False, dag.dag_id
        assert all(task.start_date is not None for task in dag.tasks), dag.dag_id


def test_every_param_explains_itself_and_its_default_is_valid(dags: dict[str, Any]) -> None:
    for dag in dags.values():
        for name in dag.params:
            param = dag.params.get_param(name)
            assert param.schema.get("type") or param.schema.get("anyOf"), name
            assert param.schema.get("title"), name
            assert param.description, name
            assert param.resolve() == param.value, name


def test_a_param_of_the_wrong_type_is_refused(chain: Any) -> None:
    from airflow.sdk.exceptions import ParamValidationError

    for name, wrong in {
        "limit": 0,
        "mode": "everything",
        "n_components": 0,
        "settle_seconds": -1,
        "keys": [7],
    }.items():
        with pytest.raises(ParamValidationError):
            chain.params.get_param(name).resolve(wrong)


def test_the_params_are_those_that_a_run_understands(chain: Any, tmp_path: Path) -> None:
    from fruits.run.request import RunParams, RunRequest, resolve_request
    from fruits.settings import Settings

    settings = Settings.load(lake=f"file://{tmp_path}", catalog_uri=f"sqlite:///{tmp_path}/catalog.db")
    assert set(chain.params) == set(RunParams.model_fields)
    defaults = resolve_request(chain.params.dump(), settings)
    assert defaults == RunRequest(prefix="")


def test_the_chain_is_in_order(chain: Any) -> None:
    assert sorted(chain.task_ids) == sorted(CHAIN)
    for before, after in zip(CHAIN, CHAIN[1:], strict=False):
        assert after in chain.get_task(before).downstream_task_ids, f"{before} >> {after}"
    assert [task.task_id for task in chain.topological_sort()] == CHAIN


def test_a_red_task_makes_a_red_run(chain: Any) -> None:
    """The run's colour is that of its leaves: there must be one, at the end, and nothing may run past a failure."""
    assert [task.task_id for task in chain.leaves] == ["publish"]
    assert {task.trigger_rule.value for task in chain.tasks} == {"all_success"}
    assert not any(task.is_setup or task.is_teardown for task in chain.tasks)


def test_neither_waiting_runs_nor_a_backfills_queue_hold_back_sweeps_and_events(chain: Any) -> None:
    """Airflow holds events back while as many runs are queued or running, a backfill's days included."""
    assert chain.max_active_runs >= 1_000


def runs_of(chain: Any, *, catchup: bool) -> list[Any]:
    """The runs that a backfill of the first ten days of November 2026 makes, or the next dozen sweeps."""
    from airflow.timetables.base import TimeRestriction
    from pendulum import datetime

    restriction = TimeRestriction(datetime(2026, 11, 1), datetime(2026, 11, 10) if catchup else None, catchup)
    found: list[Any] = []
    for _ in range(12):
        last = found[-1].data_interval if found else None
        info = scheduled(chain).next_dagrun_info(last_automated_data_interval=last, restriction=restriction)
        if info is None:
            break
        found.append(info)
    return found


def scheduled(chain: Any) -> Any:
    """The timetable as the scheduler has it: serialized and made again."""
    timetable = chain.timetable.timetable
    return type(timetable).deserialize(timetable.serialize())


def test_it_sweeps_every_hour_and_is_woken_by_events(chain: Any) -> None:
    from airflow.sdk import AssetOrTimeSchedule

    assert isinstance(chain.timetable, AssetOrTimeSchedule)
    condition: Any = chain.timetable.asset_condition
    assert [asset.name for asset in condition.objects] == ["fruits_photos"]
    (sweep, following, *_) = runs_of(chain, catchup=False)
    assert sweep.data_interval.end - sweep.data_interval.start == timedelta(hours=1)
    assert following.logical_date - sweep.logical_date == timedelta(hours=1)


@pytest.mark.parametrize(("hours", "of_a_day"), [(1, [*range(24)]), (6, [0, 6, 12, 18]), (24, [0])])
def test_the_period_of_sweeps_is_a_setting(hours: int, of_a_day: list[int]) -> None:
    from fruits.airflow.timetables import SweepTimetable

    made_again = SweepTimetable.deserialize(SweepTimetable(hours).serialize())
    assert made_again._expression == f"5 {','.join(map(str, of_a_day))} * * *"
    assert SweepTimetable.deserialize({}).summary == "every hour, backfills daily", "of an earlier release"


def test_a_backfill_has_one_run_for_each_day_and_no_sweep_in_its_place(chain: Any) -> None:
    days = runs_of(chain, catchup=True)
    assert [(day.data_interval.start.day, day.data_interval.start.hour) for day in days] == [
        (n, 0) for n in range(1, 11)
    ]
    assert all(day.data_interval.end - day.data_interval.start == timedelta(days=1) for day in days)
    assert {sweep.logical_date.minute for sweep in runs_of(chain, catchup=False)} == {5}


@pytest.mark.parametrize("job", ["featurize", "pca", "validate"])
def test_spark_does_the_work(chain: Any, job: str) -> None:
    from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

    task = chain.get_task(job)
    assert isinstance(task, SparkSubmitOperator)
    assert Path(task.application) == ROOT / "spark_jobs" / f"{job}.py"
    assert Path(task.application).is_file()
    assert task.application_args == [
        "--run",
        "{{ task_instance.xcom_pull(task_ids='plan', dag_id='fruit_features', key='return_value') }}",
    ]


@pytest.mark.parametrize("sensor", ["wait_for_images", "uploads_settled"])
def test_waits_hold_no_worker(chain: Any, sensor: str) -> None:
    task = chain.get_task(sensor)
    assert task.deferrable is True
    assert task.soft_fail is False


def test_only_publication_announces_new_embeddings(chain: Any) -> None:
    announcing = {task.task_id: [asset.name for asset in task.outlets] for task in chain.tasks if task.outlets}
    assert announcing == {"publish": ["fruits_embeddings"]}
