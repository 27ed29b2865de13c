import shutil
import threading
import time
from pathlib import Path

import pytest

from fruits.errors import FruitsError
from fruits.lake.catalog import Lake
from fruits.lake.source import bind_source
from fruits.serve import doctor
from fruits.serve.doctor import Check, CheckResult, examine
from fruits.settings import Settings
from fruits.stores import photo_store, write_bytes

pytestmark = pytest.mark.jobs


def broken():
    raise ValueError("it broke\nbadly")


def mendable():
    raise FruitsError("mend the thing")


class TestExamine:
    def test_a_check_that_fails_or_hangs_stops_no_other(self):
        hang = threading.Event()
        started = time.monotonic()
        findings = examine(
            [
                Check("hangs", lambda: CheckResult(f"never: {hang.wait()}"), seconds=0.3),
                Check("breaks", broken),
                Check("mendable", mendable),
                Check("fine", lambda: CheckResult("all right")),
            ]
        )
        hang.set()
        assert time.monotonic() - started < 30
        assert [(one.check, one.state) for one in findings] == [
            ("hangs", "fail"),
            ("breaks", "fail"),
            ("mendable", "fail"),
            ("fine", "ok"),
        ]
        assert [one.found for one in findings[1:]] == ["ValueError: it broke", "mend the thing", "all right"]
        assert all((one.fix is None) == (one.state == "ok") for one in findings)

    def test_the_worst_finding_counts(self):
        findings = [doctor.Finding("a", "ok", ""), doctor.Finding("b", "warn", "")]
        assert doctor.worst(findings) == "warn"
        assert doctor.worst([*findings, doctor.Finding("c", "fail", "")]) == "fail"
        assert doctor.worst([]) == "ok"


