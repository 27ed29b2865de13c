"""The stack, deployed to moto's server, and the proof's script as a module."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def proof() -> ModuleType:
    """``infra/iam_proof.py``."""
    spec = importlib.util.spec_from_file_location("iam_proof", ROOT / "infra" / "iam_proof.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def account(proof: ModuleType) -> Iterator[Any]:
    """An account of moto's with the stack in it, databases on the host."""
    with proof.running_account() as account:
        account.deploy(proof.TEMPLATE.read_text(), AlertEmail="grower@example.com")
        yield account
