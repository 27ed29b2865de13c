"""Airflow's side in the process of a test, set up as the embedded stack sets up Airflow."""

from collections.abc import Iterator

import pytest

from fruits.settings import Settings
from local.airflow import airflow_environment
from local.stack import Stack


@pytest.fixture(scope="module")
def airflow_variables(stack: Stack) -> Iterator[pytest.MonkeyPatch]:
    """Airflow's environment variables of the embedded stack; import what reads them inside."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in airflow_environment(stack).items():
            if name.startswith("AIRFLOW"):
                patch.setenv(name, value)
        yield patch


@pytest.fixture
def lake(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Points tasks at an empty lake of the test's own."""
    monkeypatch.setenv("FRUITS_LAKE", settings.lake)
    monkeypatch.setenv("FRUITS_CATALOG_URI", settings.catalog_uri.get_secret_value())
    return settings
