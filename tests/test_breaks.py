"""The breaks of breaks.toml fit the code. `python tests/breaks.py` does the breaks, and that takes long."""

import pytest

from tests.breaks import BREAKS, ROOT, Break


@pytest.mark.parametrize("one", BREAKS, ids=lambda one: one.promise)
def test_a_break_changes_exactly_one_place_and_its_tests_exist(one: Break) -> None:
    found = (ROOT / one.file).read_text().count(one.old)
    assert found == 1, f"{one.file} has {found} times the text {one.old!r}: correct this break in breaks.toml"
    assert [path for path in one.tests.split() if not (ROOT / path).exists()] == []


def test_each_promise_of_a_break_is_named_once() -> None:
    assert len({one.promise for one in BREAKS}) == len(BREAKS)
