import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fruits.lake.branches import Writer, run_of_branch
from fruits.run.state import run_key
from tests.hostile import HOSTILE_KEYS


@given(st.lists(st.text(), unique=True, max_size=20))
def test_keys_are_unique_and_fit_branches_and_paths(run_ids):
    keys = [run_key(run_id) for run_id in run_ids]
    assert len(set(keys)) == len(keys)
    for key in keys:
        assert run_of_branch(Writer(key, "featurize_1_ab").branch) == key
        assert key.isascii()
        assert key.replace("_", "").isalnum()
        assert key == key.lower()
        assert len(key) <= 67


@pytest.mark.parametrize("run_id", HOSTILE_KEYS.values(), ids=HOSTILE_KEYS)
def test_a_hostile_run_id_stays_in_its_folder_and_branch(run_id):
    assert re.fullmatch("[a-z0-9_]{7,67}", run_key(run_id))


def test_a_key_is_readable_stable_and_differs_where_only_punctuation_does():
    key = run_key("manual__2026-11-22T09:30:00+00:00")
    assert key.startswith("manual_2026_11_22t09_30_00_00_00_")
    assert key == run_key("manual__2026-11-22T09:30:00+00:00") != run_key("manual__2026-11-22T09:30:00-00:00")
    assert run_key("x" * 300) != run_key("x" * 301)


def test_a_branch_of_format_1_belongs_to_its_run_whatever_its_key_looks_like():
    for key in ("manual_1_abc123", "x" * 59 + "__abc123"):
        assert run_of_branch(f"run_{key}") == key
        assert run_of_branch(Writer(key, "pca_3_0a1b2c").branch) == key
    assert run_of_branch("main") is None
