"""What `prepare` makes of the build of a backbone, which runs in the jobs environment."""

import shutil
from pathlib import Path

import pytest

from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.lake.catalog import Lake
from fruits.run.request import RunRequest
from fruits.settings import Settings
from fruits.steps import prepare as preparing
from fruits.steps.prepare import prepare, stage_missing, with_backbone


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


@pytest.mark.parametrize("weights", [None, "imagenet", "/mine/a.h5", "/srv/weights/b.h5", "https://host/weights/c.h5"])
def test_a_run_may_ask_for_the_operators_weights(folder_lake: Settings, weights: str | None) -> None:
    operators = {"weights": "/mine/a.h5", "weights_from": ("/srv/weights", "https://host/weights")}
    request = RunRequest(prefix="", weights=weights)
    chosen = with_backbone(folder_lake.model_copy(update=operators), request)
    assert chosen.weights == (weights or "/mine/a.h5")


@pytest.mark.parametrize(
    "weights", ["/mine/b.h5", "/etc/passwd", "file:///etc/passwd", "https://host/c.h5", "s3://b/c"]
)
def test_a_run_may_not_ask_for_weights_from_elsewhere(folder_lake: Settings, weights: str) -> None:
    operators = {"weights": "/mine/a.h5", "weights_from": ("/srv/weights", "https://host/weights")}
    with pytest.raises(FruitsError, match=r"FRUITS_WEIGHTS_FROM lists, now /srv/weights, https://host/weights"):
        with_backbone(folder_lake.model_copy(update=operators), RunRequest(prefix="", weights=weights))


@pytest.mark.parametrize(
    ("configured", "requested", "precision"), [("fp32", None, "fp32"), ("int8", None, "int8"), ("int8", "fp32", "fp32")]
)
def test_a_backbone_is_built_in_the_precision_of_the_run_or_of_the_settings(
    folder_lake: Settings, tmp_path: Path, configured: str, requested: str | None, precision: str
) -> None:
    python = tmp_path / "jobs" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$FRUITS_BACKBONE in $FRUITS_PRECISION" >&2\nexit 2\n')
    python.chmod(0o755)
    settings = folder_lake.model_copy(update={"jobs_env": tmp_path / "jobs", "precision": configured})
    with pytest.raises(FruitsError, match=f"^efficientnet-lite0 in {precision}$"):
        stage_missing(with_backbone(settings, RunRequest(prefix="", precision=requested)))


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
