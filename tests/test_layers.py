"""The contracts of pyproject.toml refuse what they are there to refuse. `make lint` holds the tree against them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.jobs

ROOT = Path(__file__).parents[1]
PACKAGES = ("fruits", "local", "sample_photos", "spark_jobs", "dags", "plugins")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the contracts are about."""
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / name / "__init__.py").touch()  # else Python joins the folder with the checkout's of that name
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(tree: Path) -> tuple[int, str]:
    """Exit code and output of import-linter over a tree."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_tree_keeps_the_contracts() -> None:
    code, output = lint(ROOT)
    assert code == 0, output


@pytest.mark.parametrize(
    ("file", "statement", "broken"),
    [
        ("fruits/errors.py", "import fruits.settings", "fruits.errors is not allowed to import fruits.settings"),
        ("fruits/photos/keys.py", "import fruits.lake.schemas", "fruits.photos is not allowed to import fruits.lake"),
        ("fruits/lake/branches.py", "import fruits.run.state", "fruits.lake is not allowed to import fruits.run"),
        (
            "fruits/spark/cluster.py",
            "import fruits.serve.summary",
            "fruits.spark is not allowed to import fruits.serve",
        ),
        ("fruits/serve/summary.py", "import fruits.steps.plan", "fruits.serve is not allowed to import fruits.steps"),
        ("fruits/cli/output.py", "import fruits.airflow.alerts", "fruits.cli is not allowed to import fruits.airflow"),
        (
            "fruits/steps/plan.py",
            "def late():\n    import local.stack",
            "Illegal imports of protected package local",
        ),
        (
            "fruits/cli/output.py",
            "import sample_photos",
            "Illegal imports of protected package sample_photos",
        ),
        ("spark_jobs/pca.py", "import fruits.steps.plan", "spark_jobs is not allowed to import fruits.steps"),
        ("dags/fruit_features.py", "import spark_jobs.pca", "dags is not allowed to import spark_jobs"),
        ("fruits/extras/__init__.py", "", "not listed as layers: - fruits.extras"),
    ],
)
def test_a_wrong_import_is_refused(tree: Path, file: str, statement: str, broken: str) -> None:
    path = tree / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else '"""New."""\n') + f"\n{statement}\n")
    code, output = lint(tree)
    assert code == 1
    assert broken in " ".join(output.split())
