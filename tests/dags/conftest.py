"""The DAG files as modules."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load_dag_file(name: str) -> ModuleType:
    """A file of dags/, as Airflow loads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "plugins"))
        spec = importlib.util.spec_from_file_location(f"{name}_dag", ROOT / "dags" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@pytest.fixture(scope="module")
def module(request: pytest.FixtureRequest) -> ModuleType:
    """The DAG file that a test module is of: `fruit_features` for `test_fruit_features`."""
    return load_dag_file(request.module.__name__.rpartition(".")[2].removeprefix("test_"))


@pytest.fixture
def load() -> Callable[[str], ModuleType]:
    """Loads a DAG file anew, under the environment of the test."""
    return load_dag_file
