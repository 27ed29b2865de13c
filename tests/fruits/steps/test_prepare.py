"""What `prepare` makes of the build of a backbone, which runs in the jobs environment."""

from pathlib import Path

import pytest

from fruits.errors import ExitCode, FruitsError, TransientError
from fruits.settings import Settings
from fruits.steps.prepare import stage_missing


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
