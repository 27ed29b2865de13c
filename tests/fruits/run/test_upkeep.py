from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fruits.errors import FruitsError
from fruits.lake.catalog import DataFile, TableState
from fruits.lake.publication import Publication
from fruits.lake.schemas import DATA_TABLES
from fruits.run.request import MaintenanceRequest, RunRequest, resolve_maintenance
from fruits.run.state import run_key
from fruits.run.upkeep import (
    FEWEST_SMALL_FILES,
    SMALL_FILE_BYTES,
    RunFolder,
    expired_versions,
    layout_of,
    old_folders,
    retained_publications,
    retired_backbones,
    runs_in_flight,
    table_upkeep,
)
from fruits.settings import Settings
from tests.runs import base, card, planned

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
REQUEST = MaintenanceRequest(retention_days=30, retention_publications=2)


def published(sequence, days_ago, pca_id="pca-1", run_id=None):
    """A publication whose snapshots are its sequence."""
    return Publication(
        sequence,
        dict.fromkeys(DATA_TABLES, sequence),
        run_id=run_id or f"run {sequence}",
        published_at=NOW - timedelta(days=days_ago),
        pca_id=pca_id,
    )


def flying(run_id, base_snapshot, days_ago=0.0, pca_id="pca-1", **changed):
    """The folder of a run that was planned from snapshot ``base_snapshot`` of every table."""
    start = base(1, dict.fromkeys(DATA_TABLES, base_snapshot), base_snapshot, pca_id=pca_id)
    return RunFolder(run_key(run_id), NOW - timedelta(days=days_ago), planned(run_id, base=start, **changed))


class TestRequest:
    @pytest.fixture
    def settings(self, tmp_path):
        return Settings.load(
            lake=f"file://{tmp_path}",
            catalog_uri=f"sqlite:///{tmp_path}/c.db",
            retention_days=7,
            retention_publications=3,
        )

    def test_what_is_left_empty_comes_from_the_settings(self, settings):
        request = resolve_maintenance({"dry_run": True, "retention_days": None}, settings)
        assert request == MaintenanceRequest(retention_days=7, retention_publications=3, dry_run=True)

    def test_params_win_over_settings(self, settings):
        request = resolve_maintenance({"retention_days": 90, "orphan_days": 5}, settings)
        assert request == MaintenanceRequest(retention_days=90, retention_publications=3, orphan_days=5)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"retention_days": 0},
            {"orphan_days": -1},
            {"abandoned_days": "soon"},
            {"retention_publications": True},
            {"dry_run": "false"},
            {"dryrun": True},
        ],
    )
    def test_a_param_out_of_range_is_refused_by_name(self, settings, wrong):
        with pytest.raises(FruitsError, match=next(iter(wrong))):
            resolve_maintenance(wrong, settings)


class TestRetention:
    def test_young_publications_and_the_newest_few_are_retained(self):
        history = [published(1, 90), published(2, 60), published(3, 20), published(4, 2), published(5, 1)]
        assert [one.sequence for one in retained_publications(history, REQUEST, NOW)] == [3, 4, 5]

    def test_the_newest_few_are_retained_however_old(self):
        history = [published(1, 90), published(2, 80), published(3, 70)]
        assert [one.sequence for one in retained_publications(history, REQUEST, NOW)] == [2, 3]

    def test_without_any_publication_none_is_retained(self):
        assert retained_publications([], REQUEST, NOW) == ()


class TestRunsInFlight:
    def test_a_run_that_is_planned_and_not_published_is_in_flight_until_it_was_not_heard_of_for_days(self):
        folders = [flying("live", 1, days_ago=1), flying("dead", 1, days_ago=4), flying("done", 1)]
        found = runs_in_flight(folders, [published(1, 0, run_id="done")], 3, NOW)
        assert [run.planned.run_id for run in found] == ["live"]

    @pytest.mark.parametrize(
        "folder",
        [
            RunFolder("x", NOW),
            flying("sweep", 1, work=False),
            flying("look", 1, request=RunRequest(prefix="", dry_run=True)),
        ],
        ids=["no plan, or one of maintenance", "no work", "dry run"],
    )
    def test_a_folder_of_which_nothing_is_to_be_published_is_not(self, folder):
        assert runs_in_flight([folder], [], 3, NOW) == ()