def executable(file: Path, script: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


class TestMachine:
    @pytest.mark.parametrize(("version", "state"), [("17", "ok"), ("21", "ok"), ("11", "fail"), ("1.8", "fail")])
    def test_java_is_the_one_that_spark_submit_starts(self, tmp_path, monkeypatch, version, state):
        monkeypatch.setenv("JAVA_HOME", "/somewhere/else")
        executable(tmp_path / "a jdk/bin/java", f"echo '    java.specification.version = {version}' >&2")
        executable(tmp_path / "jobs/bin/spark-submit", f"export JAVA_HOME='{tmp_path}/a jdk'")
        found = doctor.java(tmp_path / "jobs")
        assert found.state == state
        assert "a jdk/bin/java" in found.found

    @pytest.mark.parametrize("launcher", [None, "export JAVA_HOME=/nowhere", "exec something"])
    def test_without_a_java_it_says_so(self, tmp_path, monkeypatch, launcher):
        monkeypatch.delenv("JAVA_HOME", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        if launcher:
            executable(tmp_path / "bin/spark-submit", launcher)
        assert doctor.java(tmp_path).state == "fail"

    def test_each_jar_must_be_there_whole_or_as_a_link_that_leads_somewhere(self, tmp_path):
        jars = tmp_path / "lib/python3.11/site-packages/pyspark/jars"
        assert doctor.spark_jars(tmp_path, tmp_path).state == "fail"
        jars.mkdir(parents=True)
        (tmp_path / "requirements").mkdir()
        (tmp_path / "requirements/jars.txt").write_text(
            f"# two\norg.a:one:1.0 sha256:{'0' * 64}\norg.a:two:2.0 sha256:1\n"
        )
        (jars / "one-1.0.jar").touch()
        (jars / "two-2.0.jar").symlink_to(tmp_path / "gone")
        found = doctor.spark_jars(tmp_path, tmp_path)
        assert (found.state, "two-2.0.jar" in found.found, "one-1.0" in found.found) == ("fail", True, False)
        (tmp_path / "gone").touch()
        assert doctor.spark_jars(tmp_path, tmp_path).state == "ok"

    @pytest.mark.parametrize(("says", "state"), [("Python 3.11.7", "ok"), ("Python 3.14.0", "fail"), (None, "fail")])
    def test_a_python_must_be_one_that_the_locks_are_for(self, tmp_path, says, state):
        if says:
            executable(tmp_path / "bin/python", f"echo {says}")
        assert doctor.python(tmp_path).state == state

    def test_packages_must_be_as_locked(self, tmp_path):
        site = tmp_path / "jobs/lib/python3.11/site-packages"
        for name, version in (("typer", "1.0"), ("Some_Thing", "2.0")):
            (site / f"{name}-{version}.dist-info").mkdir(parents=True)
            (site / f"{name}-{version}.dist-info/METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        lock = tmp_path / "requirements/jobs.txt"
        lock.parent.mkdir()

        def found(*lines):
            lock.write_text("# a lock\n" + "".join(f"{line} \\\n    --hash=sha256:0\n" for line in lines))
            return doctor.packages(tmp_path / "jobs", tmp_path, "jobs")

        assert found("typer==1.0", "some-thing[extra]==2.0", "other==1 ; sys_platform == 'win32'").state == "ok"
        wrong = found("typer==1.1", "absent==3")
        assert wrong.state == "fail"
        assert "typer 1.0 instead of 1.1; absent is missing instead of 3" in wrong.found

    @pytest.mark.parametrize(("free", "state"), [(100, "ok"), (3, "warn"), (0.5, "fail")])
    def test_a_full_disk_is_noticed(self, tmp_path, monkeypatch, free, state):
        usage = shutil.disk_usage(tmp_path)._replace(free=int(free * 1e9))
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert doctor.disk(tmp_path).state == state

    @pytest.mark.parametrize(("driver", "state"), [("1m", "ok"), ("9999g", "warn")])
    def test_a_driver_that_does_not_fit_into_memory_is_noticed(self, driver, state):
        assert doctor.memory(driver).state == state

    def test_this_checkouts_own_environments_are_sound(self):
        settings = Settings.model_construct(jobs_env=doctor.ROOT / ".venvs/jobs")
        wanted = ("java", "spark jars", "python of jobs", "packages of jobs")
        findings = [one for one in examine(doctor.machine_checks(settings)) if one.check in wanted]
        assert [one.state for one in findings] == ["ok"] * len(wanted), findings


class TestLake:
    @pytest.fixture
    def sound(self, settings, staged_models):
        """Settings of a lake and a bucket in which nothing is wrong."""
        shutil.copytree(staged_models, Path(settings.lake.removeprefix("file://")) / "models")
        bind_source(Lake.open(settings))
        write_bytes(photo_store(settings), "train/Kiwi/1.jpg", b"x")
        return settings

    @staticmethod
    def states(settings):
        return {one.check: one.state for one in examine(doctor.lake_checks(settings))}

    def test_where_nothing_is_wrong_nothing_is_found(self, sound):
        states = self.states(sound)
        assert set(states.values()) == {"ok"}, examine(doctor.lake_checks(sound))
        assert len(states) == 10

    def test_it_leaves_the_lake_as_it_was(self, sound):
        folder = Path(sound.lake.removeprefix("file://"))
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
        self.states(sound)
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()} == before

    def test_a_lake_in_a_bucket_is_written_to_and_left_clean(self, make_settings):
        import obstore

        from fruits.stores import lake_store

        settings = make_settings("s3")
        assert doctor.lake(settings).state == "ok"
        assert list(obstore.list(lake_store(settings, "doctor"))) == []

    @pytest.mark.parametrize(
        ("change", "failing"),
        [
            ({"bucket": "no-such-bucket"}, {"bucket", "lake of this bucket"}),
            ({"catalog_uri": "sqlite:////nowhere/catalog.db"}, {"catalog", "lake of this bucket", "pin", "backbone"}),
            ({"weights": "/nowhere/weights.h5"}, {"backbone"}),
        ],
        ids=["bucket", "catalog", "weights"],  # a set has another order in another process
    )
    def test_what_is_wrong_is_found_and_nothing_else(self, sound, change, failing):
        changed = Settings.load(**{**{name: getattr(sound, name) for name in sound.model_fields_set}, **change})
        assert {name for name, state in self.states(changed).items() if state == "fail"} == failing

    def test_a_damaged_backbone_is_found(self, sound):
        (file,) = Path(sound.lake.removeprefix("file://")).glob("models/*/model.tflite")
        file.write_bytes(file.read_bytes()[:-1] + b"\0")
        (finding,) = examine([Check("backbone", lambda: doctor.backbone(sound))])
        assert finding.state == "fail"
        assert "sha256" in finding.found

    def test_a_catalog_that_may_not_be_written_is_found(self, sound, monkeypatch):
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def read_only(connection, _):
            connection.execute("PRAGMA query_only = ON")

        event.listen(Engine, "connect", read_only)
        try:
            found = doctor.catalog(sound)
        finally:
            event.remove(Engine, "connect", read_only)
        assert found.state == "fail"
        assert "can be read, not written" in found.found

    @pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (60, "warn"), (1200, "fail"), (-1200, "fail")])
    def test_a_wrong_clock_is_found(self, sound, monkeypatch, seconds, state):
        from datetime import datetime, timedelta

        class Wrong(datetime):
            @classmethod
            def now(cls, tz=None):
                return datetime.now(tz) + timedelta(seconds=seconds)

        monkeypatch.setattr(doctor, "datetime", Wrong)
        assert doctor.clock(sound).state == state

    def test_no_credentials_are_found(self, monkeypatch, tmp_path):
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert doctor.credentials().state == "fail"

    def test_an_empty_bucket_is_a_warning(self, settings):
        assert doctor.bucket(settings).state == "warn"

    @pytest.mark.parametrize("queue", ["http://127.0.0.1:9/1/fruits-events", "http://127.0.0.1:9/1/other"])
    def test_a_queue_that_is_not_there_is_found(self, sound, queue):
        changed = sound.model_copy(update={"event_queue": queue})
        assert doctor.queue(changed).state == "fail"
