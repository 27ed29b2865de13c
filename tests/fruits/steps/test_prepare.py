"""What `prepare` makes of the build of a backbone, which runs in the jobs environment."""

import shutil
from pathlib import Path

import pytest

from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps import prepare as preparing
from fruits.steps.prepare import prepare, stage_missing


@pytest.mark.parametrize(
    ("code", "kind"),
    [(ExitCode.TRANSIENT, TransientError), (ExitCode.BAD_INPUT, FruitsError), (ExitCode.UNEXPECTED, FruitsError)],
)
def test_a_build_that_may_succeed_later_is_tried_again(
    folder_lake: Settings, tmp_path: Path, code: ExitCode, kind: type[FruitsError]
) -> None:
    python = tmp_path / "jobs" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho 'weights: no answer' >&2\nexit {code}\n")
    python.chmod(0o755)
    with pytest.raises(FruitsError, match="^weights: no answer$") as raised:
        stage_missing(folder_lake.model_copy(update={"jobs_env": tmp_path / "jobs"}))
    assert type(raised.value) is kind


def test_no_run_begins_on_a_catalog_that_is_older_than_the_lake(
    folder_lake: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = Lake.open(folder_lake)
    shutil.copy(tmp_path / "catalog.db", tmp_path / "backup.db")
    for number in "12":
        lake.set_properties({"commit": number})
    shutil.copy(tmp_path / "backup.db", tmp_path / "catalog.db")
    monkeypatch.setattr(preparing, "first_photos", lambda *_: [])
    monkeypatch.setattr(preparing, "check_photos", lambda *_: None)
    with pytest.raises(FruitsError, match=r"the catalog is older than the lake.*`fruits catalog rebuild`"):
        prepare(folder_lake, RunRequest(prefix=""))
