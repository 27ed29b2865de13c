import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fruits.backbones.card import Preprocessing
from fruits.backbones.efficientnet_lite import checkpoint_path, read_checkpoint, read_weights
from fruits.backbones.runtime import Backbone
from fruits.errors import FruitsError

# Classes of ImageNet-1k (ILSVRC 2012), by position.
GROCERY_STORE, GRANNY_SMITH, STRAWBERRY, ORANGE, LEMON, PINEAPPLE, BANANA, POMEGRANATE = (
    582, 948, 949, 950, 951, 953, 954, 957,
)  # fmt: skip

HEADER = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})


class _Storage:
    """What a checkpoint of PyTorch refers to by a persistent id."""

    def __init__(self, key: str, numbers: NDArray[Any]) -> None:
        self.key, self.numbers = key, numbers


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.parts = storage, offset, shape, strides

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> object:
        if not isinstance(obj, _Storage):
            return None
        kind = (
            sys.modules["torch"].FloatStorage if obj.numbers.dtype == np.float32 else sys.modules["torch"].LongStorage
        )
        return "storage", kind, obj.key, "cpu", len(obj.numbers), None


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a checkpoint in PyTorch's legacy format, without PyTorch."""
    torch, utils = ModuleType("torch"), ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(torch, name, type(name, (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)

    def write_checkpoint(tensors: object, storages: list[_Storage]) -> Path:
        path = tmp_path / "made-up.pth"
        with path.open("wb") as file:
            for part in (*HEADER, tensors, [storage.key for storage in storages]):
                _Pickler(file, protocol=2).dump(part)
            for storage in storages:
                file.write(len(storage.numbers).to_bytes(8, "little") + storage.numbers.tobytes())
        return path

    return write_checkpoint


def test_strided_tensors_and_shared_storages_are_read(write: Callable[..., Path]) -> None:
    floats, integers = _Storage("7", np.arange(24, dtype=np.float32)), _Storage("8", np.array([5]))
    views = {
        "plain": _Tensor(floats, 0, (2, 12), (12, 1)),
        "permuted": _Tensor(floats, 0, (4, 2, 3), (1, 12, 4)),
        "part": _Tensor(floats, 20, (4,), (1,)),
        "scalar": _Tensor(integers, 0, (), ()),
    }
    tensors = read_checkpoint(write(OrderedDict(views), [integers, floats]))
    assert np.array_equal(tensors["plain"], floats.numbers.reshape(2, 12))
    assert np.array_equal(tensors["permuted"], floats.numbers.reshape(2, 3, 4).transpose(2, 0, 1))
    assert np.array_equal(tensors["part"], [20, 21, 22, 23])
    assert tensors["scalar"] == 5


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(0, (25,), (1,)), (1, (2, 12), (12, 1)), (-1, (2,), (1,)), (5, (3,), (-1,))]
)
def test_a_tensor_never_reaches_outside_its_storage(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...], write: Callable[..., Path]
) -> None:
    storage = _Storage("7", np.arange(24, dtype=np.float32))
    with pytest.raises(FruitsError, match="reaches outside"):
        read_checkpoint(write({"a": _Tensor(storage, offset, shape, strides)}, [storage]))


class _Malice:
    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, getattr, __import__, np.frombuffer, Path])
def test_a_checkpoint_that_asks_for_anything_but_tensors_is_refused_before_it_runs(
    function: Callable[..., Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    target = tmp_path / "made-by-the-checkpoint"
    argument = f"__import__('os').mkdir({str(target)!r})" if function is eval else str(target)
    path = write({"a": _Malice(function, argument)}, [])
    with pytest.raises(FruitsError, match=re.escape(function.__name__)):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize("keep", [0, 10, 1_000, 40_000, 60_000, 18_000_000])
@pytest.mark.jobs
def test_a_truncated_checkpoint_is_named(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "short.pth"
    path.write_bytes(checkpoint_path().read_bytes()[:keep])
    with pytest.raises(FruitsError, match=r"short.pth: not a legacy-format"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [b"PK\x03\x04 a zip", b"\x89HDF\r\n", pickle.dumps("no magic") * 5])
def test_a_file_in_another_format_is_named(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    path.write_bytes(data)
    with pytest.raises(FruitsError, match=r"other.pth: not a legacy-format"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def tensors() -> dict[str, NDArray[Any]]:
    return read_checkpoint(checkpoint_path())


def _removed(tensors: dict[str, NDArray[Any]]) -> None:
    del tensors["_blocks.3._bn1.running_var"]


def _added(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["_blocks.16._expand_conv.weight"] = np.zeros((1, 1, 1, 1), np.float32)


def _reshaped(tensors: dict[str, NDArray[Any]]) -> None:
    tensors["_conv_head.weight"] = tensors["_conv_head.weight"][:-1]


@pytest.mark.jobs
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_removed, "tensor _blocks.3._bn1.running_var is missing"),
        (_added, "do not belong to the network, such as _blocks.16._expand_conv.weight"),
        (_reshaped, "layer head takes _conv_head.weight"),
    ],
)
def test_every_tensor_of_the_checkpoint_has_one_place(
    damage: Callable[[dict[str, NDArray[Any]]], None],
    message: str,
    tensors: dict[str, NDArray[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damaged = dict(tensors)
    damage(damaged)
    monkeypatch.setattr("fruits.backbones.efficientnet_lite.read_checkpoint", lambda _: damaged)
    with pytest.raises(FruitsError, match=message):
        read_weights(Path("made-up.pth"))


@pytest.mark.jobs
@pytest.mark.heavy
def test_the_network_is_the_published_one_by_what_its_classifier_sees(
    lite0: Backbone,
    tensors: dict[str, NDArray[Any]],
    shop_photos: Path,
    fruits_360: Path,
    read: Callable[[Path, Preprocessing], NDArray[np.uint8]],
) -> None:
    expected = {
        shop_photos / "Banana": {BANANA},
        shop_photos / "Pineapple": {PINEAPPLE},
        shop_photos / "Lemon": {LEMON},
        shop_photos / "Pomegranate": {POMEGRANATE, GROCERY_STORE},
        fruits_360 / "Test/Lemon": {LEMON},
        fruits_360 / "Test/Strawberry": {STRAWBERRY},
        fruits_360 / "Test/Pomegranate": {POMEGRANATE},
        fruits_360 / "Test/Granny Smith": {GRANNY_SMITH},
        fruits_360 / "Test/Orange": {ORANGE, LEMON},  # lemon for most: 100 px photos have no peel
    }
    hits = []
    for folder, classes in expected.items():
        paths = sorted(folder.glob("*.jpg"))[:6]
        assert paths
        rows = np.stack([lite0.features(read(path, lite0.card.preprocessing)) for path in paths])
        scores = rows @ tensors["_fc.weight"].T + tensors["_fc.bias"]
        hits.append(np.mean([best in classes for best in scores.argmax(axis=1)]))
    assert min(hits) >= 0.8, dict(zip(expected, hits, strict=True))
