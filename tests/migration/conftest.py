"""What the tests of old lakes share."""

import pytest

from fruits.settings import Settings
from local.stack import Stack
from tests.migration.old_lake import AbsentCommitError, OldLakes, make
from tests.spark_jobs.conftest import chain, spark  # noqa: F401 -- fixtures


@pytest.fixture(scope="session")
def old_lakes(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> OldLakes:
    """The lakes of the old release, made once. A test changes only a lake that is its own."""
    try:
        return make(tmp_path_factory.mktemp("old"), stack.endpoint)
    except AbsentCommitError as error:
        pytest.skip(f"ABSENT: {error}")


def settings_of(lakes: OldLakes, name: str) -> Settings:
    """The settings with which today's software works on an old lake."""
    lake = lakes.lakes[name]
    return Settings.load(lake=lake.lake, catalog_uri=lake.catalog_uri, bucket=lake.bucket, s3_endpoint=lakes.endpoint)
