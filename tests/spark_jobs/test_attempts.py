"""A publication is what the gates measured, whichever task is cleared and whatever an earlier attempt still writes."""

from types import SimpleNamespace

import pytest

from fruits.errors import ExitCode, FruitsError
from fruits.lake.branches import Writer
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.run.state import run_key
from tests.spark_jobs.conftest import replace_rows

pytestmark = [pytest.mark.jobs]

RUN = "r"


def append_ghost(settings, writer, row):
    """What a job that an earlier attempt left behind does: one more row on that attempt's branch."""
    ghost = {**row, "key": f"Training/Banana/ghost of {writer.attempt}.img"}
    replace_rows(Lake.open(settings), writer, "features", ghost["key"], [ghost])


@pytest.fixture(scope="module")
def story(chain, new_settings):
    """A validated run of which `featurize` is cleared alone, then `pca` alone, while orphans of attempts write on.

    Has what `publish` said each time, where readers were, the run's documents at the end, and what was published.
    """
    settings = new_settings(min_probe_ratio=0)
    photos = chain.photos(8)
    late = next(iter(photos))
    chain.put(settings, photos)
    chain.plan(settings, RUN)
    chain.delete(settings, late)  # `featurize` reads the photo when it runs again
    chain.submit_all(settings, RUN)
    chain.put(settings, {late: photos[late]})
    story = SimpleNamespace(settings=settings, heads=[chain.heads(settings)], refusals=[])

    def refused():
        with pytest.raises(FruitsError) as refusal:
            chain.publish(settings, RUN)
        story.refusals.append(str(refusal.value))
        story.heads.append(chain.heads(settings))
        assert publications(Lake.open(settings)) == []

    first, row = chain.writer(settings, RUN, "features"), chain.branch_rows(settings, RUN, "features")[0]
    assert chain.submit("featurize", settings, RUN) == ExitCode.OK
    refused()
    append_ghost(settings, first, row)
    assert chain.submit("pca", settings, RUN) == ExitCode.OK
    refused()
    assert chain.submit("validate", settings, RUN) == ExitCode.OK
    append_ghost(settings, first, row)
    append_ghost(settings, chain.writer(settings, RUN, "features"), row)
    story.documents = chain.documents(settings, RUN)
    story.published = chain.publish(settings, RUN)
    return story


def test_publishing_what_a_task_changed_after_the_gates_is_refused_and_names_the_task_to_clear(story):
    after_featurize, after_pca = story.refusals
    run = run_key(RUN)
    assert after_featurize == (
        f"run {run}: its featurize job ran again after its pca job; clear the run from `pca`, so that every task works "
        "on the same rows"
    )
    assert after_pca == (
        f"run {run}: its pca job ran again after its validate job; clear the run from `validate`, so that every task "
        "works on the same rows"
    )


def test_readers_stay_where_they_are_meanwhile(story):
    assert story.heads == [story.heads[0]] * 3


def test_what_is_published_is_what_the_gates_measured(chain, story):
    measured = story.documents.validate.result.snapshots
    assert story.published.snapshots == measured
    heads = chain.heads(story.settings)
    assert {name: heads[name] for name in measured} == measured


def test_rows_of_orphans_are_not_published(chain, story):
    keys = {row["key"] for row in chain.rows(story.settings, "features")}
    assert keys == set(chain.photos(8))
    assert {row["key"] for row in chain.rows(story.settings, "embeddings")} == keys


def test_a_snapshot_of_another_process_on_the_attempts_own_branch_ends_the_job(chain, story, monkeypatch, caplog):
    settings, job = story.settings, chain.jobs["featurize"]
    stranger = Writer("another_run", "featurize_7_abcdef")
    row, write = chain.rows(settings, "features")[0], job.write_outcomes

    def write_beside_a_stranger(attempt, *args):
        write(attempt, *args)
        branch = attempt.tables.writer.branch
        foreign = SimpleNamespace(branch=branch, commit={**stranger.commit, "branch": branch})
        replace_rows(attempt.lake, foreign, "features", "ghost", [{**row, "key": "ghost"}])

    before = chain.heads(settings)
    chain.put(settings, {"Training/Kiwi/new.img": chain.photo(60)})
    chain.plan(settings, "visited")
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_outcomes", write_beside_a_stranger)
        assert chain.submit("featurize", settings, "visited") == ExitCode.BAD_INPUT
    document = chain.documents(settings, "visited").featurize
    assert "of table features was written by run another_run, attempt featurize_7_abcdef" in document.error
    assert "nothing is published" in document.error
    assert document.result is None
    with pytest.raises(FruitsError, match="its featurize job has not succeeded"):
        chain.publish(settings, "visited")
    assert chain.heads(settings) == before
