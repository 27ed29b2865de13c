"""The trigger form as a person meets it: Airflow's UI, in a Chromium."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fruits.errors import FruitsError
from local.api import AirflowAPI
from tests.loading import load_file
from tests.running_ui import DAG, UI

pytestmark = [pytest.mark.airflow, pytest.mark.heavy]

ROOT = Path(__file__).parents[2]
KEYS = ["Training/Apple/1.jpg", "Test/Grüner Apfel/b c.jpg"]


screenshots = load_file(ROOT / "scripts" / "screenshots.py", "screenshots")


@pytest.fixture(scope="module")
def running(start_ui: Callable[[], UI]) -> AirflowAPI:
    """The session's UI, for a person who has logged in."""
    try:
        screenshots.find_chromium()
    except FruitsError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"ABSENT: {error}")
    return start_ui().api


@pytest.fixture(scope="module")
def driver(running: AirflowAPI) -> Iterator[Any]:
    """A browser, logged in."""
    with screenshots.browser() as driver:
        screenshots.log_in(driver, running)
        yield driver


@pytest.fixture
def form(driver: Any, running: AirflowAPI) -> Any:
    """The trigger form, as it opens."""
    return screenshots.open_trigger_form(driver, running)


@pytest.fixture(scope="module")
def params(running: AirflowAPI) -> dict[str, Any]:
    """The DAG's params, as Airflow has them."""
    return dict(running.ask(f"{DAG}/details")["params"])


def test_every_param_is_shown_with_its_title_and_description(form: Any, params: dict[str, Any]) -> None:
    shown = " ".join(form.text.split())
    assert len(params) >= 12
    for name, param in params.items():
        assert form.find_elements("name", f"element_{name}"), name
        assert param["schema"]["title"] in shown, name
        assert " ".join(param["description"].split()) in shown, name


def test_untouched_the_form_asks_for_the_defaults(
    driver: Any, running: AirflowAPI, form: Any, params: dict[str, Any]
) -> None:
    conf = triggered(driver, running, form)
    assert conf == {name: param["value"] for name, param in params.items()}


def test_pasted_keys_and_a_dry_run_arrive_as_typed(
    driver: Any, running: AirflowAPI, form: Any, params: dict[str, Any]
) -> None:
    screenshots.paste(driver, form.find_element("name", "element_keys"), "\n".join(KEYS))
    screenshots.paste(driver, form.find_element("name", "element_n_components"), "0.9")
    screenshots.paste(driver, form.find_element("name", "element_limit"), "5")
    driver.execute_script("arguments[0].click()", form.find_element("name", "element_dry_run"))
    conf = triggered(driver, running, form)
    changed = {"keys": KEYS, "n_components": 0.9, "limit": 5, "dry_run": True}
    assert conf == {**{name: param["value"] for name, param in params.items()}, **changed}


def triggered(driver: Any, running: AirflowAPI, form: Any) -> dict[str, Any]:
    """Press the form's button, without unpausing the DAG; returns the conf of the run that came of it."""
    unpause = form.find_element("css selector", "input[type=checkbox]:not([name])")
    driver.execute_script("arguments[0].click()", unpause)
    driver.execute_script("arguments[0].click()", screenshots.button(form, "Trigger"))
    screenshots.wait_until(driver, lambda: "/runs/manual__" in driver.current_url, "the run")
    run = driver.current_url.partition("/runs/")[2].partition("/")[0]
    conf = dict(running.ask(f"{DAG}/dagRuns/{run}")["conf"])
    running.ask(f"{DAG}/dagRuns/{run}", "DELETE")
    return conf
