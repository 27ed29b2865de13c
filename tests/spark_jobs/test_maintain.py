"""Maintenance over a real history: the same rows for every retained publication, in fewer files, and nothing else."""

import os
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from fruits.errors import ConflictError, ExitCode
from fruits.lake.branches import branch_name, start_branch
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications, publish, readable, roll_back
from fruits.lake.schemas import DATA_TABLES, TABLES
from fruits.run.state import run_key
from fruits.run.upkeep import resolve_maintenance
from fruits.steps.plan_maintenance import plan_maintenance

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
    return code, chain.documents(settings, run_id)["maintain"]


def folder(settings):
    """Where a lake in a folder is."""
    return Path(settings.lake.removeprefix("file://"))


def age(path, days):
    """Make files look as if they had been written so many days ago."""
    for file in (path, *path.rglob("*")):
        os.utime(file, (time.time() - days * DAY,) * 2)


def files_of(settings, *without):
    """All files of a lake and when they were written, but for leases, and the folders of the runs in ``without``."""
    ignored = {folder(settings) / "leases", *(folder(settings) / "runs" / run_key(run) for run in without)}
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
        deletes = lake.table(name).inspect.delete_files().num_rows
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


@pytest.fixture(scope="module")
def seen(chain, new_settings):
    """A history, a dead run, a live one, and litter; then a dry run, a crash, a maintenance run, and a second one."""
    settings = new_settings(min_probe_ratio=0, retention_publications=1)
    make_history(chain, settings)
    chain.put(settings, {"Training/Kiwi/late.img": chain.photo(90)})
    plans = {run: chain.plan(settings, run) for run in ("dead", "live")}
    for name, snapshot in plans["dead"]["base"]["snapshots"].items():
        start_branch(Lake.open(settings), name, branch_name(run_key("dead")), snapshot)
    assert chain.submit("featurize", settings, "live") == ExitCode.OK
    tables = folder(settings) / "tables" / "fruits"
    old, young = (tables / "features" / "data" / f"{name}.parquet" for name in ("old", "young"))
    for path in (old, young, folder(settings) / "runs" / "ancient" / "plan.json"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    age(old, 4)
    age(folder(settings) / "runs" / "ancient", 40)
    age(folder(settings) / "runs" / run_key("dead"), 4)
    seen = SimpleNamespace(settings=settings, old=old, young=young, base_of_live=plans["live"]["base"])
    seen.live = chain.branch_rows(settings, "live", "features")
    seen.publications = publications(Lake.open(settings))
    seen.contents = {one.sequence: contents(settings, one) for one in seen.publications}
    seen.layout, seen.heads, files = layout(settings), chain.heads(settings), files_of(settings)

    seen.dry = maintain(chain, settings, "dry", dry_run=True)
    seen.changed_by_dry_run = files_of(settings, "dry").items() ^ files.items()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chain.jobs["maintain"], "publish_compacted", die)
        seen.crashed = maintain(chain, settings, "crash")
    seen.heads_after_crash = chain.heads(settings)

    seen.maintained = maintain(chain, settings, "weekly")
    files = files_of(settings)
    seen.again = maintain(chain, settings, "again")
    seen.changed_by_second_run = files_of(settings, "again").items() ^ files.items()
    return seen


def die(*args):
    raise RuntimeError("the power went off")


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(seen):
    code, document = seen.dry
    assert code == ExitCode.OK
    assert seen.changed_by_dry_run == set()
    assert document["orphan_files"]["features"] == 1
    found = document["found"]
    assert len(found["expired_versions"]) == 1
    assert found["branches_to_drop"] == [branch_name(run_key("dead"))]
    assert found["run_folders_to_remove"] == ["ancient"]
    assert found["layout"]["features"]["to_rewrite"] > 0
    assert found["snapshots_to_expire"]["features"] > 0


def test_a_crash_before_publication_leaves_readers_where_they_were(seen):
    assert seen.crashed[0] == ExitCode.UNEXPECTED
    assert seen.crashed[1]["seconds"]["compact"] > 0
    assert seen.heads_after_crash == seen.heads


def test_compaction_is_published_as_the_publication_that_it_was(seen):
    code, document = seen.maintained
    assert code == ExitCode.OK, document
    before, after = seen.publications[-1], publications(Lake.open(seen.settings))[-1]
    assert (after.sequence, after.run_id) == (before.sequence + 1, "weekly")
    assert document["publication_id"] == after.publication_id
    for name in ("model_id", "pca_id", "counts", "probe_raw", "probe_embedded", "gates"):
        assert getattr(after, name) == getattr(before, name), name
    assert {name: Lake.open(seen.settings).head(name) for name in DATA_TABLES} == dict(after.snapshots)


def test_every_retained_publication_has_the_rows_that_it_had(seen):
    assert [one.sequence for one in seen.publications] == [1, 2, 3, 4, 5, 6]
    for sequence in (2, 6):
        assert contents(seen.settings, seen.publications[sequence - 1]) == seen.contents[sequence]


def test_current_rows_are_the_same_but_for_expired_pca_versions(seen):
    current = publications(Lake.open(seen.settings))[-1]
    expected, found = seen.contents[6], contents(seen.settings, current)
    (expired,) = seen.maintained[1]["dropped_versions"]
    for name in DATA_TABLES:
        kept = Counter({row: count for row, count in expected[name].items() if f"'pca_id': '{expired}'" not in row})
        assert found[name] == kept, name
    assert len(found["embeddings"]) < len(expected["embeddings"])
    assert expired == seen.publications[0].pca_id


