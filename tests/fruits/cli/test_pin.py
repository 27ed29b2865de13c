"""Readers stay on a publication: what `fruits pin` and `fruits rollback --pin` change, and what they leave alone."""

import pytest

from fruits.cli import pin, rollback
from fruits.errors import ConflictError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications, readers_base
from fruits.run.pin import current_pin


def publish_twice(settings, fake_run):
    """A lake with two publications."""
    for pca_id in ("pca-1", "pca-2"):
        fake_run(settings).publish("m", pca_id)


@pytest.fixture
def run(as_made, fake_run):
    """Plans a run on the lake, which has two publications."""
    settings = as_made(publish_twice, fake_run)
    return lambda: fake_run(settings)


def pin_by_rollback(lake, wanted, why):
    return rollback.run(lake, readers_base(lake), wanted, why)


@pytest.mark.parametrize(("stay", "wanted", "sequences"), [(pin.run, None, [1, 2]), (pin_by_rollback, "1", [1, 2, 3])])
def test_a_pin_publishes_only_what_readers_do_not_have_and_twice_is_once(run, stay, wanted, sequences):
    lake = run().lake
    for why in ("holidays", "more holidays", "even more"):
        stay(lake, wanted, why)
        assert [one.sequence for one in publications(lake)] == sequences
        assert current_pin(lake.settings).why == why
    assert set(lake.table("publications").refs()) == {"main"}


@pytest.mark.parametrize(("stay", "wanted"), [(pin.run, None), (pin_by_rollback, "2"), (pin_by_rollback, "1")])
def test_a_run_that_was_planned_before_a_pin_does_not_publish(run, stay, wanted):
    late = run()
    stay(late.lake, wanted, "holidays")
    before = publications(late.lake)
    with pytest.raises(ConflictError, match="after run .* was planned.*nothing was published"):
        late.publish("m", "pca-3")
    assert publications(late.lake) == before


@pytest.mark.parametrize(("stay", "wanted"), [(pin.run, None), (pin_by_rollback, "2"), (pin_by_rollback, "1")])
def test_a_publication_that_comes_in_between_stays_and_there_is_no_pin(run, monkeypatch, stay, wanted):
    late = run()

    def overtaken():
        late.publish("m", "pca-3")
        return "somebody"

    for module in (pin, rollback):
        monkeypatch.setattr(module, "person", overtaken)
    with pytest.raises(ConflictError, match="another run published .*nothing was changed.*`fruits status`"):
        stay(late.lake, wanted, "holidays")
    assert [one.pca_id for one in publications(Lake(late.lake.settings))] == ["pca-1", "pca-2", "pca-3"]
    assert current_pin(late.lake.settings) is None


def test_a_rollback_takes_back_no_publication_that_came_after_the_question(run):
    late = run()
    base = readers_base(late.lake)
    assert "Roll back from pub-000002-" in rollback.preview(late.lake, base, "1")
    late.publish("m", "pca-3")
    with pytest.raises(ConflictError, match="nothing was changed"):
        rollback.run(late.lake, base, "1")
    assert publications(late.lake)[-1].pca_id == "pca-3"
