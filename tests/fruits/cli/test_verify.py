"""`fruits verify`: it names what differs, ends with an exit code, and starts the run that mends it when asked."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from fruits.cli import verify as command
from fruits.cli.airflow import NoAirflowError
from fruits.settings import Settings
from fruits.steps.verify import Check

KEYS = tuple(f"Kiwi/{number}.jpg" for number in range(7))
SOUND = Check("keys", "0 keys have several rows", means="keys")
MISSING = Check("embeddings", "7 features without exactly one embedding", 7, KEYS, "keys")
LOST = Check("publications", "1 of 2 publications lack a snapshot", 1, ("pub-1",), "person")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Sets what the checks find; gives the params of the runs that are started."""

    def find(*checks: Check, airflow: bool = True) -> list[Any]:
        started: list[Any] = []

        def trigger(place: Any, params: Any) -> str:
            if not airflow:
                raise NoAirflowError("Airflow does not run")
            started.append(params)
            return "manual__1"

        monkeypatch.setattr(command, "open_read_only", lambda settings: None)
        monkeypatch.setattr(command, "check_source", lambda lake: None)
        monkeypatch.setattr(command, "current_publication", lambda lake: SimpleNamespace(publication_id="pub-2"))
        monkeypatch.setattr(command, "verify", lambda settings, lake: checks)
        monkeypatch.setattr(command, "trigger", trigger)
        return started

    return find


def test_nothing_differs(fruits: Any, folder_lake: Settings, found: Any) -> None:
    started = found(SOUND)
    done = fruits("verify", "--repair", settings=folder_lake)
    assert done.exit_code == 0, done.output
    assert done.stdout.split()[-7:] == ["ok", "keys", *SOUND.found.split()]
    assert started == []


def test_differences_are_named_and_end_with_an_exit_code(fruits: Any, folder_lake: Settings, found: Any) -> None:
    started = found(SOUND, MISSING)
    done = fruits("verify", settings=folder_lake)
    assert done.exit_code == 2, done.output
    for shown in ("differs", "Kiwi/4.jpg", "2 more; --json names up to 1,000", '"mode": "rebuild"', "--repair"):
        assert shown in done.stdout
    document = json.loads(fruits("verify", "--json", settings=folder_lake).stdout)
    assert [check["examples"] for check in document["checks"]] == [[], list(KEYS)]
    assert (document["ok"], document["repair"]) == (False, {"mode": "rebuild", "keys": list(KEYS)})
    assert started == []


def test_a_repair_starts_the_run_or_prints_its_params(fruits: Any, folder_lake: Settings, found: Any) -> None:
    started = found(MISSING)
    assert "Run manual__1 mends them" in fruits("verify", "--repair", settings=folder_lake).stdout
    assert started == [{"mode": "rebuild", "keys": list(KEYS)}]
    found(MISSING, airflow=False)
    done = fruits("verify", "--repair", settings=folder_lake)
    assert (done.exit_code, "Airflow does not run" in done.stdout) == (2, True)
    assert '"mode": "rebuild"' in done.stdout


def test_what_no_run_mends_is_said_to_be_so(fruits: Any, folder_lake: Settings, found: Any) -> None:
    started = found(LOST)
    done = fruits("verify", "--repair", settings=folder_lake)
    assert "No run mends them: see docs/operations.md, Verification" in done.stdout
    assert started == []
