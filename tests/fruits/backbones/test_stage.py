import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fruits.backbones import stage as staging
from fruits.backbones.card import Calibration, Card, Preprocessing, model_id, sha256
from fruits.backbones.runtime import Backbone
from fruits.backbones.stage import load_backbone, main, stage, staged_card
from fruits.backbones.weights import WeightsFile
from fruits.errors import FruitsError
from fruits.settings import Precision, Settings
from fruits.stores import write_bytes, write_json

Load = Callable[..., Settings]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbones that were built, by a stand-in for TensorFlow whose flatbuffer is the weights' bytes."""
    names: list[str] = []

    def build(name: str, weights: str | WeightsFile, precision: Precision) -> tuple[Card, bytes]:
        names.append(name)
        source = weights if isinstance(weights, str) else weights.source
        flatbuffer = weights.encode() if isinstance(weights, str) else weights.path.read_bytes()
        preprocessing = Preprocessing(8, 8)
        card = Card(
            model_id=model_id(name, flatbuffer, preprocessing, precision),
            backbone=name,
            weights=source,
            weights_sha256=None,
            preprocessing=preprocessing,
            feature_width=4,
            flatbuffer_sha256=sha256(flatbuffer),
            flatbuffer_bytes=len(flatbuffer),
            licence="none",
            built_with={},
            precision=precision,
            calibration=Calibration("pictures", 1, "0") if precision == "int8" else None,
        )
        return card, flatbuffer

    monkeypatch.setattr("fruits.backbones.build.build", build)
    return names


def test_a_backbone_is_built_once_and_found_afterwards(settings: Load, builds: list[str], tmp_path: Path) -> None:
    given = settings(backbone="MobileNetV2")
    assert staged_card(given) is None
    card = stage(given)
    assert stage(given) == staged_card(given) == stage(settings(backbone="mobilenetv2", weights="imagenet")) == card
    assert builds == ["MobileNetV2"]
    assert (tmp_path / "lake/models" / card.model_id / "model.tflite").read_bytes() == b"imagenet"


def test_other_settings_are_another_backbone(settings: Load, builds: list[str]) -> None:
    cards = [
        stage(settings(backbone=name, weights=weights)) for name in ("A", "B") for weights in ("default", "random")
    ]
    assert len({card.model_id for card in cards}) == 4
    assert len(builds) == 4


def test_another_precision_is_another_backbone_and_fp32_is_found_where_earlier_releases_staged_it(
    settings: Load, builds: list[str], tmp_path: Path
) -> None:
    plain = stage(settings(backbone="A"))
    assert staged_card(settings(backbone="A", precision="int8")) is None
    integer = stage(settings(backbone="A", precision="int8"))
    assert (integer.precision, staged_card(settings(backbone="A"))) == ("int8", plain)
    assert (len(builds), integer.model_id == plain.model_id) == (2, False)
    entries = sorted(path.name for path in (tmp_path / "lake/models/registry").iterdir())
    assert entries == [f"a-{sha256(b'imagenet')[:16]}.json", f"a-int8-{sha256(b'imagenet')[:16]}.json"]


