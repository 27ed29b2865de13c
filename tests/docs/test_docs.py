"""The documentation names only what is there: links, files, settings and make targets."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from fruits.cli.app import app
from fruits.lake.approvals import Kind
from fruits.photos.quarantine import Reason
from fruits.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docs/notebooks/*.ipynb"),
        *ROOT.glob("requirements/*.md"),
        ROOT / "tests" / "README.md",
    )
    if path.name != "CHANGELOG.md"  # which also names what was there
]
FOLDERS = "benchmarks|dags|docker|docs|fruits|infra|local|plugins|requirements|sample_photos|scripts|spark_jobs|tests"
NO_SETTINGS = {"FRUITS_CACHE", "FRUITS_MAVEN_MIRROR", "FRUITS_RELEASE"}  # read by set-up and driver


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    dead = [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()]
    assert dead == []


def test_every_path_exists(page):
    paths = re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", page.read_text())
    assert [path for path in paths if not (ROOT / path).exists() and not (page.parent / path).exists()] == []


def test_every_notebook_is_small_and_shows_no_error():
    for path in ROOT.glob("docs/notebooks/*.ipynb"):
        outputs = [output for cell in json.loads(path.read_text())["cells"] for output in cell.get("outputs", ())]
        assert [output["output_type"] for output in outputs if output["output_type"] == "error"] == []
        assert path.stat().st_size < 200_000, path


def test_every_test_that_a_promise_names_exists():
    folder = ROOT / "tests"
    named = re.findall(r"`([a-z_]+/[\w./-]*)`", (folder / "README.md").read_text())
    assert "chaos/" in named
    assert [path for path in named if not (folder / path).exists()] == []


def test_every_variable_is_a_setting(page):
    settings = {f"FRUITS_{name.upper()}" for name in Settings.model_fields}
    named = set(re.findall(r"\bFRUITS_[A-Z][A-Z0-9_]*[A-Z0-9]\b(?!_)", page.read_text()))
    assert named - settings - NO_SETTINGS == set()


def test_every_make_target_is_in_the_makefile(page):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^ {4}(?:.*&& )?)(?:sudo )?make ([a-z-]+)", page.read_text(), re.MULTILINE))
    assert named - targets == set()


def test_every_command_of_fruits_exists_with_its_options(page):
    for name, rest in re.findall(r"(?:`|bin/|scheduler )fruits ([a-z-]+)([^`\n#>|]*)", page.read_text()):
        group: Any = typer.main.get_command(app)
        command, words = group.commands[name], rest.split()
        if hasattr(command, "commands") and words:
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, f"fruits {name} {rest}"


def test_the_runbook_has_every_quarantine_reason_and_every_question():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert {*Reason, *get_args(Kind)} - named == set()


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert pages == re.findall(r"\]\((\d\d-[\w-]+\.md)\)", index)


def test_the_version_is_in_the_changelog():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    package = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    library = re.search(r'^__version__ = "(.*)"', (ROOT / "fruits" / "__init__.py").read_text(), re.MULTILINE)[1]
    assert package == library
    assert f"## [{package}]" in changelog or f"To become {package}." in changelog
