"""Maintenance over a real history: the same rows for every retained publication, in fewer files, and nothing else."""

import os
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import pytest

from fruits.errors import ConflictError, ExitCode
from fruits.lake.branches import Writer, run_of_branch, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.counters import COUNTED, agree
from fruits.lake.hashes import hashed_snapshot
from fruits.lake.publication import current_base, publication_id, publications, publish, readable, roll_back
from fruits.lake.schemas import DATA_TABLES, PHOTO_HASHES, TABLES
from fruits.run.lease import current_lease
from fruits.run.request import resolve_maintenance
from fruits.run.state import run_key
from fruits.steps.plan_maintenance import plan_maintenance
from tests.spark_jobs.conftest import replace_rows

pytestmark = [pytest.mark.jobs]

DAY = 86_400


class LongAgo(datetime):
    """A clock that is sixty days slow."""

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) - timedelta(days=60)


def maintain(chain, settings, run_id, **params):
    """The DAG's two tasks; returns the exit code and the job's document."""
    plan_maintenance(settings, resolve_maintenance(params, settings), run_id)
    code = chain.submit("maintain", settings, run_id)
    return code, chain.documents(settings, run_id).maintain


def folder(settings):
    """Where a lake in a folder is."""
    return Path(settings.lake.removeprefix("file://"))


