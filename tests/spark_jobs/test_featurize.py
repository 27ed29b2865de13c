import hashlib
import io
import math
import subprocess
import sys
from functools import partial

import numpy as np
import obstore
import pyarrow as pa
import pytest
from PIL import Image

import fruits.spark.featurizing
from fruits.backbones.stage import load_backbone, staged_card
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.schemas import FEATURES, QUARANTINE, TableName
from fruits.photos.decode import Limits, decode, needed_side, perceptual_hash, preprocess
from fruits.photos.featurize import STAGES
from fruits.run import chunks
from fruits.run.manifest import MANIFEST_SCHEMA, Manifest
from fruits.run.state import run_key
from fruits.spark import executors
from fruits.spark.featurizing import tasks_table
from fruits.spark.session import a_partition_each, map_each
from fruits.stores import lake_store, photo_store
from sample_photos import BROKEN
from tests.spark_jobs.conftest import ROOT

pytestmark = [pytest.mark.jobs]


@pytest.fixture(scope="module")
def sound(first):
    """The photos of the first run that can be read, by key."""
    return {key: data for key, data in first.photos.items() if key not in BROKEN}


@pytest.fixture(scope="module")
def vectors(chain, first):
    """The first run's vectors, by key."""
    return vectors_of(chain.rows(first.settings, "features"))


def vectors_of(rows):
    return {row["key"]: np.array(row["vector"], np.float32).tobytes() for row in rows}


class TestPublishedTables:
    def test_columns_are_those_of_the_schema_file(self, chain, first):
        lake, snapshots = Lake.open(first.settings), chain.published(first.settings).snapshots
        for table in (FEATURES, QUARANTINE):
            assert lake.read(table.name, snapshots[table.name]).column_names == table.schema.names

    def test_every_object_is_in_exactly_one_of_features_and_quarantine_by_its_etag(self, chain, first):
        rows = [*chain.rows(first.settings, "features"), *chain.rows(first.settings, "quarantine")]
        found = sorted((row["key"], row["etag"], row["size"]) for row in rows)
        assert found == sorted((key, hashlib.md5(data).hexdigest(), len(data)) for key, data in first.photos.items())  # noqa: S324

    def test_a_feature_row_says_what_the_photo_is(self, chain, first, sound):
        limits = Limits(10**8, 10**8)
        preprocessing = staged_card(first.settings).preprocessing
        modified = {
            item["path"]: item["last_modified"] for chunk in obstore.list(photo_store(first.settings)) for item in chunk
        }
        rows = chain.rows(first.settings, "features")
        assert [row["key"] for row in rows] == sorted(sound)
        for row in rows:
            key, data = row["key"], sound[row["key"]]
            upright = decode(data, limits, needed_side(preprocessing))
            assert (row["split"], row["label"]) == (
                {"Training": "train", "Test": "test"}[key.split("/")[0]],
                key.split("/")[1],
            )
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert row["phash"] == perceptual_hash(upright.image)
            assert sorted((row["width"], row["height"])) == sorted(Image.open(io.BytesIO(data)).size)
            assert row["format"] == Image.open(io.BytesIO(data)).format
            assert row["last_modified"] == modified[key]
            assert row["run_id"] == first.run_id
            assert row["model_id"] == first.documents.planned.model_id

    def test_a_vector_is_the_backbones_function_of_the_bytes(self, first, sound, vectors):
        backbone = load_backbone(first.settings, first.documents.planned.model_id)
        preprocessing = backbone.card.preprocessing
        for key, data in sound.items():
            photo = decode(data, Limits(10**8, 10**8), needed_side(preprocessing))
            assert vectors[key] == backbone.features(preprocess(photo.image, preprocessing)).tobytes(), key
        assert len(set(vectors.values())) == len(sound)

    def test_every_broken_photo_is_quarantined_for_its_reason_and_the_rest_is_published(self, chain, first, sound):
        rows = chain.rows(first.settings, "quarantine")
        assert {row["key"]: row["reason"] for row in rows} == dict(BROKEN)
        assert all(row["detail"] and row["run_id"] == first.run_id for row in rows)
        assert len(chain.rows(first.settings, "features")) == len(sound)

    def test_the_document_counts_what_is_in_the_tables(self, first, sound):
        document = first.documents.featurize
        result = document.result
        assert (document.state, document.attempt) == ("succeeded", 1)
        assert (result.images, result.features, result.removed) == (len(first.photos), len(sound), 0)
        assert result.quarantine == {str(reason): 1 for reason in BROKEN.values()}
        assert result.bytes == sum(len(data) for data in first.photos.values())
        assert set(result.photo_seconds) == set(STAGES)
        assert result.photo_seconds["infer"] > 0
        assert result.images_per_second > 0
        a_photo = sum(result.photo_seconds.values()) / result.images
        assert result.usd_per_million == pytest.approx(1e6 * a_photo * first.settings.core_hour_usd / 3_600, abs=1e-3)
        assert {"session", "featurize", "write"} <= set(document.seconds)
        assert document.wall_seconds >= sum(document.seconds.values()) - 0.1
        assert set(document.versions) == {"fruits", "python", "spark"}

    def test_the_document_names_the_snapshots_that_are_published(self, chain, first):
        snapshots = chain.published(first.settings).snapshots
        assert first.documents.featurize.result.wrote == {name: snapshots[name] for name in ("features", "quarantine")}
        for table in (FEATURES, QUARANTINE):
            summary = Lake.open(first.settings).table(table.name).snapshot_by_id(snapshots[table.name]).summary
            writer = first.documents.featurize.writer(run_key(first.run_id))
            assert {name: summary[name] for name in writer.snapshot_properties} == writer.snapshot_properties


