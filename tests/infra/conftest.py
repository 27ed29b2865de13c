"""The stack, deployed to moto's server, and the proof's script as a module."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.loading import load_file

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def proof() -> ModuleType:
    """``infra/iam_proof.py``."""
    return load_file(ROOT / "infra" / "iam_proof.py", "iam_proof")


@pytest.fixture(scope="session")
def account(proof: ModuleType) -> Iterator[Any]:
    """An account of moto's with the stack in it, databases on the host."""
    with proof.running_account() as account:
        account.deploy(proof.TEMPLATE.read_text(), AlertEmail="grower@example.com")
        yield account