def age(path, days):
    """Make files look as if they had been written so many days ago."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (time.time() - days * DAY,) * 2)


def files_of(settings, *without):
    """All files of a lake and when they were written, but for leases, and the folders of the runs in ``without``."""
    ignored = {folder(settings) / "leases", *(folder(settings) / "runs" / "fruits" / run_key(run) for run in without)}
    return {
        str(path): path.stat().st_mtime_ns
        for path in folder(settings).rglob("*")
        if path.is_file() and not ignored & set(path.parents)
    }


def contents(settings, publication):
    """What readers of a publication find: the rows of each table, in no order."""
    lake = Lake.open(settings)
    return {name: Counter(map(repr, lake.read(name, publication.snapshots[name]).to_pylist())) for name in DATA_TABLES}


def layout(settings):
    """Data files, delete files and snapshots of each table as published."""
    lake = Lake.open(settings)
    layouts = {}
    for name in (table.name for table in TABLES):
        files = lake.files(name, lake.head(name))
        deletes = lake.table(name).inspect.delete_files().num_rows if files else 0  # PyIceberg fails on empty tables
        layouts[name] = (len(files), deletes, len(lake.table(name).snapshots()))
    return layouts


def refs(settings, prefix):
    """Names of the branches and tags of all tables that start with ``prefix``."""
    lake = Lake.open(settings)
    return {ref for table in TABLES for ref in lake.state(table.name).refs if ref.startswith(prefix)}


def make_history(chain, settings):
    """A publication past retention; one with updates, deletions and a new PCA; rollbacks, there and back, twice."""
    photos = chain.photos(16)
    keys = list(photos)
    chain.put(settings, photos)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fruits.steps.publish.datetime", LongAgo)
        chain.run(settings, "first")
    changed = {key: chain.photo(70 + number) for number, key in enumerate(keys[4:7])}
    chain.put(settings, chain.photos(3, start=16) | changed | {keys[8]: b"<html>"})
    chain.delete(settings, *keys[:2])
    chain.run(settings, "changes", refit="always")
    lake = Lake.open(settings)
    for back in ("1", "2", "1"):
        roll_back(lake, back, now=LongAgo.now(UTC))
    roll_back(lake, "2")


ADDED, OVERWRITTEN, DELETED = (f"Training/Kiwi/{name}.img" for name in ("late", "2", "14"))
DEAD = Writer(run_key("dead"), "featurize_1_abcdef")


@pytest.fixture(scope="module")
def monkeypatch_module():
    """Changes that hold for all tests of this module."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def seen(chain, new_settings, monkeypatch_module):
    """A history, a dead run, a live one, and litter; then what each kind of maintenance run left: a dry one, one that
    crashed, one that worked, a second one, and one that lost a row, and one beside which the live run published.

    The live run adds, overwrites and deletes. Iceberg's own deletes can be lost beside a rewrite of the same files
    (apache/iceberg 10720), so both orders are tried.
    """
    settings = new_settings(min_probe_ratio=0, retention_publications=1)
    monkeypatch_module.setattr("fruits.lake.hashes.FEWEST_ROWS", 1)
    make_history(chain, settings)
    chain.put(settings, {ADDED: chain.photo(90), OVERWRITTEN: chain.photo(91)})
    chain.delete(settings, DELETED)
    plans = {run: chain.plan(settings, run) for run in ("dead", "live")}
    for name, snapshot in plans["dead"].base.snapshots.items():
        start_branch(Lake.open(settings), name, DEAD.branch, snapshot)
    assert chain.submit("featurize", settings, "live") == ExitCode.OK
    old, young = leave_litter(settings)
    seen = SimpleNamespace(settings=settings, base_of_live=plans["live"].base)
    seen.refused = maintain_under_the_lease_of_a_run(chain, settings)
    seen.live = chain.branch_rows(settings, "live", "features")
    seen.rows_before = chain.rows(settings, "features")
    seen.publications = publications(Lake.open(settings))
    seen.contents = {publication.sequence: contents(settings, publication) for publication in seen.publications}
    seen.layout, seen.heads, files = layout(settings), chain.heads(settings), files_of(settings)

    seen.dry = maintain(chain, settings, "dry", dry_run=True)
    seen.changed_by_dry_run = files_of(settings, "dry").items() ^ files.items()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.jobs["maintain"], "publish_compacted", die)
        compact_features_alone(chain, patch)
        seen.crashed = maintain(chain, settings, "crash")
    seen.heads_after_crash = chain.heads(settings)

    seen.maintained = maintain(chain, settings, "weekly")
    seen.litter = SimpleNamespace(
        old=old.exists(),
        young=young.exists(),
        ancient=list((folder(settings) / "runs" / "ancient").glob("*")),
        changes=(folder(settings) / "runs" / "fruits" / run_key("changes") / "plan.json").exists(),
    )
    files = files_of(settings)
    seen.again = maintain(chain, settings, "again")
    seen.changed_by_second_run = files_of(settings, "again").items() ^ files.items()

    lake = Lake.open(settings)
    seen.publications_after, seen.heads_after = publications(lake), chain.heads(settings)
    seen.contents_after = {number: contents(settings, seen.publications_after[number - 1]) for number in (2, 6, 7)}
    seen.readable = [publication.sequence for publication in readable(lake, seen.publications_after)]
    seen.tags, seen.branches = refs(settings, "publication_"), refs(settings, "run_")
    seen.layout_after = layout(settings)
    seen.live_after = chain.branch_rows(settings, "live", "features")
    seen.bases_of_live = {name: lake.state(name).snapshots for name in seen.base_of_live.snapshots}
    with pytest.raises(ConflictError, match="another run published"):
        row = replace(seen.publications[-1], sequence=7, run_id="live")
        publish(lake, seen.base_of_live, Writer(run_key("live"), "publish_1_abcdef"), row)

    seen.lossy = maintain_and_lose_a_row(chain, settings)
    seen.heads_after_loss = chain.heads(settings)
    seen.overtaken = maintain_while_a_run_publishes(chain, settings, "live")
    seen.branches_of_overtaken = [ref for ref in refs(settings, "run_") if run_of_branch(ref) == run_key("overtaken")]
    seen.last = chain.published(settings)
    tables = {name: lake.table(name) for name in COUNTED}
    seen.agree = tuple(agree(one.counted, tables, one.snapshots) for one in (seen.publications_after[-1], seen.last))
    seen.rows_of_live = {row["key"]: row["etag"] for row in chain.rows(settings, "features")}
    return seen


def compact_features_alone(chain, patch):
    """Of a maintenance run that is to fail: it need not rewrite the other tables in vain."""
    survey = chain.jobs["maintain"].survey

    def survey_features(*args):
        upkeep = survey(*args)
        return replace(upkeep, layouts={"features": upkeep.layouts["features"]})

    patch.setattr(chain.jobs["maintain"], "survey", survey_features)