class TestTableUpkeep:
    def state(self, **refs):
        return TableState(main=9, snapshots=frozenset(range(1, 13)), refs=refs)

    def test_only_what_retained_publications_and_runs_in_flight_need_stays(self):
        run = flying("live", 8)
        state = self.state(publication_3=3, run_dead__featurize_1_ab=12, **{f"run_{run.key}__pca_2_cd": 11})
        upkeep = table_upkeep("features", state, [published(7, 1), published(9, 0)], [run])
        assert upkeep.tags == {"publication_7": 7, "publication_9": 9}
        assert upkeep.dropped_tags == {"publication_3": 3}
        assert upkeep.dropped_branches == {"run_dead__featurize_1_ab": 12}
        assert set(range(1, 13)) - set(upkeep.expired) == {7, 8, 9, 11}

    def test_a_run_in_flight_keeps_all_that_it_wrote_since_its_base(self):
        """A later task checks each of these snapshots, not only the last."""
        run = flying("live", 8)
        state = replace(self.state(**{f"run_{run.key}__pca_2_cd": 12}), parents={12: 11, 11: 10, 10: 8, 8: 7})
        upkeep = table_upkeep("features", state, [published(9, 0)], [run])
        assert set(range(1, 13)) - set(upkeep.expired) == {8, 9, 10, 11, 12}

    def test_refs_that_are_not_ours_keep_their_snapshots(self):
        upkeep = table_upkeep("features", self.state(audit=2), [published(9, 0)], [])
        assert not {**upkeep.dropped_tags, **upkeep.dropped_branches}
        assert 2 not in upkeep.expired

    def test_a_table_in_order_needs_nothing(self):
        state = TableState(9, frozenset({7, 9}), {"publication_7": 7, "publication_9": 9})
        upkeep = table_upkeep("features", state, [published(7, 1), published(9, 0)], [])
        assert not any((upkeep.tags, upkeep.dropped_tags, upkeep.dropped_branches, upkeep.expired))

    def test_publications_keeps_its_main_and_where_runs_started(self):
        upkeep = table_upkeep("publications", self.state(), [published(7, 1)], [flying("live", 5)])
        assert not upkeep.tags
        assert set(range(1, 13)) - set(upkeep.expired) == {5, 9}


class TestExpiredVersions:
    def version(self, pca_id, day, model_id="m"):
        return {"pca_id": pca_id, "model_id": model_id, "fitted_at": NOW + timedelta(days=day)}

    def test_versions_that_nothing_needs_are_expired(self):
        versions = [self.version(f"pca-{day}", day) for day in range(5)]
        kept = [published(1, 0, pca_id="pca-1")], [flying("live", 1, pca_id="pca-3")]
        assert expired_versions(versions, *kept) == ("pca-0", "pca-2", "pca-4")

    def test_the_newest_version_of_a_backbone_stays_only_while_the_backbone_is_built_again(self):
        versions = [self.version("a", 0, "beside"), self.version("b", 1, "beside"), self.version("c", 2)]
        readers = published(1, 0, pca_id="c")
        assert expired_versions(versions, [readers], []) == ("a", "b")
        assert expired_versions(versions, [replace(readers, building="beside")], []) == ("a",)
        assert expired_versions(versions, [readers], [flying("live", 1, backbone=card("beside"))]) == ("a",)

    def test_a_version_that_its_gates_refused_goes_although_it_is_the_newest(self):
        versions = [self.version("used", 0), self.version("refused", 1)]
        assert expired_versions(versions, [published(1, 0, pca_id="used")], []) == ("refused",)


class TestRetiredBackbones:
    OLD, NEW = replace(published(1, 90), model_id="old"), replace(published(2, 0), model_id="new")

    def retired(self, *flying, retained=(NEW,)):
        return retired_backbones(["old", "new", "never published"], [self.OLD, self.NEW], retained, flying)

    def test_they_were_published_once_and_no_retained_publication_has_them(self):
        assert self.retired() == ("old",)
        assert self.retired(retained=(self.OLD, self.NEW)) == ()

    def test_one_that_is_built_again_is_not_retired(self):
        assert self.retired(retained=(replace(self.NEW, building="old"),)) == ()

    def test_one_that_a_run_in_flight_works_on_is_not_retired(self):
        assert self.retired(flying("live", 1, backbone=card("old"))) == ()
        assert self.retired(flying("live", 1, backbone=card("new"))) == ("old",)

    def test_none_is_retired_while_a_run_has_an_unreadable_plan(self):
        assert self.retired(RunFolder("damaged", NOW, readable=False)) == ()


class TestOldFolders:
    def test_old_ones_go_but_for_those_of_retained_publications(self):
        folders = [RunFolder(run_key(run), NOW - timedelta(days=age)) for run, age in
                   (("old", 40), ("young", 20), ("kept", 40), ("again", 40))]  # fmt: skip
        retained = [published(1, 40, run_id="kept"), published(2, 40, run_id="again#2")]
        assert old_folders(folders, retained, [], REQUEST, NOW) == (run_key("old"),)


class TestLayout:
    SMALL, LARGE = DataFile("p", 1000, 10), DataFile("p", SMALL_FILE_BYTES, 10_000)

    def test_several_small_files_of_a_partition_are_rewritten(self):
        assert layout_of([self.SMALL] * FEWEST_SMALL_FILES).to_rewrite == FEWEST_SMALL_FILES

    def test_few_small_files_are_left_also_when_other_partitions_have_some(self):
        elsewhere = replace(self.SMALL, partition="q")
        assert layout_of([self.SMALL] * (FEWEST_SMALL_FILES - 1) + [elsewhere]).to_rewrite == 0

    def test_large_files_are_left_alone(self):
        layout = layout_of([self.LARGE] * 100 + [self.SMALL] * FEWEST_SMALL_FILES)
        assert (layout.files, layout.to_rewrite) == (100 + FEWEST_SMALL_FILES, FEWEST_SMALL_FILES)

    @pytest.mark.parametrize(("deleted", "rewritten"), [(0, 0), (499, 0), (500, 1)])
    def test_a_file_is_rewritten_when_many_of_its_rows_are_deleted(self, deleted, rewritten):
        file = replace(self.LARGE, delete_files=1, deleted_rows=deleted)
        assert layout_of([file, self.LARGE]).to_rewrite == rewritten

    def test_all_are_rewritten_when_asked_for(self):
        assert layout_of([self.LARGE] * 3, rewrite_all=True).to_rewrite == 3
