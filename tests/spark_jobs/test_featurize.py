import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest
from PIL import Image

import fruits.spark.session
from fruits.backbones.stage import load_backbone, staged_card
from fruits.errors import ExitCode
from fruits.lake.catalog import Lake
from fruits.lake.schemas import FEATURES, QUARANTINE
from fruits.photos.decode import Limits, decode, needed_side, perceptual_hash, preprocess
from fruits.photos.featurize import STAGES
from fruits.run.documents import run_store
from fruits.run.state import run_key
from fruits.stores import lake_store, photo_store, read_json
from sample_photos import BROKEN

pytestmark = [pytest.mark.jobs]

ROOT = Path(__file__).parents[2]


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
            assert row["model_id"] == first.documents["plan"]["model_id"]

    def test_a_vector_is_the_backbones_function_of_the_bytes(self, first, sound, vectors):
        backbone = load_backbone(first.settings, first.documents["plan"]["model_id"])
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
        document = first.documents["featurize"]
        assert (document["state"], document["attempt"]) == ("succeeded", 1)
        assert (document["images"], document["features"], document["removed"]) == (len(first.photos), len(sound), 0)
        assert document["quarantine"] == {str(reason): 1 for reason in BROKEN.values()}
        assert document["bytes"] == sum(len(data) for data in first.photos.values())
        assert set(document["stages"]) == set(STAGES)
        assert document["stages"]["infer"] > 0
        assert document["images_per_second"] > 0
        assert {"session", "featurize", "write"} <= set(document["seconds"])
        assert document["wall_seconds"] >= sum(document["seconds"].values()) - 0.1
        assert set(document["versions"]) == {"fruits", "python", "spark"}


def test_a_failed_attempt_leaves_main_alone_and_the_retry_gives_the_same_bits_once(
    chain, first, new_settings, sound, vectors, monkeypatch
):
    """The retry runs with other tasks, other batches and another order than the first run."""
    settings = new_settings(bucket=first.settings.bucket, photos_per_task=1, gets_in_flight=2)
    job, before = chain.jobs["featurize"], chain.heads(settings)
    chain.plan(settings, "again")

    def die_after_writing(*args):
        write(*args)
        raise RuntimeError("the power went off")

    write = job.write
    with monkeypatch.context() as patch:
        patch.setattr(job, "write", die_after_writing)
        assert chain.submit("featurize", settings, "again") == ExitCode.UNEXPECTED
    document = chain.documents(settings, "again")["featurize"]
    assert (document["state"], document["mendable"], document["attempt"]) == ("failed", False, 1)
    assert "the power went off" in document["error"]
    assert len(chain.branch_rows(settings, "again", "features")) == len(sound)
    assert chain.heads(settings) == before

    monkeypatch.setattr(job, "BATCH", 3)
    assert chain.submit("featurize", settings, "again") == ExitCode.OK
    rows = chain.branch_rows(settings, "again", "features")
    assert vectors_of(rows) == vectors
    assert len(rows) == len(sound)
    assert {row["run_id"] for row in rows} == {"again"}
    assert len(chain.branch_rows(settings, "again", "quarantine")) == len(BROKEN)
    assert chain.documents(settings, "again")["featurize"]["attempt"] == 2
    assert chain.heads(settings) == before