@pytest.mark.parametrize("few_photos", [200, 0])
def test_the_driver_and_its_worker_processes_make_the_same_rows_without_spark(
    chain, first, new_settings, few_photos, worker_processes
):
    settings = new_settings(bucket=first.settings.bucket, few_photos=few_photos)
    chain.plan(settings, "alone")
    assert chain.submit("featurize", settings, "alone") == ExitCode.OK
    for name in ("features", "quarantine"):
        theirs = chain.rows(first.settings, name, without=("run_id",))
        assert [{**row, "run_id": None} for row in chain.branch_rows(settings, "alone", name)] == [
            {**row, "run_id": None} for row in theirs
        ]
    document, by_spark = chain.documents(settings, "alone").featurize, first.documents.featurize
    assert set(document.versions) == {"fruits", "python"}
    assert "session" not in document.seconds
    for count in ("images", "features", "quarantine", "bytes", "removed", "pending"):
        assert getattr(document.result, count) == getattr(by_spark.result, count)


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 7, 16, 400])
def test_each_task_has_a_partition_of_its_own(spark, tasks):
    work = tasks_table([Manifest(MANIFEST_SCHEMA.empty_table())] * tasks)
    rows = a_partition_each(spark, work)
    assert rows.rdd.getNumPartitions() == tasks
    assert rows.selectExpr("spark_partition_id() AS part").distinct().count() == tasks


@pytest.mark.parametrize("tasks", [1, 2, 7, 40])
def test_each_row_of_small_work_is_a_task(spark, tasks):
    work = pa.table({"name": [f"task {number}" for number in range(tasks)]})
    rows = map_each(spark, work, lambda batches: batches, work.schema)
    assert rows.rdd.getNumPartitions() == tasks
    found = rows.selectExpr("name", "spark_partition_id() AS part").collect()
    assert sorted(row.name for row in found) == sorted(work["name"].to_pylist())
    assert len({row.part for row in found}) == tasks


def test_a_failed_attempt_leaves_main_alone_and_the_retry_goes_on_with_what_is_missing(
    chain, first, new_settings, sound, vectors, monkeypatch
):
    """It dies in the third of four chunks. The retry has other tasks, batches and chunks, and gives the same bits."""
    total = len(first.photos)
    settings = new_settings(bucket=first.settings.bucket, photos_per_task=5, gets_in_flight=2, few_photos=0)
    job, before = chain.jobs["featurize"], chain.heads(settings)
    chain.plan(settings, "again")
    written: list[int] = []

    def die_in_the_third(attempt, outcomes):
        if len(written) == 2:
            raise RuntimeError("the power went off")
        write(attempt, outcomes)
        written.append(outcomes.counts.images)

    write = job.write_outcomes
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_outcomes", die_in_the_third)
        patch.setattr(chunks, "_MOST_PHOTOS", math.ceil(total / 4))
        assert chain.submit("featurize", settings, "again") == ExitCode.UNEXPECTED
    document = chain.documents(settings, "again").featurize
    assert (document.state, document.retryable, document.attempt) == ("failed", True, 1)
    assert "the power went off" in document.error
    assert total / 2 <= sum(written) < total * 0.6
    tables: tuple[TableName, ...] = ("features", "quarantine")
    assert sum(len(chain.branch_rows(settings, "again", name)) for name in tables) == sum(written)
    assert chain.heads(settings) == before

    featurized: list[int] = []

    def watched(attempt, photos, *args, **there):
        featurized.append(len(photos))
        return outcomes_of(attempt, photos, *args, **there)

    outcomes_of = job.outcomes_of
    monkeypatch.setattr(job, "outcomes_of", watched)
    monkeypatch.setattr(fruits.spark.featurizing, "featurize", partial(executors.featurize, rows_per_batch=3))
    assert chain.submit("featurize", settings, "again") == ExitCode.OK
    assert sum(featurized) == total - sum(written)
    rows = chain.branch_rows(settings, "again", "features")
    assert vectors_of(rows) == vectors
    assert len(rows) == len(sound)
    assert {row["run_id"] for row in rows} == {"again"}
    assert len(chain.branch_rows(settings, "again", "quarantine")) == len(BROKEN)
    result, whole = chain.documents(settings, "again").featurize.result, first.documents.featurize.result
    assert result.resumed == sum(written)
    for count in ("images", "features", "quarantine", "bytes", "removed", "pending"):
        assert getattr(result, count) == getattr(whole, count)
    assert chain.documents(settings, "again").featurize.attempt == 2
    assert chain.heads(settings) == before


