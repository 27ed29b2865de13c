"""A catalog in PostgreSQL that goes away: at the start of a task, between two commits, in a commit, after a commit."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier

import pytest
from pydantic import SecretStr

from fruits.errors import TransientError
from fruits.lake.catalog import Lake
from fruits.lake.publication import publications
from fruits.lake.schemas import TABLES
from fruits.stores import effects_watched
from tests.chaos.observed import whole_rows
from tests.chaos.world import FIRST, STEPS, world

pytestmark = pytest.mark.heavy


@pytest.fixture
def made(postgres):
    """A bucket and a lake whose catalog is a database of its own."""
    with world(real=True) as made:
        uri = f"postgresql://fruits@127.0.0.1:{postgres.port}/{postgres.database()}"
        made.settings = made.settings.model_copy(update={"catalog_uri": SecretStr(uri)})
        yield made


def run(made, run_id, between=lambda: None):
    """A run, each task again after an error that may pass, and after that alone; returns these errors.

    After each attempt, readers find whole publications: those that there were, or the run's at once.
    """
    made.runs[run_id] = made.request()
    errors = []
    for task in STEPS:
        for attempt in count(1):
            try:
                assert made.attempt(task, run_id)
            except TransientError as error:
                errors.append(str(error))
                assert attempt < 4, errors
                between()
            else:
                break
        check_readers(made)
    return errors


def check_readers(made):
    for publication in publications(Lake.open(made.settings))[-1:]:
        whole_rows(Lake(made.settings), publication)


FEATURES, STATISTICS, PUBLICATION, MAIN = 5, 10, 14, 17
"""Commits of a run by their number: rows, statistics, the publication itself, and what follows from it."""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_that_is_cut_in_a_commit_costs_an_attempt_and_no_row(made, postgres, database, moment):
    """Of each run another commit is cut: ``after`` is a commit that is in effect although its answer was lost."""
    direct = made.settings
    uri = direct.catalog_uri.get_secret_value().replace(str(postgres.port), str(database.port))
    made.settings = direct.model_copy(update={"catalog_uri": SecretStr(uri)})
    lost = 0
    numbers = (FEATURES, STATISTICS, PUBLICATION, MAIN)
    for number in numbers:
        made.put(FIRST[0], f"other {number}".encode())
        commits = count(1)

        def cut(kind, path, now, number=number, commits=commits):
            if (kind, now) == ("commit", "before") and next(commits) == number:
                database.cut(b"COMMIT", moment)

        with effects_watched(cut):
            errors = run(made, f"run {number}")
        assert all("catalog database 127.0.0.1" in error for error in errors), errors
        lost += len(errors)
        made.check_equals_a_full_run()
    assert lost >= database.cuts == len(numbers)
    assert [one.run_id for one in publications(Lake(direct))] == [f"run {number}" for number in numbers]


def test_a_server_that_is_down_at_the_start_or_goes_down_in_a_run_is_waited_for(made, postgres):
    postgres.stop()
    try:
        made.runs["first"] = made.request()
        with pytest.raises(TransientError, match="catalog database 127.0.0.1:.*check FRUITS_CATALOG_URI"):
            made.attempt("prepare", "first")
    finally:
        postgres.start()
    assert run(made, "first") == []
    made.put(FIRST[0], b"other")
    commits = count(1)

    def crash(kind, path, now):
        if (kind, now) == ("commit", "before") and next(commits) in (2, 9):
            postgres.stop()

    with effects_watched(crash):
        assert len(run(made, "second", postgres.start)) == 2
    made.check_equals_a_full_run()
    assert len(publications(Lake(made.settings))) == 2


def test_programs_that_open_a_new_lake_at_once_make_its_tables_once(made):
    barrier = Barrier(4)

    def identities(_):
        barrier.wait()
        lake = Lake.open(made.settings)
        return {table.name: (lake.table(table.name).metadata.table_uuid, lake.head(table.name)) for table in TABLES}

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(identities, range(4))
    assert others == [first] * 3