def leave_litter(settings):
    """Data files of no table, an old one and a young one, and run folders of long ago; returns the two files."""
    tables = folder(settings) / "tables" / "fruits"
    old, young = (tables / "features" / "data" / f"{name}.parquet" for name in ("old", "young"))
    for path in (old, young, folder(settings) / "runs" / "ancient" / "plan.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    age(old, 4)
    age(folder(settings) / "runs" / "ancient", 40)
    age(folder(settings) / "runs" / "fruits" / run_key("dead"), 4)
    return old, young


def maintain_under_the_lease_of_a_run(chain, settings):
    """The exit code of a maintenance job that is started while a run holds the lease."""
    plan_maintenance(settings, resolve_maintenance({}, settings), "beside")
    assert current_lease(settings).run == run_key("live")
    with chain.environment(settings):
        return chain.jobs["maintain"].main(["--run", run_key("beside")])


def maintain_and_lose_a_row(chain, settings):
    """A maintenance run whose rewriting loses a row."""
    module = chain.jobs["maintain"]
    rewrite = module.rewrite

    def rewrite_and_lose_a_row(tables, definition, **options):
        rewrite(tables, definition, **options)
        if definition.name == "features":
            lost = "key = 'Training/Kiwi/17.img'"
            tables.spark.sql(f"DELETE FROM {tables.branch('features')} WHERE {lost}")  # noqa: S608

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "rewrite", rewrite_and_lose_a_row)
        compact_features_alone(chain, patch)
        return maintain(chain, settings, "lossy", rewrite_all=True)