def test_a_row_says_what_was_read_where_the_object_changed_after_the_plan(chain, new_settings):
    settings = new_settings()
    changed, gone, broken, kept = chain.photos(4)
    chain.put(settings, chain.photos(4))
    planned = chain.plan(settings, "late")
    assert planned.counts["create"] == 4
    chain.put(settings, {changed: chain.photo(50), broken: b"<html>"})
    chain.delete(settings, gone)
    assert chain.submit("featurize", settings, "late") == ExitCode.OK
    features = {row["key"]: row for row in chain.branch_rows(settings, "late", "features")}
    quarantine = {row["key"]: row for row in chain.branch_rows(settings, "late", "quarantine")}
    assert set(features) == {changed, kept}
    assert features[changed]["etag"] == hashlib.md5(chain.photo(50)).hexdigest()  # noqa: S324
    assert features[changed]["sha256"] == hashlib.sha256(chain.photo(50)).hexdigest()
    assert features[changed]["size"] == len(chain.photo(50))
    assert {key: row["reason"] for key, row in quarantine.items()} == {broken: "not_an_image"}
    assert chain.documents(settings, "late").featurize.result.pending == {"vanished": 1}
    assert quarantine[broken]["etag"] == hashlib.md5(b"<html>").hexdigest()  # noqa: S324


@pytest.fixture(scope="module")
def planned(chain, new_settings):
    """A planned run over two photos."""
    settings = new_settings()
    chain.put(settings, chain.photos(2))
    chain.plan(settings, "r")
    return settings


class TestBadInput:
    def refused(self, chain, settings, caplog, run_id="r"):
        """What the job says, on its log's only error line and in its document, when it refuses its input."""
        before = chain.heads(settings)
        assert chain.submit("featurize", settings, run_id) == ExitCode.BAD_INPUT
        (line,) = [
            record.getMessage() for record in caplog.records if record.levelname == "ERROR" and record.name == "fruits"
        ]
        document = chain.documents(settings, run_id).featurize
        assert (document.state, document.retryable, document.error) == ("failed", False, line)
        assert chain.heads(settings) == before
        return line

    def test_a_run_without_a_plan(self, chain, planned, caplog):
        assert chain.submit("featurize", planned, "never planned") == ExitCode.BAD_INPUT
        assert f"run {run_key('never planned')}: no finished plan in {planned.lake}" in caplog.text
        assert not chain.documents(planned, "never planned")

    def test_a_missing_bucket(self, chain, planned, caplog):
        line = self.refused(chain, planned.model_copy(update={"bucket": "no-such-bucket"}), caplog)
        assert "bucket 'no-such-bucket' does not exist" in line
        assert "FRUITS_BUCKET" in line

    def test_wrong_credentials(self, chain, spark, planned, caplog, monkeypatch):
        monkeypatch.setitem(spark.sparkContext.environment, "AWS_SECRET_ACCESS_KEY", "wrong")
        by_spark = planned.model_copy(update={"few_photos": 0})
        assert "AWS_SECRET_ACCESS_KEY" in self.refused(chain, by_spark, caplog)

    def test_a_backbone_that_is_not_in_the_lake(self, chain, planned, caplog):
        models = lake_store(planned, "models")
        model_id = chain.documents(planned, "r").planned.model_id
        obstore.rename(models, f"{model_id}/model.tflite", "elsewhere")
        line = self.refused(chain, planned, caplog)
        obstore.rename(models, "elsewhere", f"{model_id}/model.tflite")
        assert f"Backbone {model_id}: not in {planned.lake}/models" in line

    def test_wrong_settings(self, chain, planned, caplog, monkeypatch):
        wrong = planned.model_copy(update={"photos_per_task": 0})
        assert chain.submit("featurize", wrong, "r") == ExitCode.BAD_INPUT
        assert "FRUITS_PHOTOS_PER_TASK" in caplog.text


@pytest.mark.slow
def test_another_process_gives_the_same_bits(chain, first, new_settings, spark_submit, sound, vectors):
    """As the DAG starts the script: a process of its own, from the environment's spark-submit."""
    settings = new_settings(bucket=first.settings.bucket)
    chain.plan(settings, "elsewhere")
    with chain.environment(settings):
        script = ROOT / "spark_jobs" / "featurize.py"
        done = spark_submit("--master", "local[2]", script, "--run", run_key("elsewhere"))
    assert done.returncode == ExitCode.OK, done.stderr
    assert chain.documents(settings, "elsewhere").featurize.result.features == len(sound)
    assert vectors_of(chain.branch_rows(settings, "elsewhere", "features")) == vectors


@pytest.mark.heavy
@pytest.mark.parametrize("job", ["featurize", "pca", "validate", "maintain"])
def test_each_job_explains_itself(job):
    script = ROOT / "spark_jobs" / f"{job}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "--run KEY" in done.stdout
    assert "Exit codes: 0 done" in done.stdout