def test_a_row_says_what_was_read_where_the_object_changed_after_the_plan(chain, new_settings):
    settings = new_settings()
    changed, gone, broken, kept = chain.photos(4)
    chain.put(settings, chain.photos(4))
    planned = chain.plan(settings, "late")
    assert planned["counts"]["create"] == 4
    chain.put(settings, {changed: chain.photo(50), broken: b"<html>"})
    chain.delete(settings, gone)
    assert chain.submit("featurize", settings, "late") == ExitCode.OK
    features = {row["key"]: row for row in chain.branch_rows(settings, "late", "features")}
    quarantine = {row["key"]: row for row in chain.branch_rows(settings, "late", "quarantine")}
    assert set(features) == {changed, kept}
    assert features[changed]["etag"] == hashlib.md5(chain.photo(50)).hexdigest()  # noqa: S324
    assert features[changed]["sha256"] == hashlib.sha256(chain.photo(50)).hexdigest()
    assert features[changed]["size"] == len(chain.photo(50))
    assert {key: row["reason"] for key, row in quarantine.items()} == {gone: "gone", broken: "not_an_image"}
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
        document = chain.documents(settings, run_id)["featurize"]
        assert (document["state"], document["mendable"], document["error"]) == ("failed", True, line)
        assert chain.heads(settings) == before
        return line

    def test_a_run_without_a_plan(self, chain, planned, caplog):
        assert chain.submit("featurize", planned, "never planned") == ExitCode.BAD_INPUT
        assert f"run {run_key('never planned')}: no finished plan in {planned.lake}" in caplog.text
        assert chain.documents(planned, "never planned") == {}

    def test_a_missing_bucket(self, chain, planned, caplog):
        line = self.refused(chain, planned.model_copy(update={"bucket": "no-such-bucket"}), caplog)
        assert "bucket 'no-such-bucket' does not exist" in line
        assert "FRUITS_BUCKET" in line

    def test_wrong_credentials(self, chain, planned, caplog, monkeypatch):
        monkeypatch.setitem(fruits.spark.session._SESSION, "spark.executorEnv.AWS_SECRET_ACCESS_KEY", "wrong")
        assert "AWS_SECRET_ACCESS_KEY" in self.refused(chain, planned, caplog)

    def test_a_backbone_that_is_not_in_the_lake(self, chain, planned, caplog):
        models = lake_store(planned, "models")
        model_id = chain.documents(planned, "r")["plan"]["model_id"]
        obstore.rename(models, f"{model_id}/model.tflite", "elsewhere")
        line = self.refused(chain, planned, caplog)
        obstore.rename(models, "elsewhere", f"{model_id}/model.tflite")
        assert f"Backbone {model_id}: not in {planned.lake}/models" in line

    def test_wrong_settings(self, chain, planned, caplog, monkeypatch):
        wrong = planned.model_copy(update={"photos_per_task": 0})
        assert chain.submit("featurize", wrong, "r") == ExitCode.BAD_INPUT
        assert "FRUITS_PHOTOS_PER_TASK" in caplog.text


class TestSparkSubmit:
    """The scripts as the DAG starts them: a process of their own, from the environment's spark-submit."""

    def submit(self, *arguments, **environment):
        program = Path(sys.prefix) / "bin" / "spark-submit"
        return subprocess.run(
            [program, "--master", "local[2]", "--conf", "spark.ui.enabled=false", *arguments],
            env={
                **{name: value for name, value in os.environ.items() if name != "PYSPARK_SUBMIT_ARGS"},
                "PYSPARK_PYTHON": sys.executable,
                "PYSPARK_DRIVER_PYTHON": sys.executable,
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )

    def test_help_tells_what_the_job_does_and_what_it_takes(self, chain):
        done = self.submit(ROOT / "spark_jobs" / "featurize.py", "--help")
        assert done.returncode == ExitCode.OK
        assert "Featurize the photos of a run's manifest" in done.stdout
        assert "--run SLUG" in done.stdout

    def test_another_process_gives_the_same_bits(self, chain, first, new_settings, sound, vectors):
        settings = new_settings(bucket=first.settings.bucket)
        chain.plan(settings, "elsewhere")
        done = self.submit(
            ROOT / "spark_jobs" / "featurize.py",
            "--run",
            run_key("elsewhere"),
            FRUITS_LAKE=settings.lake,
            FRUITS_CATALOG_URI=settings.catalog_uri.get_secret_value(),
            FRUITS_BUCKET=settings.bucket,
            FRUITS_S3_ENDPOINT=settings.s3_endpoint,
        )
        assert done.returncode == ExitCode.OK, done.stderr
        assert read_json(run_store(settings, run_key("elsewhere")), "featurize.json")["features"] == len(sound)
        assert vectors_of(chain.branch_rows(settings, "elsewhere", "features")) == vectors


@pytest.mark.parametrize("job", ["pca", "validate"])
def test_each_job_explains_itself(job):
    script = ROOT / "spark_jobs" / f"{job}.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stderr
    assert "--run SLUG" in done.stdout
    assert "Exit codes: 0 done" in done.stdout