def test_publications_past_retention_are_gone(seen):
    lake = Lake.open(seen.settings)
    published = publications(lake)
    assert [one.sequence for one in published] == [1, 2, 3, 4, 5, 6, 7]  # their rows stay, as a record
    # The fourth went back to the second, so it has the same snapshots.
    assert [one.sequence for one in readable(lake, published)] == [2, 4, 6, 7]
    assert refs(seen.settings, "publication_") == {f"publication_{sequence}" for sequence in (2, 6, 7)}


def test_files_delete_files_and_snapshots_are_fewer(seen):
    after = layout(seen.settings)
    for name in ("features", "embeddings"):
        assert after[name][0] < seen.layout[name][0], name
        assert (seen.layout[name][1] > 0, after[name][1]) == (True, 0), name
    assert (seen.layout["publications"][0], after["publications"][0]) == (6, 2)
    second, current = (publications(Lake.open(seen.settings))[number].snapshots for number in (1, -1))
    for name in DATA_TABLES:
        live = name in ("features", "quarantine")  # what it wrote
        assert after[name][2] <= len({second[name], current[name]}) + live, name


def test_the_live_run_keeps_its_branch_and_conflicts_cleanly_and_the_dead_one_is_gone(chain, seen):
    settings, lake = seen.settings, Lake.open(seen.settings)
    assert refs(settings, "run_") == {branch_name(run_key("live"))}
    assert chain.branch_rows(settings, "live", "features") == seen.live
    for name, snapshot in seen.base_of_live["snapshots"].items():
        assert snapshot in lake.state(name).snapshots, name
    with pytest.raises(ConflictError, match="another run published"):
        publish(lake, seen.base_of_live, run_key("live"), replace(seen.publications[-1], sequence=7, run_id="live"))


def test_litter_goes_and_young_files_stay(seen):
    assert not seen.old.exists()
    assert seen.young.exists()
    assert not list((folder(seen.settings) / "runs" / "ancient").glob("*"))
    assert (folder(seen.settings) / "runs" / run_key("changes") / "plan.json").exists()


def test_a_second_run_finds_nothing_to_do(seen):
    code, document = seen.again
    assert code == ExitCode.OK
    assert "publication_id" not in document
    assert seen.changed_by_second_run == set()


def test_a_retained_publication_can_be_rolled_back_to_and_runs_go_on(chain, seen):
    current = chain.published(seen.settings)
    roll_back(Lake.open(seen.settings), "2")
    assert contents(seen.settings, chain.published(seen.settings)) == seen.contents[2]
    roll_back(Lake.open(seen.settings), str(current.sequence))
    chain.run(seen.settings, "live")
    keys = {row["key"] for row in chain.rows(seen.settings, "features")}
    assert "Training/Kiwi/late.img" in keys


def test_another_publication_in_between_is_not_overwritten(chain, seen, monkeypatch):
    settings, module = seen.settings, chain.jobs["maintain"]
    check = module.check_rows

    def check_while_somebody_rolls_back(job, name, *args):
        if name == "features":
            roll_back(Lake.open(settings), "2")
        check(job, name, *args)

    monkeypatch.setattr(module, "check_rows", check_while_somebody_rolls_back)
    code, document = maintain(chain, settings, "late", rewrite_all=True)
    assert code != ExitCode.OK
    assert "maintenance is tried again" in document["error"]
    assert document["mendable"] is False  # so Airflow tries again
    assert contents(settings, chain.published(settings)) == seen.contents[2]
    assert refs(settings, branch_name(run_key("late"))) == set()


def test_rows_that_differ_are_not_published(chain, seen, monkeypatch):
    settings, module = seen.settings, chain.jobs["maintain"]
    rewrite, before = module.rewrite, chain.heads(seen.settings)

    def rewrite_and_lose_a_row(job, definition, **options):
        rewrite(job, definition, **options)
        if definition.name == "features":
            gone = "key = 'Training/Kiwi/17.img'"
            job.spark.sql(f"DELETE FROM {job.branch_identifier('features')} WHERE {gone}")  # noqa: S608

    monkeypatch.setattr(module, "rewrite", rewrite_and_lose_a_row)
    code, document = maintain(chain, settings, "broken", rewrite_all=True)
    assert code == ExitCode.BAD_INPUT
    assert document["error"].startswith("table features: ")
    assert chain.heads(settings) == before


def test_in_an_s3_lake(chain, new_settings):
    settings = new_settings("s3", min_probe_ratio=0)
    chain.put(settings, chain.photos(8))
    chain.run(settings, "first")
    before, state = chain.published(settings), Lake.open(settings).state("features")
    expected = contents(settings, before)
    code, document = maintain(chain, settings, "weekly", rewrite_all=True)
    assert code == ExitCode.OK, document
    current = chain.published(settings)
    assert current.run_id == "weekly"
    assert contents(settings, current) == contents(settings, before) == expected
    assert state.snapshots - Lake.open(settings).state("features").snapshots, "the empty first snapshot is expired"
    assert document["expired_files"]["features"] > 0
    assert set(document["orphan_files"].values()) == {0}