def maintain_while_a_run_publishes(chain, settings, run):
    """A maintenance run that finds another publication when it wants to publish: that of a run beside it."""
    module = chain.jobs["maintain"]
    check = module.check_rows

    def check_while_the_run_publishes(tables, name, *args):
        if name == "features":
            chain.run(settings, run)
        check(tables, name, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_rows", check_while_the_run_publishes)
        return maintain(chain, settings, "overtaken", rewrite_all=True)


def die(*args):
    raise RuntimeError("the power went off")


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(seen):
    code, document = seen.dry
    assert code == ExitCode.OK
    assert seen.changed_by_dry_run == set()
    assert document.result.orphan_files["features"] == 1
    found = document.result.found
    assert len(found["expired_versions"]) == 1
    assert found["branches_to_drop"] == [DEAD.branch]
    assert found["run_folders_to_remove"] == ["ancient"]
    assert found["layout"]["features"]["to_rewrite"] > 0
    assert found["snapshots_to_expire"]["features"] > 0


def test_a_crash_before_publication_leaves_readers_where_they_were(seen):
    code, document = seen.crashed
    assert code == ExitCode.UNEXPECTED
    assert document.seconds["compact"] > 0
    assert seen.heads_after_crash == seen.heads


def test_compaction_is_published_as_the_publication_that_it_was(seen):
    code, document = seen.maintained
    assert code == ExitCode.OK, document
    before, after = seen.publications[-1], seen.publications_after[-1]
    assert (after.sequence, after.run_id) == (before.sequence + 1, "weekly")
    assert document.result.publication_id == after.publication_id
    for name in ("model_id", "pca_id", "counts", "counters", "probe_raw", "probe_embedded", "gates"):
        assert getattr(after, name) == getattr(before, name), name
    assert {name: seen.heads_after[name] for name in DATA_TABLES} == dict(after.snapshots)
    assert seen.agree == (True, True), "Iceberg counts other rows than the counters, so validate would read all rows"


def test_every_retained_publication_has_the_rows_that_it_had(seen):
    assert [publication.sequence for publication in seen.publications] == [1, 2, 3, 4, 5, 6]
    for sequence in (2, 6):
        assert seen.contents_after[sequence] == seen.contents[sequence]


def test_current_rows_are_the_same_but_for_expired_pca_versions(seen):
    expected, current = seen.contents[6], seen.contents_after[7]
    (expired,) = seen.maintained[1].result.dropped_versions
    for name in DATA_TABLES:
        kept = Counter({row: count for row, count in expected[name].items() if f"'pca_id': '{expired}'" not in row})
        if name != "photo_hashes":
            assert current[name] == kept, name
    assert len(current["embeddings"]) < len(expected["embeddings"])
    assert expired == seen.publications[0].pca_id


def test_hashes_are_those_of_the_features_that_are_published_with_them(seen):
    lake, current = Lake.open(seen.settings), seen.publications_after[-1]
    assert [one.snapshots["photo_hashes"] for one in seen.publications] == [seen.heads["photo_hashes"]] * 6
    assert seen.dry[1].result.found["hashes_due"]
    hashes, features = (
        lake.read(name, current.snapshots[name]).select(PHOTO_HASHES.schema.names).to_pylist()
        for name in ("photo_hashes", "features")
    )
    assert sorted(map(repr, hashes)) == sorted(map(repr, features))
    assert hashed_snapshot(lake, current.snapshots) == current.snapshots["features"]


def test_publications_past_retention_are_gone(seen):
    sequences = [publication.sequence for publication in seen.publications_after]
    assert sequences == [1, 2, 3, 4, 5, 6, 7]  # their rows stay, as a record
    assert seen.readable == [2, 4, 6, 7]  # the fourth went back to the second, so it has the same snapshots
    assert seen.tags == {f"publication_{sequence}" for sequence in (2, 6, 7)}


def test_files_delete_files_and_snapshots_are_fewer(seen):
    after = seen.layout_after
    for name in ("features", "embeddings"):
        assert after[name][0] < seen.layout[name][0], name
        assert (seen.layout[name][1] > 0, after[name][1]) == (True, 0), name
    assert (seen.layout["publications"][0], after["publications"][0]) == (6, 2)
    second, current = (seen.publications_after[number].snapshots for number in (1, -1))
    for name in DATA_TABLES:
        live = 2 * (name in ("features", "quarantine"))  # what it deleted and wrote
        assert after[name][2] <= len({second[name], current[name]}) + live, name


def test_the_live_run_keeps_its_branch_and_what_it_started_from_and_the_dead_one_is_gone(seen):
    assert {run_of_branch(branch) for branch in seen.branches} == {run_key("live")}
    assert seen.live_after == seen.live
    for name, snapshot in seen.base_of_live.snapshots.items():
        assert snapshot in seen.bases_of_live[name], name


def test_litter_goes_and_young_files_stay(seen):
    assert (seen.litter.old, seen.litter.young) == (False, True)
    assert seen.litter.ancient == []
    assert seen.litter.changes


def test_a_second_run_finds_nothing_to_do(seen):
    code, document = seen.again
    assert code == ExitCode.OK
    assert document.result.publication_id is None
    assert seen.changed_by_second_run == set()


def test_rows_that_differ_are_not_published(seen):
    code, document = seen.lossy
    assert code == ExitCode.BAD_INPUT
    assert document.error.startswith("table features: ")
    assert seen.heads_after_loss == seen.heads_after


def test_the_lease_keeps_maintenance_away_from_a_run_at_work(seen):
    assert seen.refused == ExitCode.TRANSIENT
    assert not {ref for ref in seen.branches if run_of_branch(ref) == run_key("beside")}


def test_a_run_that_deletes_begins_anew_when_maintenance_has_rewritten_the_files_meanwhile(seen):
    """Its publication from the old base is refused; until then its branch has what it had."""
    assert DELETED in {row["key"] for row in seen.rows_before}
    assert DELETED not in {row["key"] for row in seen.live_after}


def test_maintenance_begins_anew_when_a_run_that_deletes_has_published_meanwhile(seen):
    code, document = seen.overtaken
    assert code == ExitCode.TRANSIENT
    assert "maintenance is tried again" in document.error
    assert document.retryable  # so Airflow tries again
    assert seen.branches_of_overtaken == []
    assert seen.last.run_id == "live"


def test_what_the_run_beside_maintenance_added_overwrote_and_deleted_holds(chain, seen):
    assert seen.rows_of_live[OVERWRITTEN] == md5(chain.photo(91), usedforsecurity=False).hexdigest()
    assert ADDED in seen.rows_of_live
    assert DELETED not in seen.rows_of_live


@pytest.mark.slow
def test_in_an_s3_lake(chain, new_settings, first):
    """The rows are the first run's features, published by no run."""
    settings, writer = new_settings("s3"), Writer("by_hand", "publish_1_abcdef")
    lake = Lake.open(settings)
    base = current_base(lake)
    start_branch(lake, "features", writer.branch, base.snapshots["features"])
    for row in chain.rows(first.settings, "features")[:3]:
        head = replace_rows(lake, writer, "features", row["key"], [row])
    snapshots = {**base.publication.snapshots, "features": head}
    row = replace(chain.published(first.settings), snapshots=snapshots, publication_id=publication_id(1, snapshots))
    publish(lake, base, writer, row)
    before, state = chain.published(settings), Lake.open(settings).state("features")
    expected = contents(settings, before)
    code, document = maintain(chain, settings, "weekly", rewrite_all=True)
    assert code == ExitCode.OK, document
    current = chain.published(settings)
    assert current.run_id == "weekly"
    assert contents(settings, current) == contents(settings, before) == expected
    assert state.snapshots - Lake.open(settings).state("features").snapshots, "the empty first snapshot is expired"
    assert document.result.expired_files["features"] > 0
    assert set(document.result.orphan_files.values()) == {0}
