"""The DAG's own functions, with the values that Airflow's SDK really hands to a task."""

from datetime import UTC, datetime
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.airflow

START, END = datetime(2026, 11, 20, tzinfo=UTC), datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("run_type", "mode"),
    [("backfill", "interval"), ("scheduled", "reconcile"), ("manual", "reconcile"), ("asset_triggered", "reconcile")],
)
def test_a_backfill_covers_its_interval_and_any_other_run_everything(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, run_type: str, mode: str
) -> None:
    from airflow.sdk.api.datamodels._generated import DagRunType

    start, end = (None, None) if run_type == "asset_triggered" else (START, END)
    run = SimpleNamespace(
        dag_id="fruit_features",
        run_type=DagRunType(run_type),
        conf={},
        data_interval_start=start,
        data_interval_end=end,
    )
    params = {name: param.value for name, param in module.PARAMS.items()}
    context: dict[str, Any] = {"dag_run": run, "params": params}
    monkeypatch.setattr(module, "get_current_context", lambda: context)
    monkeypatch.setattr("fruits.steps.prepare.prepare", lambda settings, request: None)
    monkeypatch.setattr(module, "skip_when_another_waits", lambda context, settings: None)
    monkeypatch.setenv("FRUITS_LAKE", "file:///lake")
    monkeypatch.setenv("FRUITS_CATALOG_URI", "sqlite:////lake/catalog.db")

    request = module.prepare.function()["request"]

    assert request["mode"] == mode
    assert request["interval"] == (["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"] if mode == "interval" else None)


def test_an_unknown_param_is_refused_by_the_first_task(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.api.datamodels._generated import DagRunType
    from airflow.sdk.exceptions import AirflowFailException

    run = SimpleNamespace(
        dag_id="fruit_features",
        run_type=DagRunType.MANUAL,
        conf={"dryrun": True},
        data_interval_start=None,
        data_interval_end=None,
    )
    params = {name: param.value for name, param in module.PARAMS.items()} | {"dryrun": True}
    monkeypatch.setattr(module, "get_current_context", lambda: {"dag_run": run, "params": params})
    monkeypatch.setattr("fruits.steps.prepare.prepare", lambda settings, request: pytest.fail("it went on"))
    monkeypatch.setenv("FRUITS_LAKE", "file:///lake")
    monkeypatch.setenv("FRUITS_CATALOG_URI", "sqlite:////lake/catalog.db")

    with pytest.raises(AirflowFailException, match=r"'dryrun': .* did you mean 'dry_run'"):
        module.prepare.function()


@pytest.mark.parametrize("keys", ["Training/Kiwi/1.jpg", ["Training/Kiwi/1.jpg"], [], None])
def test_the_form_takes_one_key_as_text(module: ModuleType, keys: object) -> None:
    assert module.PARAMS["keys"].resolve(keys) == keys


@pytest.mark.parametrize(("before", "told"), [(7, True), (6, False), (5, False)])
def test_a_publication_that_shrinks_is_told(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, before: int, told: bool
) -> None:
    from fruits.lake.publication import Publication
    from fruits.steps.publish import Announcement

    publication = Publication(2, {}, "pub-000002-abcdef", counts={"features": 5, "quarantine": 1})
    sent: list[Any] = []
    published = Announcement(publication, publication, before)
    monkeypatch.setattr("fruits.steps.publish.publish_run", lambda settings, run: published)
    monkeypatch.setattr("fruits.airflow.metrics.send", lambda gauges: None)
    monkeypatch.setattr(module, "announce", lambda context, publication, current: {})
    monkeypatch.setattr(module, "alert", sent.append)
    monkeypatch.setattr(module, "get_current_context", dict)
    monkeypatch.setenv("FRUITS_LAKE", "file:///lake")
    monkeypatch.setenv("FRUITS_CATALOG_URI", "sqlite:////lake/catalog.db")

    module.publish.function("run")

    assert bool(sent) is told
