"""The disk of the lake, or of the catalog, is full at each task of a run: a clear error, nothing half visible."""

import pytest
from pydantic import SecretStr

from fruits.errors import FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from tests.chaos.observed import whole_rows
from tests.chaos.world import FIRST, STEPS, world
from tests.small_disk import small_disk

pytestmark = pytest.mark.heavy


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", 64) as made:
        yield made


@pytest.fixture(params=["lake", "catalog"])
def made(request, disk):
    """A world whose lake, or whose catalog's file, is on the small disk."""
    with world(real=True) as made:
        place = {
            "lake": {"lake": f"file://{disk.folder}/lake"},
            "catalog": {"catalog_uri": SecretStr(f"sqlite:///{disk.folder}/catalog.db")},
        }[request.param]
        made.settings = made.settings.model_copy(update=place)
        yield made


def test_a_full_disk_is_named_and_after_room_is_made_the_run_goes_on(made, disk):
    made.sweep("first")
    before = publications(Lake(made.settings))
    made.put(FIRST[0], b"other")
    made.runs["second"] = made.request()
    errors = {}
    for task in STEPS:
        with disk.filled():
            try:
                made.attempt(task, "second")
            except FruitsError as error:
                errors[task] = error
        assert publications(Lake(made.settings)) == before, "nothing of the failed attempt is visible"
        whole_rows(Lake(made.settings), before[-1])
        made.attempt(task, "second")
    assert {"featurize", "pca", "publish"} <= set(errors)
    for error in errors.values():
        assert not isinstance(error, TransientError), "a person must make room"
        assert str(disk.folder) in str(error)
        assert "make room" in str(error).lower()
    made.check_equals_a_full_run()
    assert len(publications(Lake(made.settings))) == len(before) + 1