def test_a_weights_file_that_changed_at_its_path_is_another_backbone(
    settings: Load, builds: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "net.weights.h5"
    path.write_bytes(b"old")
    given = settings(backbone="A", weights=str(path))
    old = stage(given)
    path.write_bytes(b"new")
    assert staged_card(given) is None
    new = stage(given)
    assert new.model_id != old.model_id
    path.write_bytes(b"old")
    assert staged_card(given) == old
    assert len(builds) == 2


def test_the_same_weights_at_another_path_are_not_built_again(
    settings: Load, builds: list[str], tmp_path: Path
) -> None:
    cards = []
    for name in ("one.h5", "two.h5"):
        (tmp_path / name).write_bytes(b"the same")
        cards.append(stage(settings(backbone="A", weights=str(tmp_path / name))))
    assert cards[0] == cards[1]
    assert builds == ["A"]


def test_a_build_that_gives_what_is_staged_already_leaves_its_files_as_they_are(
    settings: Load, builds: list[str], tmp_path: Path
) -> None:
    first = stage(settings(backbone="A", weights="imagenet"))
    path = tmp_path / "lake/models" / first.model_id / "card.json"
    before = path.read_bytes()
    (tmp_path / "same.h5").write_bytes(b"imagenet")
    second = stage(settings(backbone="A", weights=str(tmp_path / "same.h5")))
    assert len(builds) == 2
    assert second == first
    assert path.read_bytes() == before


@pytest.mark.parametrize("survivors", [0, 1, 2])
def test_a_crash_between_two_writes_leaves_nothing_visible_and_the_next_run_mends_it(
    survivors: int, settings: Load, builds: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class CrashError(Exception):
        pass

    writes: list[str] = []

    def crashing(write: Callable[..., None]) -> Callable[..., None]:
        def wrapped(store: object, path: str, content: Any) -> None:
            if len(writes) == survivors:
                raise CrashError
            writes.append(path)
            write(store, path, content)

        return wrapped

    given = settings(backbone="A")
    with monkeypatch.context() as patch:
        patch.setattr(staging, "write_bytes", crashing(write_bytes))
        patch.setattr(staging, "write_json", crashing(write_json))
        with pytest.raises(CrashError):
            stage(given)
    assert len(writes) == survivors
    assert staged_card(given) is None
    card = stage(given)
    assert staged_card(given) == card
    assert sha256((tmp_path / "lake/models" / card.model_id / "model.tflite").read_bytes()) == card.flatbuffer_sha256


def test_a_backbone_that_is_not_staged_is_named(settings: Load) -> None:
    with pytest.raises(FruitsError, match=r"mobilenetv2-0123456789ab: not in file:///.*/lake/models"):
        load_backbone(settings(), "mobilenetv2-0123456789ab")


def test_files_of_another_backbone_are_refused(settings: Load, builds: list[str], tmp_path: Path) -> None:
    one, two = stage(settings(backbone="A")), stage(settings(backbone="B"))
    models = tmp_path / "lake/models"
    (models / one.model_id / "card.json").write_bytes((models / two.model_id / "card.json").read_bytes())
    with pytest.raises(FruitsError, match=f"{one.model_id}: its card .* is that of {two.model_id}"):
        load_backbone(settings(), one.model_id)


def test_a_changed_file_in_the_lake_is_refused(settings: Load, builds: list[str], tmp_path: Path) -> None:
    card = stage(settings(backbone="A"))
    (tmp_path / "lake/models" / card.model_id / "model.tflite").write_bytes(b"changed")
    with pytest.raises(FruitsError, match=f"{card.model_id}: expected the flatbuffer's sha256"):
        load_backbone(settings(), card.model_id)


@pytest.mark.heavy
def test_looking_up_a_staged_backbone_imports_nothing_heavy(settings: Load, builds: list[str], tmp_path: Path) -> None:
    card = stage(settings())
    code = (
        "import sys; from fruits.backbones.stage import staged_card; from fruits.settings import Settings;"
        "print(staged_card(Settings.load()).model_id);"
        "print(*{'tensorflow', 'keras', 'ai_edge_litert', 'h5py', 'PIL'} & set(sys.modules))"
    )
    printed = _run("-c", code, settings=settings()).stdout
    assert printed.split() == [card.model_id]


@pytest.mark.parametrize(
    ("variables", "message"),
    [({"FRUITS_WEIGHTS": "/absent.h5"}, "FRUITS_WEIGHTS /absent.h5"), ({"FRUITS_LAKE": "nowhere"}, "FRUITS_LAKE")],
)
def test_the_command_explains_what_to_mend(
    variables: dict[str, str],
    message: str,
    settings: Load,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in {**_variables(settings()), **variables}.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    printed = capfd.readouterr()
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_the_log_of_a_defect_is_shown(
    settings: Load, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(_: Settings) -> Card:
        subprocess.run(["echo", "a note from below"], check=True)
        raise RuntimeError("defect")

    monkeypatch.setattr(staging, "stage", broken)
    for name, value in _variables(settings()).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RuntimeError, match="defect"):
        main([])
    assert "a note from below" in capfd.readouterr().err


@pytest.mark.jobs
@pytest.mark.heavy
def test_the_command_stages_the_default_backbone_without_tensorflow(settings: Load) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('tensorflow', 'keras')));"
        "from fruits.backbones.stage import main; sys.exit(main([]))"
    )
    (line,) = _run("-c", code, settings=settings()).stdout.splitlines()
    assert Card.from_document(json.loads(line)) == staged_card(settings())


@pytest.mark.jobs
@pytest.mark.heavy
def test_the_command_stages_what_any_other_process_builds_and_executors_load(
    settings: Load, untrained: Backbone
) -> None:
    given = settings(backbone="mobilenetv2", weights="random")
    done = _run("-m", "fruits.backbones.stage", settings=given)
    (line,) = done.stdout.splitlines()
    assert done.stderr == ""
    assert Card.from_document(json.loads(line)) == untrained.card
    assert load_backbone(given, untrained.card.model_id).card == untrained.card


def _variables(settings: Settings) -> dict[str, str]:
    names = ("lake", "backbone", "weights")
    values = {f"FRUITS_{name.upper()}": getattr(settings, name) for name in names}
    return {**values, "FRUITS_CATALOG_URI": settings.catalog_uri.get_secret_value()}


def _run(*arguments: str, settings: Settings) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), **_variables(settings)}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, check=True, capture_output=True, text=True, timeout=120
    )
