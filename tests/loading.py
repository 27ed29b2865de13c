"""Loading what tests can't import: a script is in no package."""

import importlib.util
import sys
from pathlib import Path
from typing import Any


def load_file(path: Path, name: str) -> Any:
    """A Python file as a new module called ``name``, by which dataclasses and pickles find it again."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
