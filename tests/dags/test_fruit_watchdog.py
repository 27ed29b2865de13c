"""The DAG fruit_watchdog: on by itself, and parsed whatever the settings say."""

from collections.abc import Callable
from types import ModuleType

import pytest

from fruits.airflow.watchdog import import_errors
from fruits.errors import FruitsError

pytestmark = pytest.mark.airflow


def test_it_is_on_from_the_start_and_never_beside_itself(module: ModuleType) -> None:
    assert module.dag.is_paused_upon_creation is False
    assert module.dag.max_active_runs == 1


def test_a_wrong_setting_stops_the_other_dag_and_not_the_watchdog(
    load: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRUITS_ALERT_AFTER_HOURS", "six")
    with pytest.raises(FruitsError, match="FRUITS_ALERT_AFTER_HOURS is 'six'"):
        load("fruit_features")
    assert load("fruit_watchdog").dag.dag_id == "fruit_watchdog"
    assert "FRUITS_ALERT_AFTER_HOURS is 'six'" in import_errors()["fruit_features.py"]
