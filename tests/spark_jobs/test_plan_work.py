"""When a run goes on although no photo changed, and what clearing a task of a published run does."""

import pytest

from fruits.errors import ExitCode

pytestmark = [pytest.mark.jobs]


def test_a_run_without_a_changed_photo_goes_on_only_when_something_else_is_asked(chain, first):
    plans = {
        "nothing": chain.plan(first.settings, "nothing"),
        "refit": chain.plan(first.settings, "refit", refit="always"),
        "components": chain.plan(first.settings, "components", n_components=5),
        "kept": chain.plan(first.settings, "kept", n_components=5, refit="never"),
    }
    assert {name: plan.work for name, plan in plans.items()} == {
        "nothing": False,
        "refit": True,
        "components": True,
        "kept": False,
    }
    assert "components asked are now 5" in plans["components"].other_work


def test_clearing_validate_after_the_publication_finds_the_run_as_it_was(chain, first):
    before = first.documents.validate.result
    assert chain.submit("validate", first.settings, first.run_id) == ExitCode.OK
    again = chain.documents(first.settings, first.run_id).validate.result
    assert again.snapshots == before.snapshots
    assert [(gate.name, gate.passed) for gate in again.gates] == [(gate.name, gate.passed) for gate in before.gates]
    assert chain.publish(first.settings, first.run_id).publication_id == chain.published(first.settings).publication_id
